"""Rule `scale-shift-before`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.fuse.linear.linear_readers import along_inputs, folded_before, layers_reading, recognised_whole
from graphopt.pipeline.affine import ARITHMETIC, read_arithmetic
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.linear import Change
from graphopt.pipeline.rules import Rule, Scope, label


class ScaleShiftBefore(Rule):
    """Fold a constant scale or shift into every layer that reads it.

    Pattern: x · c, c · x, x / c, x + c, c + x, x - c, c - x, each reader of which is a Conv, ConvTranspose, Gemm or
    MatMul that takes it as its data.
    Conditions: c is constant, float32 or float64, finite, one number or one per input channel, on the channels'
    axis ([C] against [N, C, H, W] lies on W and does not fit), and does not widen x; no zero in a divisor; the
    readers' weights are constant floats; the result is no graph output; all nodes are open to this pass; the new
    parameters are finite. A shift needs a constant bias to go to (a MatMul's is an addition behind it that alone
    reads it) and a layer that pads nothing: no ``pads``, no SAME; for ConvTranspose kernel 1, stride 1, no pads,
    no output_padding, no output_shape.
    Proof: W ∗ (a · x) = (W · a) ∗ x with a on the weight's input channels, whatever is padded, since a · 0 = 0.
    W ∗ (x + b) = W ∗ x + W ∗ b, and without padding W ∗ b is the same sum over the kernel at every position; with
    padding the border would see b where zeros were, and a strided ConvTranspose uses other kernel positions at
    other outputs (off by more than 1, measured at kernel 2 and 3, stride 2). Computed in float64, rounded once.
    Effect: a pass over the layer's whole input less. Measured against all other rules without this one, one thread,
    AVX2: ppocr_v4_det (20 nodes) 1.03x [1.01, 1.04], ppocr_v4_rec (24 nodes) 1.06x [1.05, 1.07].
    Refuses: a reader of any other kind (then the node has to stay); a shift before padding (see
    `scale-through-shift`); the last factor of a Gelu and the scale or shift of a normalization, written out, without
    which onnxruntime recognises neither; a weight above 1 MiB that other nodes read too; float16. Layers that share a
    weight get one each.
    """

    name: ClassVar[str] = "scale-shift-before"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = ARITHMETIC

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        arithmetic = read_arithmetic(node, scope)
        layers = None if arithmetic is None else layers_reading(node.outputs[0], scope)
        if arithmetic is None or layers is None:
            return None
        if isinstance(layers, str):
            return self.skip(node, layers)
        if not scope.can_bypass(node, arithmetic.kept):
            return self.skip(node, "its operand cannot take its place")
        whole = recognised_whole(arithmetic.x, scope)
        if whole is not None:
            return self.skip(node, f"it is the last node of {whole}, which the runtime recognises as a whole")
        changes: list[Change] = []
        for layer in layers:
            change = folded_before(layer, along_inputs(arithmetic, layer, scope))
            if isinstance(change, str):
                return self.skip(node, change)
            changes.append(change)
        names = ", ".join(f"{layer.node.op} {label(layer.node)}" for layer in layers)
        site = self.site(node, f"{node.op} folded into {names}", layers=len(layers))
        for change in changes:
            change.store(scope)
        scope.bypass(node, arithmetic.kept)
        return site
