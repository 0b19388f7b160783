"""Walk a model once, tie its channels together, and say which can be cut.

The walk goes in graph order: each operator's rule sets the axes of its outputs and ties those of its inputs. What
remains after all ties are the atoms of ``factors``; an atom that no operator, input or output holds on to is a
dependency group.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.channels.groups import Channels, collect
from graphopt.analysis.channels.op import Facts, Op, Unknown, Use
from graphopt.analysis.channels.table import READS_SIZES, RULES
from graphopt.analysis.channels.values import LIMIT, MOVES, Array, Dim, Value, elements, evaluate, lift, lower, move
from graphopt.model.domains import in_standard_domain
from graphopt.model.model import Model

_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "ReduceProd", "Transpose", "ConstantOfShape", "Range"}


def channel_groups(model: Model) -> Channels:
    """The dependency groups of a model, and why everything else stays whole. An analysis: use ``Analyses.get``."""
    facts = Facts(model)
    for spec in model.interface.inputs:
        _feed(facts, spec.name, spec.shape, f"it is an axis of the graph input {spec.name}")
    for spec in model.interface.overridable:
        _feed(facts, spec.name, spec.shape, f"{spec.name} can be overridden by a graph input")
    for node in model.editor.nodes():
        if node.op != "Constant":
            _bind_constants(facts, node)
            _link(facts, node)
    _freeze_ends(facts)
    return collect(facts)


def _feed(facts: Facts, name: str, shape: tuple[int | str | None, ...] | None, reason: str) -> None:
    if shape is None:
        return
    axes = [facts.atoms.new(size if isinstance(size, int) and size > 0 else None) for size in shape]
    for expr in axes:
        facts.atoms.freeze(expr, reason)
    facts.tensors[name] = axes


def _bind_constants(facts: Facts, node: gs.Node) -> None:
    """Give every use of a constant axes of its own: a weight that two nodes share is sliced for each by itself."""
    for index, tensor in enumerate(node.inputs):
        if tensor.is_empty():
            continue
        value = facts.model.editor.constant(tensor)
        if value is None:
            continue
        facts.uses[id(node), index] = Use(node, index, value, [facts.atoms.new(size) for size in value.shape])


def _link(facts: Facts, node: gs.Node) -> None:
    op = Op(facts, node)
    if _follow_value(op):
        return
    _guard_sizes(op)
    rule = RULES.get(node.op) if in_standard_domain(node) else None
    try:
        if rule is None:
            raise Unknown(_why_unknown(node))
        rule.link(op)
        _check_sizes(op)
    except Unknown as reason:
        _freeze_node(op, str(reason))


def _why_unknown(node: gs.Node) -> str:
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return "it is quantized already (Q/DQ)"
    name = node.op if in_standard_domain(node) else f"{node.domain}::{node.op}"
    return f"no rule for the operator {name}"


def _freeze_node(op: Op, reason: str) -> None:
    for index in range(len(op.node.inputs)):
        if op.has(index):
            known = op.use(index)
            axes = known.axes if known else op.facts.tensors.get(op.node.inputs[index].name, [])
            op.freeze_all(axes, reason)
    for index, tensor in enumerate(op.node.outputs):
        shape = None if tensor.is_empty() else op.out_shape(index)
        if shape is None:
            op.facts.tensors.pop(tensor.name, None)
            continue
        op.emit([op.fresh(axis, index, reason) for axis in range(len(shape))], index)


def _check_sizes(op: Op) -> None:
    """A rule that contradicts shape inference has misread the operator: better cut nothing."""
    for index, tensor in enumerate(op.node.outputs):
        axes = op.facts.tensors.get(tensor.name)
        shape = None if tensor.is_empty() else op.out_shape(index)
        if axes is None or shape is None:
            continue
        sizes = [op.size(expr) for expr in axes]
        known = [(a, b) for a, b in zip(sizes, shape, strict=False) if a is not None and isinstance(b, int)]
        if len(sizes) != len(shape) or any(a != b for a, b in known):
            raise Unknown(f"{op.where} has an unexpected shape")


def _follow_value(op: Op) -> bool:
    """Follow a small integer tensor instead of its axes; whether this operator is one that makes such a tensor."""
    node = op.node
    if len(node.outputs) != 1 or not in_standard_domain(node):
        return False
    result = _shape_value(op) if node.op == "Shape" else _computed_value(op)
    if result is None:
        return False
    op.facts.values[node.outputs[0].name] = result
    op.emit([op.fresh(axis) for axis in range(result.ndim)])
    return True


def _shape_value(op: Op) -> Value | None:
    try:
        axes = op.axes(0)
    except Unknown:
        return None
    start, end = op.attr("start", 0), op.attr("end", len(axes))
    out = np.empty(len(axes), object)
    for index, expr in enumerate(axes):
        out[index] = Dim(expr)
    return out[start:end]


def _computed_value(op: Op) -> Value | None:
    node = op.node
    if node.op not in MOVES and node.op not in _ARITHMETIC:
        return None
    values = [op.value(i) for i in range(len(node.inputs))]
    if node.op == "Cast" and op.attr("to") not in (6, 7):
        return None
    if not values or values[0] is None or any(v is not None and v.size > LIMIT for v in values):
        return None
    if any(v is None and op.has(i) for i, v in enumerate(values)):
        return None
    if node.op in MOVES:
        return move(node.op, values, node.attrs, op.atoms, op.facts.model.opset)
    return _arithmetic(op, values)


def _arithmetic(op: Op, values: list[Value | None]) -> Value | None:
    for value in values:
        _freeze_read(op, value)
    numbers: list[Array | None] = [None if v is None else lower(v, op.atoms) for v in values]
    if any(n is None and v is not None for n, v in zip(numbers, values, strict=True)):
        return None
    if op.node.op == "ConstantOfShape" and (numbers[0] is None or numbers[0].prod() > LIMIT):
        return None
    result = evaluate(op.node.op, numbers, op.node.attrs, op.facts.model.opset)
    if result is None or result.dtype.kind not in "iu":
        return None
    return lift(result)


def _guard_sizes(op: Op) -> None:
    """A size that is computed with, or goes where no rule follows it, must not change."""
    for index in range(len(op.node.inputs)):
        if op.has(index) and (op.node.op, index) not in READS_SIZES:
            _freeze_read(op, op.facts.values.get(op.node.inputs[index].name))


def _freeze_read(op: Op, value: Value | None) -> None:
    if value is None:
        return
    for element in elements(value):
        if isinstance(element, Dim):
            op.freeze(element.expr, f"{op.where} computes with its size")


def _freeze_ends(facts: Facts) -> None:
    """Graph outputs keep their shape; what a subgraph body reads from outside keeps its own."""
    model = facts.model
    for spec in model.interface.outputs:
        for expr in facts.tensors.get(spec.name, []):
            facts.atoms.freeze(expr, f"it feeds the graph output {spec.name}")
    top = {id(node) for node in model.editor.nodes()}
    for node, _ in model.editor.all_nodes():
        if id(node) in top:
            continue
        for tensor in node.inputs:
            for expr in facts.tensors.get(tensor.name, []):
                facts.atoms.freeze(expr, f"the body of an If, Loop or Scan reads {tensor.name}")
