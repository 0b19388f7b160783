"""Sorting keeps what is valid; dead code goes in linear time; nothing recurses."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.model.algorithms import CycleError, remove_dead_code, stable_order
from graphopt.model.model import Model

from .probes import model_of, relu, value, with_nested_bodies


@st.composite
def acyclic(draw: st.DrawFn) -> list[list[int]]:
    """Dependencies of n items under a hidden order, items then shuffled."""
    count = draw(st.integers(1, 12))
    names = draw(st.permutations(range(count)))
    edges: list[list[int]] = [[] for _ in range(count)]
    for later in range(count):
        for earlier in draw(st.sets(st.integers(0, max(later - 1, 0)), max_size=3)) if later else []:
            edges[names[later]].append(names[earlier])
    return edges


@given(acyclic())
@settings(max_examples=100, deadline=None)
def test_the_order_is_a_valid_permutation_and_stable(needs: list[list[int]]) -> None:
    order = stable_order(len(needs), lambda i: needs[i])
    place = {item: at for at, item in enumerate(order)}
    assert sorted(order) == list(range(len(needs)))
    assert all(place[need] < place[item] for item, others in enumerate(needs) for need in others)
    renamed = [[place[n] for n in needs[item]] for item in order]
    assert stable_order(len(needs), lambda i: renamed[i]) == list(range(len(needs)))


def test_a_late_item_goes_just_before_the_first_that_needs_it() -> None:
    needs = [[], [4], [], [], []]
    assert stable_order(5, lambda i: needs[i]) == [0, 4, 1, 2, 3]


def test_a_circle_is_told() -> None:
    needs = [[], [3], [1], [2]]
    with pytest.raises(CycleError) as caught:
        stable_order(4, lambda i: needs[i])
    path = caught.value.path
    assert path[0] == path[-1] and set(path) == {1, 2, 3}
    assert all(before in needs[after] for before, after in itertools.pairwise(path))


def test_a_reversed_chain_of_thousands_needs_no_deep_stack() -> None:
    count = 3000
    nodes = [relu(f"t{i}", f"t{i + 1}") for i in reversed(range(count))]
    model = Model.from_proto(model_of(nodes, [value("t0")], [value(f"t{count}")]))
    assert [n.inputs[0].name for n in model.editor.nodes()] == [f"t{i}" for i in range(count)]


def test_dead_code_goes_and_takes_its_initializers_along() -> None:
    shared = numpy_helper.from_array(np.float32(1), "shared")
    own = numpy_helper.from_array(np.float32(2), "own")
    nodes = [
        helper.make_node("Add", ["x", "shared"], ["y"]),
        helper.make_node("Mul", ["x", "own"], ["d1"]),
        helper.make_node("Mul", ["d1", "shared"], ["d2"]),
    ]
    model = Model.from_proto(model_of(nodes, initializer=[shared, own]))
    assert model.clone().editor.remove_dead_code() == 2
    model.editor.set_attr(model.editor.nodes()[0], "touched", None)
    model.metadata["edited"] = "1"
    notes = model.finish()
    assert [n.op_type for n in model.to_proto().graph.node] == ["Add"]
    assert [t.name for t in model.to_proto().graph.initializer] == ["shared"]
    assert any("own" in note for note in notes)
    weight = model.editor.tensor("shared")
    assert weight is not None and len(weight.outputs) == 1


def test_dead_code_inside_bodies_goes_and_what_bodies_capture_stays() -> None:
    source = with_nested_bodies()
    body = source.graph.node[1].attribute[0].g
    body.node.extend([relu("c", "unused")])
    model = Model.from_proto(source)
    removed = remove_dead_code(model.graph)
    assert removed == 1
    assert [n.op for n in model.editor.nodes()] == ["Relu", "Loop"]


def test_an_unused_loop_goes_with_everything_only_it_needs() -> None:
    source = with_nested_bodies()
    source.graph.node.extend([relu("x", "z")])
    del source.graph.output[:]
    source.graph.output.extend([value("z")])
    model = Model.from_proto(source)
    assert model.editor.remove_dead_code() == 2 + 4  # and the four of its bodies
    model.finish()
    assert [n.op for n in model.editor.nodes()] == ["Relu"]
    assert not model.to_proto().graph.initializer


def test_half_of_a_large_graph_with_one_shared_weight_is_removed() -> None:
    count = 4000
    scale = numpy_helper.from_array(np.float32(1), "s")
    live = [helper.make_node("Mul", [f"t{i}", "s"], [f"t{i + 1}"]) for i in range(count)]
    dead = [helper.make_node("Mul", ["t0", "s"], [f"d{i}"]) for i in range(count)]
    model = Model.from_proto(model_of([*live, *dead], [value("t0")], [value(f"t{count}")], initializer=[scale]))
    assert model.editor.remove_dead_code() == count
    shared = model.editor.tensor("s")
    assert shared is not None and len(shared.outputs) == count
    onnx.checker.check_model(model.to_proto())
