"""Rule `fold-batchnorm`, of `simplify` and `fuse`: BatchNormalization can become foldable in either."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.pipeline.affine import Affine
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.linear import Change, read_layer, scaled_after
from graphopt.pipeline.rules import Array, Rule, Scope, label

_PRODUCERS = frozenset({"Conv", "ConvTranspose", "Gemm"})


class FoldBatchNorm(Rule):
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    Pattern: BatchNormalization(Conv | ConvTranspose | Gemm (x, W, b?)).
    Conditions: the normalization is in inference mode with its first output alone in use, and scale, bias, mean
    and variance are constant; W and b (if any) are constant floats; nothing else uses the layer's output, which
    is no graph output; both nodes are open to this pass; the new weights are finite in their own type. For
    Gemm, C must be a scalar, a vector or one row.
    Proof: with a = scale / sqrt(var + epsilon), BN(z) = a · z + (bias - a · mean) per output channel, and the
    layers are linear in W: a · (W ∗ x + b) + c = (a · W) ∗ x + (a · b + c). Padding adds zeros before the linear
    map, so borders agree. The output channel is axis 0 of Conv's W; for ConvTranspose, [C_in, C_out / group, …],
    it is axis 1 within the group that the row of C_in belongs to; for Gemm column n of B (row n if transB), with
    a on alpha · A · B and on beta · C. Computed in float64 and rounded once to the type of W.
    Effect: one node less per pair, no other change of speed: onnxruntime folds what it recognises at load time
    too; later passes see plain layers, and quantization sees the weights that will run.
    Refuses: weights behind DequantizeLinear or overridable initializers (not constants), shared outputs,
    training mode. A weight that other layers share is copied, so they keep theirs.
    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2018, section 3.2.
    """

    name: ClassVar[str] = "fold-batchnorm"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"BatchNormalization"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        layer = scope.producer(node.inputs[0])
        if layer is None or layer.op not in _PRODUCERS:
            return None
        reason = _why_not(node, layer, scope)
        if reason is not None:
            return self.skip(node, reason)
        change = _folded(node, layer, scope)
        if change is None:
            return self.skip(node, f"the statistics do not fit the weights of {label(layer)}")
        if not change.in_range:
            return self.skip(
                node, f"the folded weights of {label(layer)} are out of the range of {change.layer.weight.dtype}"
            )
        site = self.site(node, f"folded into {layer.op} {label(layer)}", channels=change.layer.outputs)
        change.store(scope)
        scope.bypass(node)
        return site


def _why_not(node: gs.Node, layer: gs.Node, scope: Scope) -> str | None:
    if not _in_inference_mode(node, scope):
        return "BatchNormalization in training mode is left alone"
    if any(scope.used(extra) for extra in node.outputs[1:]):
        return "its running statistics are used"
    if not scope.selection.allows(layer):
        return f"{label(layer)} is left out by only/skip"
    if not scope.only_user(layer.outputs[0], node):
        return f"the output of {label(layer)} has another user or is a graph output"
    if any(scope.constant(node, index) is None for index in (1, 2, 3, 4)):
        return "scale, bias, mean or variance is not constant"
    if any(scope.input(layer, i) is not None and not _is_float(scope.constant(layer, i)) for i in (1, 2)):
        return f"weight or bias of {label(layer)} is not a floating-point constant"
    return None if scope.can_bypass(node) else "both of its ends are fixed names"


def _is_float(value: Array | None) -> bool:
    return value is not None and value.dtype.kind == "f"


def _in_inference_mode(node: gs.Node, scope: Scope) -> bool:
    opset = scope.model.opset
    if opset >= 14:
        return not node.attrs.get("training_mode", 0)
    outputs = sum(not tensor.is_empty() for tensor in node.outputs)
    if opset < 7:
        return bool(node.attrs.get("is_test", 0))
    return outputs == 1 and bool(node.attrs.get("spatial", 1))


def _affine(node: gs.Node, scope: Scope) -> Affine | None:
    found = [scope.constant(node, index) for index in (1, 2, 3, 4)]
    values = [value.astype(np.float64) for value in found if value is not None and value.ndim == 1]
    if len(values) != 4 or len({v.size for v in values}) != 1:
        return None
    scale, bias, mean, variance = values
    spread = variance + float(np.float32(node.attrs.get("epsilon", 1e-5)))
    if not (spread > 0).all():
        return None
    factor = scale / np.sqrt(spread)
    return Affine(factor, bias - factor * mean)


def _folded(node: gs.Node, layer: gs.Node, scope: Scope) -> Change | None:
    """New weight and bias, or ``None`` where the channel counts disagree."""
    affine, linear = _affine(node, scope), read_layer(layer, scope)
    if affine is None or linear is None or affine.scale.size != linear.outputs:
        return None
    return scaled_after(linear, affine)
