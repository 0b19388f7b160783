"""Time per node."""

from __future__ import annotations

from graphopt.data.synthetic import synthetic_samples
from graphopt.model.model import Model
from graphopt.runtime.profile import profile
from graphopt.runtime.target import Target
from graphopt.testing.builders import residual
from graphopt.testing.formats import if_capturing_weight


def test_every_convolution_is_found_under_its_own_output() -> None:
    model = Model.from_proto(residual(0))
    feed = synthetic_samples(model.interface, seed=0, dims={}, shapes={}, bounds={}, count=1)[0]
    found = profile(model, feed, target=Target(), runs=3)
    convolutions = [n for n in model.editor.nodes() if n.op == "Conv"]
    taken_in = {n.outputs[0].name for n in model.editor.nodes()}
    assert set(found.nodes) <= taken_in
    assert sum("Conv" in time.op for time in found.nodes.values()) == len(convolutions)
    assert 0 < sum(time.milliseconds for time in found.nodes.values()) <= found.total * 1.001


def test_names_inside_bodies_are_kept_consistent() -> None:
    model = Model.from_proto(if_capturing_weight(0))
    feed = synthetic_samples(model.interface, seed=0, dims={}, shapes={}, bounds={}, count=1)[0]
    assert profile(model, feed, target=Target(), runs=2).total > 0
