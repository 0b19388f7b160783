"""Scales and shifts by constants, as the graph writes them: Mul, Add, Sub and Div with one constant operand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.rules import Array, Dims, Scope, fits_into

ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclass(frozen=True)
class Affine:
    """``y = scale · x + shift`` per channel; float64 vectors of one length."""

    scale: Array
    shift: Array

    def after(self, first: Affine) -> Affine:
        """This one applied to the result of ``first``."""
        return Affine(self.scale * first.scale, self.scale * first.shift + self.shift)


@dataclass(frozen=True)
class Arithmetic:
    """A node that computes ``scale · x + shift`` with constants.

    Attributes:
        node: a Mul, Add, Sub or Div.
        kept: index of the input that is not constant.
        constant: the other operand as it is, float32 or float64.
        scale: float64, 1 or of the constant's shape.
        shift: float64, 0 or of the constant's shape.
    """

    node: gs.Node
    kept: int
    constant: Array
    scale: Array
    shift: Array

    @property
    def x(self) -> gs.Tensor:
        """The operand that is not constant."""
        return self.node.inputs[self.kept]

    @property
    def scales(self) -> bool:
        """Whether it does more than shift."""
        return bool(np.any(self.scale != 1))

    @property
    def shifts(self) -> bool:
        """Whether it does more than scale."""
        return bool(np.any(self.shift != 0))

    def along(self, axis: int, channels: int, x_shape: Dims) -> Affine | None:
        """The same as vectors over the channels, or ``None`` where it differs within one or may widen x.

        Args:
            axis: of the channels, counted from the end: negative.
            channels: how many there are.
            x_shape: of x; unknown dimensions are ``None``.
        """
        if not fits_into(self.constant.shape, x_shape):
            return None
        scale = _vector(self.scale, axis, channels)
        shift = _vector(self.shift, axis, channels)
        return None if scale is None or shift is None else Affine(scale, shift)


def read_arithmetic(node: gs.Node, scope: Scope) -> Arithmetic | None:
    """The node as a scale and shift; ``None`` for c / x, for a zero divisor and for other types than float."""
    if node.op not in ARITHMETIC or not in_standard_domain(node) or scope.model.opset < 7:
        return None  # before opset 7, broadcasting was an attribute
    values = [scope.constant(node, index) for index in (0, 1)]
    if (values[0] is None) == (values[1] is None):
        return None
    kept = 0 if values[0] is None else 1
    constant = values[1 - kept]
    if constant is None or constant.dtype not in (np.float32, np.float64) or not np.isfinite(constant).all():
        return None
    found = _scale_and_shift(node.op, kept, constant.astype(np.float64))
    return None if found is None else Arithmetic(node, kept, constant, *found)


def _scale_and_shift(op: str, kept: int, value: Array) -> tuple[Array, Array] | None:
    one, zero = np.float64(1), np.float64(0)
    if op == "Mul":
        return value, np.asarray(zero)
    if op == "Add":
        return np.asarray(one), value
    if op == "Sub":
        return (np.asarray(one), -value) if kept == 0 else (np.asarray(-one), value)
    if kept == 1 or np.any(value == 0):
        return None
    return one / value, np.asarray(zero)


def _vector(value: Array, axis: int, channels: int) -> Array | None:
    if value.size == 1:
        return np.full(channels, value.reshape(-1)[0])
    if value.ndim < -axis or value.size != channels or value.shape[axis] != channels:
        return None
    return value.reshape(-1)
