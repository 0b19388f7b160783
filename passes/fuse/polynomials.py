"""A tensor as a polynomial of another one, however it is spelled: powers, products, sums, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.patterns import DEEPEST, near, producer, scalar
from graphopt.pipeline.rules import Scope

DEGREE = 3
"""Highest power read."""


@dataclass(frozen=True)
class Polynomial:
    """``coefficients[0] + coefficients[1] · x + …``.

    Attributes:
        coefficients: of the powers 0 to 3.
        nodes: the nodes that compute it, the last one first; a node used twice stands there twice.
    """

    coefficients: tuple[float, ...]
    nodes: tuple[gs.Node, ...] = ()

    def is_(self, *wanted: float) -> bool:
        """Whether these are its coefficients, zeros after the last left out."""
        padded = (*wanted, *[0.0] * (DEGREE + 1 - len(wanted)))
        return all(near(mine, other) for mine, other in zip(self.coefficients, padded, strict=True))


def polynomial(scope: Scope, tensor: gs.Tensor, x: gs.Tensor, steps: int = DEEPEST) -> Polynomial | None:
    """``tensor`` as a polynomial of ``x``, of degree 3 at most, or ``None``.

    Args:
        scope: the model.
        tensor: what to read.
        x: the variable.
        steps: how many nodes deep to read.
    """
    if tensor is x:
        return Polynomial((0.0, 1.0, 0.0, 0.0))
    node = producer(scope, tensor) if steps else None
    if node is None:
        return None
    if node.op == "Pow":
        exponent = scalar(scope, node, 1)
        base = polynomial(scope, node.inputs[0], x, steps - 1)
        return _power(node, base, exponent) if base is not None else None
    known = node.op in ("Add", "Sum", "Sub", "Mul", "Div") and len(node.inputs) == 2
    if not known or (node.op == "Div" and scalar(scope, node, 1) is None):
        return None
    left, right = (_operand(scope, node, index, x, steps - 1) for index in (0, 1))
    return None if left is None or right is None else _combined(node, left, right)


def _operand(scope: Scope, node: gs.Node, index: int, x: gs.Tensor, steps: int) -> Polynomial | None:
    number = scalar(scope, node, index)
    if number is not None:
        return Polynomial((number, 0.0, 0.0, 0.0))
    return polynomial(scope, node.inputs[index], x, steps)


def _power(node: gs.Node, base: Polynomial, exponent: float | None) -> Polynomial | None:
    if exponent not in (2.0, 3.0):
        return None
    result: Polynomial | None = base
    for _ in range(int(exponent) - 1):
        result = None if result is None else _product(result, base)
    return None if result is None else Polynomial(result.coefficients, (node, *base.nodes))


def _combined(node: gs.Node, left: Polynomial, right: Polynomial) -> Polynomial | None:
    nodes = (node, *left.nodes, *right.nodes)
    if node.op == "Mul":
        product = _product(left, right)
        return None if product is None else Polynomial(product.coefficients, nodes)
    if node.op == "Div":
        number = right.coefficients[0]
        return Polynomial(tuple(c / number for c in left.coefficients), nodes) if number else None
    sign = -1.0 if node.op == "Sub" else 1.0
    summed = tuple(a + sign * b for a, b in zip(left.coefficients, right.coefficients, strict=True))
    return Polynomial(summed, nodes)


def _product(left: Polynomial, right: Polynomial) -> Polynomial | None:
    whole = np.convolve(left.coefficients, right.coefficients)
    if whole[DEGREE + 1 :].any():
        return None
    return Polynomial(tuple(float(c) for c in whole[: DEGREE + 1]))
