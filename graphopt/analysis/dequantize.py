"""Weights that stand behind DequantizeLinear, and which of them only save space: their layers compute in float."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.model.editor import GraphEditor
from graphopt.model.model import Model

MOVERS = frozenset({"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that hand a dequantized weight on as it is."""
INTEGERS = frozenset({"int2", "int4", "int8", "int16", "int32", "uint2", "uint4", "uint8", "uint16"})
FLOATS = frozenset({"float16", "float32", "bfloat16"})


def quantized_weights(model: Model) -> list[tuple[gs.Node, str]]:
    """The top-level DequantizeLinear nodes of constants.

    Returns:
        Each with the reason why its weight cannot be folded to float; empty: it can, and its layers compute in float.
    """
    nodes = model.editor.nodes()
    outer = frozenset(id(node) for node in nodes)
    found = [node for node in nodes if _dequantizes_a_constant(node, model.editor)]
    return [(node, _why_kept(node, model, outer)) for node in found]


def _dequantizes_a_constant(node: gs.Node, editor: GraphEditor) -> bool:
    standard = node.op == "DequantizeLinear" and in_standard_domain(node)
    return standard and editor.constant(node.inputs[0]) is not None


def _why_kept(node: gs.Node, model: Model, outer: frozenset[int]) -> str:
    """Why a weight stays quantized; empty: it can be folded. ``outer``: ``id`` of the top-level nodes."""
    editor = model.editor
    values = [None if t.is_empty() else editor.constant(t) for t in node.inputs]
    if any(value is None and not t.is_empty() for value, t in zip(values, node.inputs, strict=True)):
        return "its scale or zero point is not constant"
    weight, scale = values[0], values[1]
    if weight is None or scale is None or weight.dtype.name not in INTEGERS or scale.dtype.name not in FLOATS:
        return "its type has no exact float form here"
    if node.attrs.get("output_dtype", 0) and model.dtype_of(node.outputs[0]) != scale.dtype:
        return "its output has another type than its scale"
    output = node.outputs[0]
    if editor.is_output(output):
        return "it is a graph output"
    if any(id(reader) not in outer for reader in editor.consumers(output)):
        return "the body of an If, Loop or Scan reads it"
    return _integer_reader(output, editor)


def _integer_reader(tensor: gs.Tensor, editor: GraphEditor) -> str:
    """Which reader computes in integers; empty: none does."""
    for node in _readers(tensor, editor):
        others = [t for t in node.inputs if not t.is_empty() and _is_dequantized_activation(t, editor)]
        followers = [reader.op for output in node.outputs for reader in editor.consumers(output)]
        if others or "QuantizeLinear" in followers:
            return f"{node.name} computes in integers: its activations are quantized too"
    return ""


def _readers(tensor: gs.Tensor, editor: GraphEditor) -> Iterator[gs.Node]:
    """Nodes that read ``tensor``, also through nodes that only move it."""
    stack, seen = [tensor], set()
    while stack:
        for node in editor.consumers(stack.pop()):
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            if node.op in MOVERS:
                stack.extend(node.outputs)


def _is_dequantized_activation(tensor: gs.Tensor, editor: GraphEditor) -> bool:
    node = editor.producer(tensor)
    while node is not None and node.op in MOVERS:
        node = editor.producer(node.inputs[0])
    return node is not None and node.op == "DequantizeLinear" and editor.constant(node.inputs[0]) is None
