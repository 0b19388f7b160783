"""Normalisations as exporters write them, for the tests of the rules that recognise them."""

from __future__ import annotations

import numpy as np

from graphopt.model.weights import Array
from tests.passes.fuse.sketch import Sketch

SQUARES = ("Pow", "Mul")
QUOTIENTS = ("Div", "Reciprocal", "1 / x", "power")


def some(*shape: int, seed: int = 1) -> Array:
    """Parameters around one."""
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def mean(s: Sketch, x: str, axes: tuple[int, ...] = (-1,), keepdims: int = 1) -> str:
    """ReduceMean, as the operator set of the sketch spells it."""
    if s.opset < 18:
        return s.op("ReduceMean", x, axes=list(axes), keepdims=keepdims)
    return s.op("ReduceMean", x, np.array(axes, np.int64), keepdims=keepdims)


def squared(s: Sketch, x: str, how: str = "Pow") -> str:
    """The square of a tensor."""
    return s.op("Pow", x, 2.0) if how == "Pow" else s.op("Mul", x, x)


def divided(s: Sketch, x: str, variance: str, how: str = "Div") -> str:
    """A tensor over the root of another."""
    if how == "Div":
        return s.op("Div", x, s.op("Sqrt", variance))
    return s.op("Mul", x, inverse(s, variance, how))


def inverse(s: Sketch, variance: str, how: str = "Reciprocal") -> str:
    """One over the root of a tensor."""
    if how == "power":
        return s.op("Pow", variance, -0.5)
    root = s.op("Sqrt", variance)
    return s.op("Reciprocal", root) if how == "Reciprocal" else s.op("Div", 1.0, root)


def normed(
    s: Sketch,
    x: str,
    axes: tuple[int, ...] = (-1,),
    *,
    square: str = "Pow",
    quotient: str = "Div",
    epsilon: float = 1e-5,
    twice: bool = False,
) -> str:
    """x less its mean over its standard deviation."""
    difference = s.op("Sub", x, mean(s, x, axes))
    other = s.op("Sub", x, mean(s, x, axes)) if twice else difference
    variance = s.op("Add", mean(s, squared(s, other, square), axes), epsilon)
    return divided(s, difference, variance, quotient)


def multiplied_out(s: Sketch, x: str, scale: Array | None, shift: Array, epsilon: float = 1e-3) -> str:
    """Layer normalisation as TensorFlow's batch_normalization writes it."""
    centre = mean(s, x)
    difference = s.op("Sub", x, centre)
    factor = inverse(s, s.op("Add", mean(s, s.op("Mul", difference, difference)), epsilon))
    if scale is not None:
        factor = s.op("Mul", factor, scale)
    return s.op("Add", s.op("Mul", x, factor), s.op("Sub", shift, s.op("Mul", centre, factor)))


def affine(s: Sketch, x: str, scale: Array | None, shift: Array | None, swap: bool = False) -> str:
    """A tensor times a scale plus a shift."""
    if scale is not None:
        x = s.op("Mul", *((scale, x) if swap else (x, scale)))
    if shift is not None:
        x = s.op("Add", *((shift, x) if swap else (x, shift)))
    return x


def rms(
    s: Sketch,
    x: str,
    *,
    square: str = "Pow",
    quotient: str = "Div",
    epsilon: float = 1e-6,
    axes: tuple[int, ...] = (-1,),
) -> str:
    """x over the root of its mean square."""
    return divided(s, x, s.op("Add", mean(s, squared(s, x, square), axes), epsilon), quotient)
