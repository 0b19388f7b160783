"""Models with shape arithmetic, for the rules on shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.passes.fuse.shapes.constant_shapes import ConstantShapes
from graphopt.passes.fuse.shapes.reshape_targets import ReshapeTargets
from graphopt.passes.fuse.shapes.shared_shapes import SharedShapes
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import Done, distance

ALL = (ConstantShapes, ReshapeTargets, SharedShapes)

INT64 = TensorProto.INT64


class Shapes(Draft):
    """A draft with a shorthand for shape arithmetic."""

    count = 0

    def ints(self, *values: int) -> str:
        """A constant vector."""
        self.count += 1
        return self.const(f"k{self.count}", np.array(values, np.int64))

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node under a fresh name."""
        self.count += 1
        return self.node(op, list(inputs), f"{op.lower()}{self.count}", **attributes)

    def dim(self, tensor: str, axis: int) -> str:
        """One dimension, as a vector of one."""
        return self.op("Gather", self.op("Shape", tensor), self.ints(axis), axis=0)

    def shape(self, *parts: str) -> str:
        """A vector of all parts."""
        return self.op("Concat", *parts, axis=0)


def agree(done: Done, *sizes: dict[str, int]) -> bool:
    return all(distance(done, **size) == 0 for size in sizes)


@st.composite
def shape_models(draw: st.DrawFn) -> onnx.ModelProto:
    draft = Shapes(opset=draw(st.sampled_from([13, 17, 21])))
    x, other = draft.input("x", ["n", "m", 4, 3]), draft.input("other", ["n", "m"])
    same = draft.op("Neg", x)
    joined = draft.op("Add", draft.op("ReduceSum", x, draft.ints(2, 3), keepdims=0), other)
    parts = [draft.dim(t, k) for t, k in ((x, 0), (x, 1), (same, 0), (same, 2), (other, 1), (joined, 0))]
    for _ in range(draw(st.integers(1, 7))):
        op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min", "Cast", "Pick", "Where", "Mod"]))
        a, b = draw(st.sampled_from(parts)), draw(st.sampled_from(parts))
        if op == "Cast":
            narrow = draft.op("Cast", a, to=TensorProto.INT32)
            parts.append(draft.op("Cast", narrow, to=INT64))
        elif op == "Pick":
            place = draw(st.integers(-2, 1))
            parts.append(draft.op("Gather", draft.shape(a, b), draft.ints(place), axis=0))
        elif op == "Where":
            minus = draft.ints(draw(st.sampled_from([-1, 2])))
            parts.append(draft.op("Where", draft.op("Equal", a, minus), b, a))
        elif op in ("Div", "Mod"):
            parts.append(draft.op(op, a, draw(st.sampled_from([*parts[:6], draft.ints(2)]))))
        else:
            parts.append(draft.op(op, a, b))
    draft.node("Reshape", [same, draft.shape(parts[2], parts[1], draft.ints(-1))], "y")
    draft.node("Identity", [draft.shape(*parts)], "z")
    draft.output("y", [None] * 3)
    draft.output("z", [len(parts)], INT64)
    return draft.model("random")
