"""What the two spellings of Gelu share: half of x times one plus a curve of x."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.passes.fuse.patterns import near, pairs, producer, ramps
from graphopt.passes.fuse.polynomials import Polynomial, polynomial
from graphopt.pipeline.rules import Scope


@dataclass(frozen=True)
class GeluForm:
    """``x / 2 · (1 + curve(inner))``.

    Attributes:
        x: the tensor.
        inner: the curve's argument as a polynomial of x.
        gate: the number that the sum ``1 + curve`` is multiplied by before it meets x.
        nodes: all nodes of the form, the last one first.
    """

    x: gs.Tensor
    inner: Polynomial
    gate: float
    nodes: tuple[gs.Node, ...]


def gelu_forms(scope: Scope, node: gs.Node, curve: str) -> Iterator[GeluForm]:
    """Every reading of a node's output as ``x / 2 · (1 + curve(polynomial of x))``.

    Args:
        scope: the model.
        node: the last node.
        curve: op type of the curve: Erf or Tanh.
    """
    for product, x, gate in pairs(scope, node.outputs[0]):
        for ramp in ramps(scope, gate):
            curved = producer(scope, ramp.tensor)
            if curved is None or curved.op != curve or not ramp.affine or not near(ramp.scale, ramp.shift):
                continue
            inner = polynomial(scope, curved.inputs[0], x)
            if inner is not None and near(product.scale * ramp.scale, 0.5):
                nodes = (*product.nodes, *ramp.nodes, curved, *inner.nodes)
                yield GeluForm(x, inner, ramp.scale, nodes)
