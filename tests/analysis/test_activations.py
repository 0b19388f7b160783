"""Activation statistics of a model."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis.activations import Activations, _groups, observe
from graphopt.data.samples import Samples
from graphopt.data.synthetic import synthetic_samples
from graphopt.model.model import Model
from graphopt.runtime.session import open_session
from graphopt.testing.builders import residual
from graphopt.testing.formats import dynamic_dims

NAMES = ["input", "stem", "inner", "sum", "joined"]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_proto(residual(0))


@pytest.fixture(scope="module")
def samples(model: Model) -> Samples:
    return synthetic_samples(model.interface, seed=3, dims={}, shapes={}, bounds={}, count=5)


def bounds(found: Activations) -> dict[str, tuple[float, float, int]]:
    return {name: (s.minimum, s.maximum, s.count) for name, s in found.tensors.items()}


def test_least_and_greatest_values_are_those_of_the_session(model: Model, samples: Samples) -> None:
    found = observe(model, NAMES, samples)
    session = open_session(model, extra_outputs=NAMES[1:])
    runs = [{**feed, **session.run(feed)} for feed in samples]
    for name in NAMES:
        values = np.stack([run[name] for run in runs])
        assert bounds(found)[name] == (float(values.min()), float(values.max()), values.size)
        assert found.elements[name] == values[0].size


def test_groups_within_a_memory_budget_give_the_same_result(model: Model, samples: Samples) -> None:
    small = 10_000
    groups = _groups(model, NAMES, samples, small)
    assert len(groups) > 2 and [name for group in groups for name in group] == NAMES
    # A tensor that is an output of its own keeps the runtime from fusing across it: the last bits may differ.
    one, many = bounds(observe(model, NAMES, samples)), bounds(observe(model, NAMES, samples, memory_budget=small))
    for name in NAMES:
        assert one[name] == pytest.approx(many[name], rel=1e-5)


def test_the_order_of_the_samples_and_merging_do_not_matter(model: Model, samples: Samples) -> None:
    whole = bounds(observe(model, NAMES, samples, histograms=True))
    assert bounds(observe(model, NAMES, samples.take([4, 2, 0, 1, 3]))) == whole
    halves = [observe(model, NAMES, samples.take(part)) for part in ([0, 3], [1, 2, 4])]
    assert bounds(halves[0].merged(halves[1])) == bounds(halves[1].merged(halves[0])) == whole


def test_shapes_may_change_from_sample_to_sample() -> None:
    model = Model.from_proto(dynamic_dims(0))
    shapes = ({"batch": 2, "height": 8, "width": 6}, {"batch": 1, "height": 12, "width": 10})
    parts = [synthetic_samples(model.interface, seed=1, dims=d, shapes={}, bounds={}, count=2) for d in shapes]
    name = model.interface.inputs[0].name
    found = observe(model, [name], Samples.of([*parts[0], *parts[1]]))
    assert found.tensors[name].count == sum(feed[name].size for part in parts for feed in part)


def test_statistics_of_different_tensors_do_not_merge(model: Model, samples: Samples) -> None:
    with pytest.raises(ValueError, match="different tensors"):
        observe(model, ["stem"], samples).merged(observe(model, ["sum"], samples))
