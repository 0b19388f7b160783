"""Time per node of the optimized graph."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.data.synthetic import synthetic_samples
from graphopt.errors import RuntimeFailure
from graphopt.model.model import Model
from graphopt.runtime.kernels import ProfilerCost, Recording, profiler_cost, record, typical
from graphopt.runtime.labels import label
from graphopt.runtime.optimized import optimized_nodes
from graphopt.runtime.target import Target
from graphopt.testing.builders import residual
from graphopt.testing.draft import Draft
from graphopt.testing.formats import if_capturing_weight


def test_every_node_that_runs_is_timed_once_in_the_order_of_the_graph() -> None:
    model = Model.from_proto(residual(0))
    feeds = list(synthetic_samples(model.interface, seed=0, dims={}, shapes={}, bounds={}, count=2))
    labelled = label(model)
    found = record(labelled.skeleton, feeds, target=Target(), runs=4)
    names = [kernel.node.name for kernel in found.kernels]
    assert sorted(names) == sorted(node.name for node in optimized_nodes(labelled.skeleton))
    assert found.total_ms == pytest.approx(sum(kernel.milliseconds for kernel in found.kernels))
    assert found.total_ms > 0
    assert found.session_ms > 0
    assert (found.clock, found.runs) == ("thread-cpu", 6)


def test_several_threads_are_timed_by_the_wall_clock_and_lose_nothing() -> None:
    model = Model.from_proto(residual(0))
    feeds = list(synthetic_samples(model.interface, seed=0, dims={}, shapes={}, bounds={}, count=1))
    found = record(label(model).skeleton, feeds, target=Target(threads=2), runs=3)
    assert (found.clock, found.lost_ms) == ("wall", 0.0)


def test_what_runs_inside_a_body_counts_once_in_the_node_that_holds_it() -> None:
    model = Model.from_proto(if_capturing_weight(0))
    feeds = list(synthetic_samples(model.interface, seed=0, dims={}, shapes={}, bounds={}, count=1))
    found = record(label(model).skeleton, feeds, target=Target(), runs=3)
    top_level = {node.name for node in optimized_nodes(label(model).skeleton)}
    assert {kernel.node.name for kernel in found.kernels} <= top_level
    assert len({kernel.node.name for kernel in found.kernels}) == len(found.kernels)
    assert not any(kernel.node.name.startswith("body") for kernel in found.kernels)
    assert found.inner >= 1


def test_without_the_session_beside_it_only_nodes_are_timed() -> None:
    model = Model.from_proto(residual(0))
    feeds = list(synthetic_samples(model.interface, seed=0, dims={}, shapes={}, bounds={}, count=1))
    assert record(label(model).skeleton, feeds, target=Target(), runs=3, beside=False).session_ms == 0.0


def test_a_model_that_fails_is_an_error() -> None:
    draft = Draft()
    draft.input("x", ["N"])
    draft.const("shape", np.array([2, 2], np.int64))
    draft.node("Reshape", ["x", "shape"], "y")
    draft.output("y", [2, 2])
    skeleton = label(Model.from_proto(draft.model("fails"))).skeleton
    with pytest.raises(RuntimeFailure, match="Reshape"):
        record(skeleton, [{"x": np.ones(5, np.float32)}], target=Target(), runs=3)


def test_the_densest_third_ignores_bursts_that_hit_most_runs() -> None:
    assert typical([5.0, 5.1, 5.2, 9.0, 14.0, 30.0, 55.0]) == pytest.approx(5.1)
    assert typical([3.0, 9.0, 9.0, 9.0, 20.0]) == 9.0
    assert typical([7.0]) == 7.0
    assert typical([]) == 0.0


def test_a_mean_is_finer_than_the_clock() -> None:
    assert typical([12.0] * 6 + [13.0] * 4, 1.0) == pytest.approx(12.4)
    assert typical([12.0] * 6 + [13.0] * 4 + [40.0] * 5, 1.0) == pytest.approx(12.4)


def test_the_profilers_own_work_is_measured() -> None:
    cost = profiler_cost()
    assert 0.0 <= cost.counted < 1.0
    assert 0.0 <= cost.whole < 1.0


def test_nodes_in_bodies_cost_the_profiler_as_well() -> None:
    recording = Recording((), 0.0, "thread-cpu", 0.0, inner=3.0, lost_ms=0.0, runs=1)
    assert ProfilerCost(counted=0.004, whole=0.01).share_of(recording) == pytest.approx(0.03)
