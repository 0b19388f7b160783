"""Quantization noise of single tensors and weights."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis.noise import NoiseProbe, Rounding
from graphopt.data.samples import Samples
from graphopt.data.synthetic import synthetic_samples
from graphopt.model.model import Model
from graphopt.runtime.session import open_session
from graphopt.testing.builders import residual

GRIDS = {
    "input": Rounding(0.05, 128),
    "stem": Rounding(0.04, 0),
    "inner": Rounding(0.02, 0),
    "joined": Rounding(0.1, 0),
}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_proto(residual(0))


@pytest.fixture(scope="module")
def samples(model: Model) -> Samples:
    return synthetic_samples(model.interface, seed=3, dims={}, shapes={}, bounds={}, count=3)


def coarse_weight(model: Model) -> dict[str, dict[int, np.ndarray]]:
    node = next(n for n in model.editor.nodes() if n.op == "Conv" and n.outputs[0].name == "inner.conv")
    weight = model.editor.constant(node.inputs[1])
    assert weight is not None
    return {"inner.conv": {1: (np.rint(weight * 8) / 8).astype(np.float32)}}


def test_with_nothing_rounded_the_outputs_are_the_models(model: Model, samples: Samples) -> None:
    probe = NoiseProbe(model, GRIDS, coarse_weight(model))
    exact = open_session(model).run(samples[0])["output"]
    assert np.allclose(probe.run_exact(samples[0])["output"], exact, atol=1e-5)


def test_the_noise_of_a_weight_is_that_of_a_model_with_the_rounded_weight(model: Model, samples: Samples) -> None:
    rounded = coarse_weight(model)
    _, noise = NoiseProbe(model, {}, rounded).measure(samples)
    changed = model.clone()
    node = next(n for n in changed.editor.nodes() if n.outputs[0].name == "inner.conv")
    changed.editor.set_constant(node, 1, rounded["inner.conv"][1])
    before, after = open_session(model), open_session(changed)
    pairs = [(before.run(feed)["output"], after.run(feed)["output"]) for feed in samples]
    expected = sum(float(((a - b) ** 2).sum()) for a, b in pairs) / sum(float((a**2).sum()) for a, _ in pairs)
    assert noise["inner.conv"] == pytest.approx(expected, rel=1e-3)


def test_the_noise_of_the_input_is_that_of_a_rounded_feed(model: Model, samples: Samples) -> None:
    noise, _ = NoiseProbe(model, GRIDS, {}).measure(samples)
    grid = GRIDS["input"]
    session = open_session(model)

    def rounded(x: np.ndarray) -> np.ndarray:
        codes = np.clip(np.rint(x / np.float32(grid.scale)) + grid.zero, 0, 255) - grid.zero
        return (codes * np.float32(grid.scale)).astype(np.float32)

    pairs = [(session.run(f)["output"], session.run({"input": rounded(f["input"])})["output"]) for f in samples]
    expected = sum(float(((a - b) ** 2).sum()) for a, b in pairs) / sum(float((a**2).sum()) for a, _ in pairs)
    assert noise["input"] == pytest.approx(expected, rel=1e-2)


def test_twice_the_step_makes_about_four_times_the_noise(model: Model, samples: Samples) -> None:
    noise = [NoiseProbe(model, {"inner": Rounding(scale, 0)}, {}).measure(samples)[0]["inner"] for scale in (0.05, 0.1)]
    assert 2 < noise[1] / noise[0] < 8


def test_a_negligible_group_is_shared_out_among_its_members(model: Model, samples: Samples) -> None:
    noise, _ = NoiseProbe(model, GRIDS, {}).measure(samples, negligible=1.0)
    assert len(set(noise.values())) == 1
    single, _ = NoiseProbe(model, GRIDS, {}).measure(samples)
    assert sum(noise.values()) == pytest.approx(sum(single.values()), rel=0.8)
