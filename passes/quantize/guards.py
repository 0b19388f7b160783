"""Keeps float what the plan says is float.

onnxruntime quantizes a Conv, ConvTranspose or Gemm with float weights by itself, per tensor, when its input is read
back from codes and its output goes to nothing but a QuantizeLinear; and it fuses a Softmax there into a kernel seven
times slower than the float one. ``Max(y, lowest float32)`` before that QuantizeLinear changes no value and prevents it.
The same no-op keeps apart what must not meet on loading: see ``shield_captures``.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.model import Model

_HELD_BACK = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Softmax"})
_SWALLOWED = frozenset({"Relu", "Clip"})


def break_silent_quantization(model: Model) -> tuple[str, ...]:
    """Put a no-op where onnxruntime would quantize a float node on loading; gives the names of these nodes."""
    editor = model.editor
    broken: list[str] = []
    for node in editor.nodes():
        if node.op not in _HELD_BACK or not _reads_codes(model, node):
            continue
        last = _before_quantize(model, node)
        if last is None:
            continue
        lowest = editor.add_constant("lowest", np.array(np.finfo(np.float32).min, np.float32))
        readers = editor.consumers(last)
        kept = editor.add_node("Max", [last, lowest], name=f"{last.name}_stays_float")
        editor.replace_uses(last, kept.outputs[0], consumers=readers)
        broken.append(node.name or node.outputs[0].name)
    if broken:
        model.finish()
    return tuple(broken)


def shield_captures(model: Model) -> None:
    """Put a no-op before a body that reads values which onnxruntime would move a DequantizeLinear behind.

    Between MaxPool, Reshape or Transpose and an If, a Loop or a Scan that captures the result, onnxruntime (1.32) looks
    for the reader's input among those that the node lists, where a captured one is not, and ends the process. What
    stands between may be gone on loading (Dropout, a Mul by 1), so that only layers count as something between.
    """
    editor = model.editor
    outer = {id(node) for node in editor.nodes()}
    shielded = False
    for node in editor.nodes():
        for tensor in list(node.outputs):
            inside = [reader for reader in editor.consumers(tensor) if id(reader) not in outer]
            if not inside or model.dtype_of(tensor) != np.float32 or not _carries_codes(model, node):
                continue
            lowest = editor.add_constant("lowest", np.array(np.finfo(np.float32).min, np.float32))
            kept = editor.add_node("Max", [tensor, lowest], name=f"{tensor.name}_captured")
            editor.replace_uses(tensor, kept.outputs[0], consumers=inside)
            shielded = True
    if shielded:
        model.finish()


def _carries_codes(model: Model, node: gs.Node) -> bool:
    """Its values come from a DequantizeLinear, through no layer."""
    stack, seen = [node], {id(node)}
    while stack:
        before = stack.pop()
        if before.op == "DequantizeLinear":
            return before is not node
        if before.op in _HELD_BACK:
            continue
        found = (model.editor.producer(tensor) for tensor in before.inputs if not tensor.is_empty())
        fresh = [producer for producer in found if producer is not None and id(producer) not in seen]
        seen.update(id(producer) for producer in fresh)
        stack.extend(fresh)
    return False


def _reads_codes(model: Model, node: gs.Node) -> bool:
    """Its activation comes from a DequantizeLinear, and its weight, if it has one, does not."""
    first = model.editor.producer(node.inputs[0])
    if first is None or first.op != "DequantizeLinear":
        return False
    if node.op == "Softmax":
        return True
    second = model.editor.producer(node.inputs[1])
    return second is None or second.op != "DequantizeLinear"


def _before_quantize(model: Model, node: gs.Node) -> gs.Tensor | None:
    """The tensor that goes to one QuantizeLinear and nowhere else, behind at most an Add of a bias and a Relu."""
    editor = model.editor
    tensor = node.outputs[0]
    for _ in range(3):
        consumers = editor.consumers(tensor)
        if editor.is_output(tensor) or len(consumers) != 1:
            return None
        if consumers[0].op == "QuantizeLinear":
            return tensor
        bias_add = node.op == "MatMul" and consumers[0].op == "Add"
        if consumers[0].op not in _SWALLOWED and not bias_add:
            return None
        tensor = consumers[0].outputs[0]
    return None
