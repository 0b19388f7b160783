"""What each node costs: multiply-accumulates, parameters, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.model.model import Model


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node, a dimension known only at run time counted as 1.

    Attributes:
        name: node name.
        op: operator type.
        macs: multiply-accumulates of the operators that multiply matrices; 0 for all others.
        parameters: elements of its constant inputs.
        bytes: bytes of its constant inputs.
    """

    name: str
    op: str
    macs: int
    parameters: int
    bytes: int


def node_costs(model: Model) -> tuple[NodeCost, ...]:
    """Costs of all nodes, in graph order, those of bodies after the others.

    A weight that several nodes read counts for each. A body of If, Loop or Scan counts as run once; sizes that shape
    inference finds outside a body may stay open inside it. What local functions do inside is not counted.
    """
    found = []
    for node, _ in model.editor.all_nodes():
        constants = [c for t in node.inputs if (c := model.editor.constant(t)) is not None]
        count = _MACS.get(node.op)
        macs = count(model, node) if count is not None and in_standard_domain(node) else 0
        found.append(
            NodeCost(node.name, node.op, macs, sum(c.size for c in constants), sum(c.nbytes for c in constants))
        )
    return tuple(found)


def total_macs(model: Model) -> int:
    """Multiply-accumulates of the whole model, counted as in ``node_costs``."""
    return sum(cost.macs for cost in node_costs(model))


def _sizes(model: Model, tensor: gs.Tensor) -> list[int] | None:
    constant = model.editor.constant(tensor)
    shape = constant.shape if constant is not None else model.shape_of(tensor)
    return None if shape is None else [s if isinstance(s, int) and s > 0 else 1 for s in shape]


def _conv(model: Model, node: gs.Node) -> int:
    out, weight = _sizes(model, node.outputs[0]), _sizes(model, node.inputs[1])
    return math.prod(out) * math.prod(weight[1:]) if out and weight else 0


def _conv_transpose(model: Model, node: gs.Node) -> int:
    x, weight = _sizes(model, node.inputs[0]), _sizes(model, node.inputs[1])
    return math.prod(x) * math.prod(weight[1:]) if x and weight else 0


def _matmul(model: Model, node: gs.Node) -> int:
    out, left = _sizes(model, node.outputs[0]), _sizes(model, node.inputs[0])
    if out is None or not left:
        return 0
    inner = left[0] if node.op == "Gemm" and node.attrs.get("transA", 0) else left[-1]
    return math.prod(out) * inner


_MACS: dict[str, Callable[[Model, gs.Node], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _matmul,
    "MatMul": _matmul,
}
