"""Rule `compose-views`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.passes.fuse.views.compose_views import ComposeViews
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import distance, examples, rewritten

Step = tuple[str, Any]
"""An operator and its axis, axes or target shape."""


def _chain(
    shape: Sequence[int | str], *steps: Step, opset: int = 17, also: int | None = None, **attributes: Any
) -> onnx.ModelProto:
    """Neg → views → Neg; ``also``: the view whose result is read once more."""
    draft = Draft(opset=opset)
    x = draft.node("Neg", [draft.input("x", shape)], "before")
    for place, (op, value) in enumerate(steps):
        if op == "Flatten":
            x = draft.node(op, [x], f"v{place}", axis=value)
        elif value is None:
            x = draft.node(op, [x], f"v{place}")
        elif op != "Reshape" and opset < 13:
            x = draft.node(op, [x], f"v{place}", axes=value)
        else:
            x = draft.node(op, [x, draft.const(f"c{place}", np.array(value, np.int64))], f"v{place}", **attributes)
        if place == also:
            draft.node("Abs", [x], "z")
            draft.output("z", [None] * _rank(len(shape), steps[: place + 1]))
    draft.node("Neg", [x], "y")
    draft.output("y", [None] * _rank(len(shape), steps))
    return draft.model("views")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


def _rank(rank: int, steps: Sequence[Step]) -> int:
    for op, value in steps:
        if op == "Squeeze":
            rank -= len(value or [0])
        else:
            rank = {"Flatten": 2, "Reshape": _length(value), "Unsqueeze": rank + _length(value)}[op]
    return rank


N = "n"
ONE = {
    "numbers": (_chain([2, 3, 4], ("Reshape", [6, 4]), ("Reshape", [8, 3])), "Reshape"),
    "any batch": (_chain([N, 3, 4], ("Reshape", [-1, 4]), ("Reshape", [-1, 3, 4, 1])), "Reshape"),
    "copied dimension": (_chain([N, 3, 4], ("Reshape", [0, -1]), ("Reshape", [0, 2, 6])), "Reshape"),
    "copied and inferred": (_chain([N, "m", 4], ("Reshape", [0, -1]), ("Reshape", [0, 2, -1])), "Reshape"),
    "flatten, flatten": (_chain([N, 3, 4], ("Flatten", 1), ("Flatten", 1)), "Flatten"),
    "flatten of unsqueezed": (_chain([N, "m", 2], ("Unsqueeze", [1]), ("Flatten", 1)), "Flatten"),
    "flatten of a pooled map": (_chain([N, 3, 1, 1], ("Squeeze", [2, 3]), ("Unsqueeze", [1])), "Reshape"),
    "squeeze, squeeze": (_chain([N, 1, "m", 1], ("Squeeze", [1]), ("Squeeze", [2])), "Squeeze"),
    "squeeze from behind": (_chain([N, 1, "m", 1], ("Squeeze", [-1]), ("Squeeze", [-2])), "Squeeze"),
    "squeeze, opset 11": (_chain([N, 1, "m", 1], ("Squeeze", [1]), ("Squeeze", [2]), opset=11), "Squeeze"),
    "unsqueeze, unsqueeze": (_chain([N, "m"], ("Unsqueeze", [0]), ("Unsqueeze", [0, 2])), "Unsqueeze"),
    "unsqueeze from behind": (_chain([N, "m"], ("Unsqueeze", [-1]), ("Unsqueeze", [1])), "Unsqueeze"),
    "to a scalar": (_chain([1, 1], ("Squeeze", [0]), ("Squeeze", None)), "Reshape"),
    "from a vector": (_chain([N], ("Unsqueeze", [1]), ("Reshape", [-1, 1, 1])), "Reshape"),
}

NONE = {
    "there and back": _chain([N, 3, 4], ("Reshape", [0, 12]), ("Reshape", [0, 3, 4])),
    "by what is left": _chain([N, 3, 4], ("Reshape", [-1, 4]), ("Reshape", [-1, 3, 4])),
    "unsqueeze, squeeze": _chain([N, "m"], ("Unsqueeze", [1]), ("Squeeze", [1])),
    "squeeze, unsqueeze": _chain([N, 1, "m"], ("Squeeze", [1]), ("Unsqueeze", [1])),
    "flatten of an unsqueezed matrix": _chain([N, "m"], ("Unsqueeze", [1]), ("Flatten", 1)),
    "flatten of a matrix, folded out": _chain([N, 6], ("Reshape", [0, 2, 3]), ("Flatten", 1)),
}

TWO = {
    "two dynamic dimensions, moved": _chain([N, "m"], ("Unsqueeze", [0]), ("Reshape", [1, 0, -1, 1])),
    "0 is a size": _chain([0, 3], ("Reshape", [3, 0]), ("Reshape", [0, 2]), allowzero=1),
}


@pytest.mark.parametrize("name", ONE)
def test_two_become_one(name: str) -> None:
    proto, left = ONE[name]
    done = rewritten(proto, ComposeViews)
    assert done.ops == ["Neg", left, "Neg"]
    assert distance(done, n=2, m=6) == 0


@pytest.mark.parametrize("name", NONE)
def test_two_that_cancel_go(name: str) -> None:
    done = rewritten(NONE[name], ComposeViews)
    assert done.ops == ["Neg", "Neg"]
    assert distance(done, n=2, m=6) == 0


@pytest.mark.parametrize("name", TWO)
def test_what_is_not_proven_stays(name: str) -> None:
    assert not rewritten(TWO[name], ComposeViews).sites


def test_a_dimension_of_size_zero_is_not_taken_from_a_model_that_allowed_it() -> None:
    done = rewritten(_chain([N, "m"], ("Unsqueeze", [2]), ("Reshape", [0, 0, 1, 1])), ComposeViews)
    assert done.ops == ["Neg", "Reshape", "Neg"]
    assert distance(done, {"x": np.zeros((0, 5), np.float32)}) == 0
    done = rewritten(_chain([N, "m", 1], ("Flatten", 2), ("Unsqueeze", [1])), ComposeViews)
    assert distance(done, {"x": np.zeros((0, 5, 1), np.float32)}) == 0


def test_a_computed_target_stays() -> None:
    draft = Draft()
    inner = draft.node("Flatten", [draft.input("x", [N, 3, 4])], "inner")
    draft.node("Reshape", [inner, draft.input("shape", [2], TensorProto.INT64)], "y")
    draft.output("y", [None, None])
    assert not rewritten(draft.model("computed"), ComposeViews).sites


def test_the_inner_result_is_kept_for_others() -> None:
    done = rewritten(_chain([2, 3, 4], ("Reshape", [6, 4]), ("Reshape", [8, 3]), also=0), ComposeViews)
    assert done.reasons("compose-views") == ["the output of v0/Reshape has another user or is a graph output"]
    done = rewritten(_chain([2, 3, 4], ("Reshape", [6, 4]), ("Reshape", [2, 3, 4]), also=0), ComposeViews)
    assert done.ops == ["Neg", "Reshape", "Abs", "Neg"]
    assert distance(done) == 0


def test_an_inner_graph_output_is_kept() -> None:
    proto = _chain([2, 3, 4], ("Reshape", [6, 4]), ("Reshape", [8, 3]))
    proto.graph.output.append(helper.make_tensor_value_info("v0", TensorProto.FLOAT, [6, 4]))
    assert not rewritten(proto, ComposeViews).sites


def test_between_graph_input_and_output_one_is_left() -> None:
    draft = Draft()
    x = draft.node("Unsqueeze", [draft.input("x", [2, 3]), draft.const("first", np.array([0], np.int64))], "inner")
    draft.node("Squeeze", [x, draft.const("again", np.array([0], np.int64))], "y")
    draft.output("y", [2, 3])
    done = rewritten(draft.model("ends"), ComposeViews)
    assert done.ops == ["Reshape"]
    assert distance(done) == 0


@st.composite
def _models(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, int]]:
    names = {"n": draw(st.integers(1, 3)), "m": draw(st.integers(1, 3))}
    sizes = [names["n"], 2, names["m"], 1]
    shape: list[int | str] = ["n", 2, "m", 1]
    current = list(sizes)
    steps: list[Step] = []
    for _ in range(draw(st.integers(2, 4))):
        step, current = draw(_steps(current))
        steps.append(step)
    opset = draw(st.sampled_from([11, 13, 17, 21]))
    also = draw(st.sampled_from([None, None, None, 0]))
    return _chain(shape, *steps, opset=opset, also=also), names


@st.composite
def _steps(draw: st.DrawFn, sizes: list[int]) -> tuple[Step, list[int]]:
    """One view that fits ``sizes``, and the sizes after it."""
    op = draw(st.sampled_from(["Reshape", "Reshape", "Flatten", "Squeeze", "Unsqueeze"]))
    ones = [axis for axis, size in enumerate(sizes) if size == 1]
    if op == "Flatten":
        axis = draw(st.integers(0, len(sizes)))
        return (op, axis), [int(np.prod(sizes[:axis])), int(np.prod(sizes[axis:]))]
    if op == "Squeeze" and ones:
        gone = draw(st.sampled_from(ones))
        return (op, [gone]), [size for axis, size in enumerate(sizes) if axis != gone]
    if op == "Unsqueeze":
        new = draw(st.integers(0, len(sizes)))
        return (op, [new]), [*sizes[:new], 1, *sizes[new:]]
    return draw(_reshapes(sizes))


@st.composite
def _reshapes(draw: st.DrawFn, sizes: list[int]) -> tuple[Step, list[int]]:
    total = int(np.prod(sizes))
    kept = draw(st.integers(0, len(sizes)))
    head = sizes[:kept]
    left = total // int(np.prod(head))
    first = draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
    result = [*head, first, left // first]
    target = [0 if draw(st.booleans()) else size for size in head] + result[kept:]
    if draw(st.booleans()):
        target[draw(st.integers(0, len(target) - 1))] = -1
    return ("Reshape", target), result


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(_models())
def test_random_chains(case: tuple[onnx.ModelProto, dict[str, int]]) -> None:
    proto, names = case
    assert distance(rewritten(proto, ComposeViews), **names) == 0
