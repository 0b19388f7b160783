"""Choosing channels by their error, and refitting the layers that read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.moments import Moments
from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.passes.remove_channels.compensate import choose, solve
from graphopt.passes.remove_channels.importance import Surgeon, operate
from graphopt.testing import builders
from tests.passes.remove_channels.channel_cases import gap, made, outputs, removed


def drift(source: Model, candidate: Model, samples: Samples) -> float:
    """‖Δ‖² / ‖y‖² over all outputs."""
    given = [dict(feed) for feed in samples]
    pairs = list(zip(outputs(source, given), outputs(candidate, given), strict=True))
    return float(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a**2).sum() for a, _ in pairs))


@pytest.mark.parametrize("name", ["conv_bn_relu", "residual", "concat", "flatten_gemm", "matmul_add", "mlp"])
def test_refitting_brings_the_outputs_nearer(name: str) -> None:
    proto = builders.ALL[name](0)
    samples, fresh = made(proto, 48), Samples.of([dict(f) for f in made(proto, 72)][48:])
    source = Model.of(proto)
    errors = {}
    for how in ("none", "bias", "least-squares"):
        candidate, result = removed(proto, samples=samples, importance="l2", compensation=how)
        assert result.oracle is not None and gap(result.oracle, candidate) <= 1e-5
        errors[how] = drift(source, candidate, fresh)
    assert errors["least-squares"] < 0.7 * errors["none"]
    assert errors["least-squares"] < errors["bias"]


def test_a_refit_is_kept_only_where_it_helps_on_held_out_samples() -> None:
    proto = builders.residual(0)
    _, result = removed(proto, samples=made(proto, 12))
    refits = [site for site in result.applied if site.rule == "refit"]
    assert refits
    assert all(site.figures["after"] < site.figures["before"] for site in refits)  # type: ignore[operator]


def test_more_layers_are_refitted_than_those_that_lost_inputs() -> None:
    proto = builders.residual(0)
    count = {}
    for how in ("behind", "all"):
        _, result = removed(proto, samples=made(proto, 16), refit=how, scope="inner", skip=("op:Gemm",))
        count[how] = [site.where for site in result.applied if site.rule == "refit"]
    assert count["behind"] == ["back.conv/Conv"]
    assert "output/Gemm" not in count["all"]


def test_with_samples_the_surgeon_chooses_and_the_recipe_says_so() -> None:
    proto = builders.conv_bn_relu(0)
    _, result = removed(proto, samples=made(proto, 8))
    assert result.resolved is not None and result.resolved.importance == "obs"  # type: ignore[attr-defined]
    _, result = removed(proto)
    assert result.resolved is not None and result.resolved.importance == "l2"  # type: ignore[attr-defined]


def test_the_surgeon_without_samples_goes_by_weights_and_says_so() -> None:
    _, result = removed(builders.conv_bn_relu(0), importance="obs")
    assert any("no samples were given" in note for note in result.notes)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 3))
def test_the_surgeon_s_loss_is_the_error_after_refitting_the_rest(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, 5 * width)) @ rng.standard_normal((5 * width, 5 * width))
    x -= x.mean(0)
    weight = rng.standard_normal((5 * width, 3))
    labels = np.repeat(np.arange(5), width)
    y = x @ weight
    surgeon = Surgeon(x.T @ x, weight, labels, 1e-12)
    losses = surgeon.losses(np.arange(5))
    for channel in range(5):
        rest = x[:, labels != channel]
        refit = rest @ np.linalg.lstsq(rest, y, rcond=None)[0]
        assert losses[channel] == pytest.approx(((refit - y) ** 2).sum() / (y**2).sum(), rel=1e-4, abs=1e-9)


def test_the_surgeon_keeps_what_cannot_be_made_up_for() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4))
    x[:, 3] = x[:, 0] + x[:, 1]  # any one of 0, 1, 3 follows from the other two; 2 stands alone
    surgeon = Surgeon(x.T @ x, np.ones((4, 2)) * [[9], [9], [1], [9]], np.arange(4), 1e-9)
    kept = operate([surgeon], 4, 3)
    assert 2 in kept.tolist() and len(kept) == 3


def linear_rows(seed: int, rows: int, weight: Any, shift: float = 0.0, noise: float = 0.0) -> tuple[Any, Any]:
    """Normal inputs and ``x · weight + shift``, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, len(weight)))
    y = x @ weight + shift + noise * rng.standard_normal((rows, weight.shape[1]))
    return x.astype(np.float32), y.astype(np.float32)


def test_a_heavy_ridge_pulls_to_the_trained_weights_and_many_rows_find_the_answer() -> None:
    rng = np.random.default_rng(0)
    truth, trained = rng.standard_normal((20, 4)), rng.standard_normal((20, 4))
    few, many = Moments(20, 4), Moments(20, 4)
    few.add(*linear_rows(1, 8, truth))
    heavy = solve(few, trained, np.zeros(4), 1e6, intercept=True)
    np.testing.assert_allclose(heavy.weight, trained, atol=1e-3)
    many.add(*linear_rows(2, 4000, truth, shift=3.0))
    light = solve(many, trained, np.zeros(4), 1e-6, intercept=True)
    np.testing.assert_allclose(light.weight, truth, atol=1e-3)
    np.testing.assert_allclose(light.bias, 3, atol=1e-3)


def test_a_fit_that_loses_on_held_out_rows_is_not_taken() -> None:
    weight = np.random.default_rng(1).standard_normal((30, 4))
    fitting, judging = Moments(30, 4), Moments(30, 4)
    fitting.add(*linear_rows(2, 10, weight, noise=1.0))
    judging.add(*linear_rows(3, 500, weight))
    fit, before, after = choose(fitting, judging, weight, np.zeros(4), (1e-4,), intercept=True)
    assert fit is None and after == before < 0.1
