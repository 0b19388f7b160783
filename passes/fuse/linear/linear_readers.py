"""Tensors that nothing but linear layers read, and what folding into such layers asks of them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.affine import Affine, Arithmetic, read_arithmetic
from graphopt.pipeline.linear import LAYERS, Change, Layer, read_layer, scaled_before
from graphopt.pipeline.rules import Dims, Scope, label

MOST_BYTES = 1 << 20
"""A weight that others read too may be stored a second time up to this size: a file of tied weights must not double."""


def layers_reading(tensor: gs.Tensor, scope: Scope) -> list[Layer] | str | None:
    """The layers that read ``tensor`` as their data, if all its readers are such and may change.

    Returns:
        The layers; or why one cannot change; or ``None`` where no layer reads it at all.
    """
    readers = scope.editor.consumers(tensor)
    if not any(node.op in LAYERS and in_standard_domain(node) for node in readers):
        return None
    if scope.editor.is_output(tensor):
        return f"{tensor.name} is a graph output"
    layers = []
    for node in readers:
        layer = read_layer(node, scope)
        if layer is None or sum(t is tensor for t in node.inputs) != 1 or node.inputs[0] is not tensor:
            return f"{label(node)} reads it too and is no layer with a constant weight"
        if getattr(node, "home", None) is not getattr(tensor, "home", None):
            return f"{label(node)} reads it in a body of If, Loop or Scan"
        reason = frozen_weight(layer, scope)
        if reason is not None:
            return reason
        layers.append(layer)
    return layers


def frozen_weight(layer: Layer, scope: Scope) -> str | None:
    """Why the layer's parameters must stay as they are, or ``None``."""
    if not scope.selection.allows(layer.node):
        return f"{label(layer.node)} is left out by only/skip"
    if layer.weight.dtype not in (np.float32, np.float64):
        return f"the weight of {label(layer.node)} is {layer.weight.dtype}"
    others = [node for node in scope.editor.consumers(layer.node.inputs[1]) if node is not layer.node]
    if others and layer.weight.nbytes > MOST_BYTES:
        return f"the weight of {label(layer.node)} has other users and would have to be stored twice"
    return None


def recognised_whole(x: gs.Tensor, scope: Scope) -> str | None:
    """What the runtime recognises only together with a constant scale or shift of ``x``, or ``None``.

    onnxruntime fuses (x · (1 + Erf(x / √2))) · 0.5, its form with Tanh, and a normalization with both its scale and
    its shift; without the last node it runs the rest one by one (measured on MiniLM: 6 Gelus of 5 nodes each).
    """
    node = scope.producer(x)
    if node is None:
        return None
    if node.op == "Mul" and any(_reads(p, ("Erf", "Tanh"), scope) for p in _producers(node, scope) if p.op == "Add"):
        return "a Gelu"
    first = read_arithmetic(node, scope)
    if first is not None:
        node = scope.producer(first.x)
    if node is not None and node.op in ("Div", "Mul"):
        roots = ("Pow", "Reciprocal", "Sqrt")
        if _reads(node, roots, scope) or any(_reads(p, roots, scope) for p in _producers(node, scope) if p.op == "Div"):
            return "a normalization"
    return None


def _producers(node: gs.Node, scope: Scope) -> list[gs.Node]:
    found = (scope.producer(tensor) for tensor in node.inputs if not tensor.is_empty())
    return [producer for producer in found if producer is not None]


def _reads(node: gs.Node, ops: tuple[str, ...], scope: Scope) -> bool:
    return any(producer.op in ops for producer in _producers(node, scope))


def along_inputs(arithmetic: Arithmetic, layer: Layer, scope: Scope) -> Affine | None:
    """The arithmetic over the layer's input channels, or ``None`` where it differs within one or may widen x."""
    shape: Dims | None = scope.shape(arithmetic.x)
    if shape is None:
        # What x is combined with has fewer axes than the layer takes: so those are the axes of x.
        rank = layer.input_rank or 0
        shape = (None,) * rank if arithmetic.constant.ndim < rank else ()
    return arithmetic.along(layer.in_axis, layer.inputs, shape)


def folded_before(layer: Layer, affine: Affine | None) -> Change | str:
    """``affine`` as part of the layer, or why not."""
    where = label(layer.node)
    if affine is None:
        return f"its constant is not one number per input channel of {where}"
    change = scaled_before(layer, affine)
    if change is None:
        if layer.pads:
            return f"a shift in front of {where} does not reach what it pads"
        return f"{where} has no constant bias for the shift to go to"
    return change if change.in_range else f"the folded weights of {where} are out of the range of {layer.weight.dtype}"
