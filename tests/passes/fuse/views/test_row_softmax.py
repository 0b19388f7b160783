"""Rule `row-softmax`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.fuse.views.row_softmax import RowSoftmax
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import distance, examples, rewritten
from tests.passes.fuse.layers import finished

SHAPE: tuple[int | str, ...] = ("n", 3, "w", 5)


def viewed(
    op: str = "Softmax",
    shape: tuple[int | str, ...] = SHAPE,
    *,
    axis: int | None = None,
    along: int = -1,
    target: list[int] | None = None,
    opset: int = 17,
    also: str = "",
) -> onnx.ModelProto:
    """Flatten, softmax, and back to the shape of x, or to ``target``."""
    draft = Draft(opset=opset)
    x = draft.node("Neg", [draft.input("x", shape)], "before")
    flat = draft.node("Flatten", [x], "flat", axis=len(shape) - 1 if axis is None else axis, name="flatten")
    rows = draft.node(op, [flat], "rows", axis=along, name="softmax")
    back = draft.const("target", np.array(target)) if target else draft.node("Shape", [x], "shape")
    y = draft.node("Reshape", [rows, back], "y")
    others = [draft.node("Neg", [also], "also")] if also else []
    return finished(draft, y, *others)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("axis", "along"), [(3, -1), (3, 1), (-1, -1)])
def test_the_views_go(op: str, axis: int, along: int) -> None:
    done = rewritten(viewed(op, axis=axis, along=along), RowSoftmax)
    assert done.ops == ["Neg", op]
    assert done.rules == {"row-softmax": 1}
    assert distance(done, n=2, w=4) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"axis": 2},
        {"along": 0},
        {"opset": 11, "along": 1, "shape": (2, 3, 4, 5), "target": [2, 3, 4, 5]},
        {"target": [-1, 3, 4, 5]},
        {"shape": (2, 3, 4, 5), "target": [2, 4, 3, 5]},
        {"shape": (2, 3, 4, 5), "target": [24, 5]},
    ],
)
def test_near_misses_stay(options: dict[str, Any]) -> None:
    assert not rewritten(viewed(**options), RowSoftmax).sites


@pytest.mark.parametrize(("also", "node"), [("flat", "flatten"), ("rows", "softmax")])
def test_inner_tensors_with_another_user_stay_with_a_reason(also: str, node: str) -> None:
    done = rewritten(viewed(also=also), RowSoftmax)
    assert not done.sites
    assert done.reasons("row-softmax") == [f"the output of {node} has another user or is a graph output"]


def test_dimensions_of_one_name_need_not_be_equal() -> None:
    draft = Draft()
    x = draft.input("x", ("d", "d", 5))
    sizes = draft.node("Shape", [x], "sizes")
    turned = draft.node("Gather", [sizes, draft.const("order", np.array([1, 0, 2]))], "turned", axis=0)
    rows = draft.node("Softmax", [draft.node("Flatten", [x], "flat", axis=2)], "rows", axis=-1)
    draft.node("Reshape", [rows, turned], "y")
    draft.output("y", ("d", "d", 5))
    done = rewritten(draft.model("names"), RowSoftmax)
    assert not done.sites
    assert distance(done, {"x": np.ones((2, 3, 5), np.float32)}) == 0


def test_the_shape_of_another_input_with_the_same_names_is_not_that_of_x() -> None:
    draft = Draft()
    x, z = draft.input("x", ("a", "b", 5)), draft.input("z", ("a", "b", 5))
    rows = draft.node("Softmax", [draft.node("Flatten", [x], "flat", axis=2)], "rows", axis=-1)
    draft.node("Reshape", [rows, draft.node("Shape", [z], "sizes")], "y")
    draft.output("y", ("a", "b", 5))
    done = rewritten(draft.model("names"), RowSoftmax)
    assert not done.sites
    assert distance(done, {"x": np.ones((2, 3, 5), np.float32), "z": np.ones((3, 2, 5), np.float32)}) == 0


def test_equal_numbers_are_enough() -> None:
    done = rewritten(viewed(shape=(2, 3, 4, 5), target=[2, 3, 4, 5]), RowSoftmax)
    assert done.ops == ["Neg", "Softmax"]
    assert distance(done) == 0


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, "n"]), min_size=1, max_size=4),
    axis=st.integers(0, 4),
    along=st.sampled_from([-1, 0, 1]),
    op=st.sampled_from(["Softmax", "LogSoftmax"]),
)
def test_random_graphs_are_computed_alike(shape: list[int | str], axis: int, along: int, op: str) -> None:
    done = rewritten(viewed(op, tuple(shape), axis=min(axis, len(shape)), along=along), RowSoftmax)
    assert bool(done.sites) == (axis == len(shape) - 1 and along != 0)
    assert distance(done, n=2) <= 1e-6
