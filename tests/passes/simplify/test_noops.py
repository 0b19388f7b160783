"""Rules `noop-cast`, `noop-view`, `noop-transpose`, `noop-pad`, `noop-slice` and `single-input`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphopt.testing.draft import Draft

from .harness import distance, simplified, unary


def _ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


NOTHING_DONE = {
    "cast to its own type": unary("Cast", to=TensorProto.FLOAT),
    "reshape to the same": unary("Reshape", _ints(2, 3)),
    "reshape with a dynamic batch": unary("Reshape", _ints(-1, 3), shape=("n", 3)),
    "reshape that copies": unary("Reshape", _ints(0, 0), shape=("n", "m")),
    "reshape that copies and infers": unary("Reshape", _ints(0, -1), shape=("n", "m")),
    "flatten of a matrix": unary("Flatten", axis=1),
    "squeeze of nothing": unary("Squeeze"),
    "expand to ones": unary("Expand", _ints(1), shape=("n", 3)),
    "expand to the same": unary("Expand", _ints(2, 3)),
    "tile once": unary("Tile", _ints(1, 1), shape=("n", 3)),
    "transpose in place": unary("Transpose", perm=[0, 1]),
    "transpose of a vector": unary("Transpose", shape=("n",)),
    "pad by nothing": unary("Pad", _ints(0, 0, 0, 0), mode="reflect"),
    "pad by nothing, opset 10": unary("Pad", opset=10, pads=[0, 0, 0, 0]),
    "slice to the end": unary("Slice", _ints(0), _ints(2**63 - 1), _ints(0), _ints(1), shape=("n", 3)),
    "slice to the end, tensorflow": unary("Slice", _ints(0, 0), _ints(2**31 - 1, 3), shape=("n", 3)),
    "slice from far before": unary("Slice", _ints(-9), _ints(9), _ints(-1)),
    "slice, opset 9": unary("Slice", opset=9, starts=[0], ends=[3], axes=[1]),
    "concat of one": unary("Concat", axis=0),
    "sum of one": unary("Sum"),
    "max of one": unary("Max"),
    "mean of one": unary("Mean"),
    "split into one": unary("Split", _ints(2)),
}

SOMETHING_DONE = {
    "cast to another type": unary("Cast", to=TensorProto.DOUBLE, result_dtype=TensorProto.DOUBLE),
    "reshape": unary("Reshape", _ints(3, 2), result=(3, 2)),
    "reshape of two unknowns": unary("Reshape", _ints(-1, 3), shape=("n", "m"), result=("k", 3)),
    "reshape to a number": unary("Reshape", _ints(2, 3), shape=("n", 3), result=(2, 3)),
    "reshape with zero as a size": unary("Reshape", _ints(0, 3), shape=("n", 3), result=(0, 3), allowzero=1),
    "reshape adds a dimension": unary("Reshape", _ints(-1, 3, 1), shape=("n", 3), result=("n", 3, 1)),
    "flatten": unary("Flatten", axis=0, result=(1, 6)),
    "squeeze": unary("Squeeze", shape=(1, 3), result=(3,)),
    "unsqueeze": unary("Unsqueeze", _ints(0), result=(1, 2, 3)),
    "expand adds a dimension": unary("Expand", _ints(1, 1, 1), shape=("n", 3), result=(1, "n", 3)),
    "expand to a number": unary("Expand", _ints(2, 3), shape=("n", 3), result=(2, 3)),
    "tile": unary("Tile", _ints(2, 1), result=(4, 3)),
    "transpose": unary("Transpose", perm=[1, 0], result=(3, 2)),
    "transpose by default": unary("Transpose", result=(3, 2)),
    "transpose of ones": unary("Transpose", shape=(1, 3), perm=[1, 0], result=(3, 1)),
    "pad": unary("Pad", _ints(0, 0, 1, 0), result=(3, 3)),
    "crop": unary("Pad", _ints(0, 0, -1, 0), result=(1, 3)),
    "slice": unary("Slice", _ints(1), _ints(9), result=(1, 3)),
    "slice short of the end": unary("Slice", _ints(0), _ints(-1), result=(1, 3)),
    "slice to a number": unary("Slice", _ints(0), _ints(1000), _ints(0), shape=("n", 3), result=("k", 3)),
    "slice backwards": unary("Slice", _ints(-1), _ints(-9), _ints(0), _ints(-1)),
    "slice by two": unary("Slice", _ints(0), _ints(9), _ints(0), _ints(2), result=(1, 3)),
}


@pytest.mark.parametrize("name", NOTHING_DONE)
def test_what_does_nothing_goes(name: str) -> None:
    done = simplified(NOTHING_DONE[name], exact_only=True)
    assert done.ops == ["Neg", "Neg"]
    assert distance(done, n=2, m=3) == 0


@pytest.mark.parametrize("name", SOMETHING_DONE)
def test_what_does_something_stays(name: str) -> None:
    done = simplified(SOMETHING_DONE[name])
    assert not done.result.modified


@pytest.mark.parametrize("name", ["cast to its own type", "pad by nothing", "concat of one"])
def test_with_both_ends_fixed_it_stays(name: str) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(NOTHING_DONE[name])
    tested = next(node for node in proto.graph.node if node.name == "tested")
    tested.input[0], tested.output[0] = "x", "y"
    del proto.graph.node[:]
    proto.graph.node.append(tested)
    assert not simplified(proto).result.modified


def test_equal_names_of_dimensions_prove_nothing() -> None:
    draft = Draft()
    x = draft.node("Neg", [draft.input("x", ["n", "m"])], "before")
    target = draft.node("Shape", [draft.input("like", ["n", "m"])], "target")
    draft.node("Neg", [draft.node("Reshape", [x, target], "middle")], "y")
    draft.output("y", ["n", "m"])
    assert "Reshape" in simplified(draft.model("names")).ops
