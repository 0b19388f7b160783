"""Formulas of float32 operators, written as calls, as one-input models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from graphopt.testing.draft import Draft

Operand = str | float | np.ndarray


class Sketch(Draft):
    """A Draft whose nodes name themselves and take numbers and arrays as constants.

    Args:
        opset: version of the default operator set.
        number_shape: shape of the constants that numbers become.
    """

    def __init__(self, opset: int = 17, number_shape: tuple[int, ...] = ()) -> None:
        super().__init__(0, opset=opset)
        self.number_shape = number_shape
        self.count = 0

    def op(self, op: str, *operands: Operand, **attributes: Any) -> str:
        """A node; the name of its output."""
        self.count += 1
        return self.node(op, [self.operand(x) for x in operands], f"t{self.count}", **attributes)

    def operand(self, value: Operand) -> str:
        """The name of a tensor; a number or array becomes an initializer."""
        if isinstance(value, str):
            return value
        self.count += 1
        if isinstance(value, float):
            return self.const(f"c{self.count}", np.full(self.number_shape, value, np.float32))
        return self.const(f"c{self.count}", value)

    def clip(self, x: str, low: float, high: float) -> str:
        """Clip as the operator set spells it: bounds as attributes up to opset 10."""
        if self.opset < 11:
            return self.op("Clip", x, min=low, max=high)
        bounds = [self.const(f"bound{self.count}_{i}", np.float32(v)) for i, v in enumerate((low, high))]
        return self.op("Clip", x, *bounds)


Formula = Callable[[Sketch, str], str]


def formula_model(
    formula: Formula,
    *,
    opset: int = 17,
    shape: Sequence[int | str] = (2, 3, 4, 5),
    number_shape: tuple[int, ...] = (),
    result: Sequence[int | str] | None = None,
    dtype: int = onnx.TensorProto.FLOAT,
    also: Sequence[str] = (),
    last: bool = False,
) -> onnx.ModelProto:
    """``y = -formula(3 · x)``: x is computed, and the formula ends inside the graph, as in real models.

    Args:
        formula: adds nodes to a sketch and gives the name of its result.
        opset: version of the default operator set.
        shape: shape of the input.
        number_shape: shape of the constants that numbers become.
        result: shape of the output; the input's when ``None``.
        dtype: type of the tensors.
        last: whether the formula's own result is the output, without the Neg behind it.
        also: op types; the output of the first node of each is a graph output too, of the input's shape.
    """
    sketch = Sketch(opset, number_shape)
    numpy_type = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    start = sketch.op("Mul", sketch.input("x", shape, dtype), np.asarray(3, numpy_type))
    found = formula(sketch, start)
    if last:
        sketch.nodes[-1].output[0] = "y"
    else:
        sketch.node("Neg", [found], "y")
    sketch.output("y", shape if result is None else result, dtype)
    for op in also:
        inner = next(node.output[0] for node in sketch.nodes if node.op_type == op)
        sketch.output(inner, shape, dtype)
    return sketch.model("formula")
