"""Rule `compose-convs`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.passes.fuse.linear.linear_readers import frozen_weight
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.linear import Change, Layer, narrowed, read_layer
from graphopt.pipeline.rules import Rule, Scope, label


class ComposeConvs(Rule):
    """Write a Conv and a pointwise Conv behind it as one, where that multiplies less.

    Pattern: Conv(Conv(x)), the outer one of kernel 1, stride 1, without padding and with one group, the inner one
    with one group.
    Conditions: both weights and biases are constant, float32 or float64; the outer one alone reads the inner one's
    result, which is no graph output; both nodes are open to this pass; the product of the weights has fewer
    elements than the two together (both run at the same positions, so that it also multiplies less); the new
    parameters are finite.
    Proof: V · (W ∗ x + b) + c = (V · W) ∗ x + (V · b + c) at every position, whatever W's window and padding, since V
    looks at one position. Computed in float64, rounded once.
    Effect: less to multiply: ppocr_v4_det (384 to 360 to 96 channels at 7 x 7) 1.016x [1.011, 1.023], one thread.
    Refuses: an activation between them; a bottleneck (few channels between two wide ends), where the two are the
    cheaper form.
    """

    name: ClassVar[str] = "compose-convs"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Conv"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        before = scope.producer(node.inputs[0])
        if before is None or before.op != "Conv" or not in_standard_domain(before):
            return None
        inner, outer = read_layer(before, scope), read_layer(node, scope)
        if inner is None or outer is None or not _pointwise(outer) or inner.node.attrs.get("group", 1) != 1:
            return None
        if inner.outputs * (inner.weight[0].size + outer.outputs) <= outer.outputs * inner.weight[0].size:
            return None
        reason = _why_not(inner, outer, scope)
        if reason is not None:
            return self.skip(node, reason)
        change = _composed(inner, outer)
        if change is None or not change.in_range:
            return self.skip(node, f"its product with {label(before)} is out of the range of {inner.weight.dtype}")
        site = self.site(node, f"composed with {label(before)}", channels=inner.outputs)
        change.store(scope)
        # The outer Conv's tensor stays: the inner one's has other channels, and rules may have looked at them.
        composed = scope.editor.add_node(
            "Conv", list(before.inputs), attrs=before.attrs, outputs=[node.outputs[0]], name=f"{label(before)}_composed"
        )
        scope.remove(node)
        scope.remove(before)
        scope.touch([composed, *scope.editor.consumers(composed.outputs[0])])
        return site


def _pointwise(layer: Layer) -> bool:
    attrs = layer.node.attrs
    ones = all(d == 1 for d in layer.weight.shape[2:]) and all(s == 1 for s in attrs.get("strides") or ())
    return ones and not layer.pads and attrs.get("group", 1) == 1


def _why_not(inner: Layer, outer: Layer, scope: Scope) -> str | None:
    reason = frozen_weight(inner, scope)
    if reason is not None:
        return reason
    if outer.weight.dtype != inner.weight.dtype or inner.bias is None or outer.bias is None:
        return f"its parameters or those of {label(inner.node)} are not all constants of one type"
    if not scope.only_user(inner.result, outer.node):
        return f"the output of {label(inner.node)} has another user or is a graph output"
    return None


def _composed(inner: Layer, outer: Layer) -> Change | None:
    """The inner Conv's parameters with the outer's map applied to its result."""
    if inner.bias is None or outer.bias is None:
        return None
    dtype, across = inner.weight.dtype, outer.weight.reshape(outer.outputs, inner.outputs).astype(np.float64)
    weight = narrowed(across @ inner.weight.reshape(inner.outputs, -1).astype(np.float64), dtype)
    bias = narrowed(across @ inner.bias + outer.bias, dtype)
    return Change(inner, weight.reshape(outer.outputs, *inner.weight.shape[1:]), bias)
