"""Rule `layer-norm`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.norms.normalisations import Normalised, Tail, constant_index, normalised, tail, trailing
from graphopt.passes.fuse.patterns import is_float32, obstacle, put_instead
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Array, Rule, Scope, static
from graphopt.runtime.schemas import has_kernel

OPSET = 17


class LayerNorm(Rule):
    """Write LayerNormalization from its parts.

    Pattern: d / Sqrt(ReduceMean(d²) + epsilon) with d = x - ReduceMean(x): the square as Pow or as a product, the
    quotient as Div or as a product with Reciprocal(Sqrt), 1 / Sqrt or a power of -0.5, the difference written once or
    twice; then a constant scale and a constant shift, either of which may be missing. The scale may sit at the
    reciprocal, and the whole may be multiplied out as x · i + (b - mean · i), as TensorFlow writes it.
    Conditions: float32; both means over the same last axes, kept; their extents are known; 0 < epsilon ≤ 1; scale and
    shift cover those axes only and do not enlarge the shape; no inner tensor has another user; the opset can be
    raised to 17 where it is lower; the target has a kernel.
    Proof: LayerNormalization is that function (Ba, Kiros and Hinton, Layer Normalization, 2016; ONNX operator set 17);
    mean and variance are sums in another order, a few roundings each. A mean far from zero costs digits in every form
    (measured: 3e-6 of the result at 100 standard deviations, 5e-5 at 1000), and the forms then differ by as much.
    Effect: onnxruntime recognises the spelling with Pow and Div, with scale and shift, by itself; that one is written
    too, since its search was seen to miss one of five when the opset was raised. Measured on one thread of an AVX2
    processor, onnxruntime 1.32, at [1, 64, 384]: spelling with a product and Reciprocal 1.71x, multiplied out 1.84x,
    the recognised one 0.97x [0.93, 0.99] in one run; an OCR recogniser with five of those 1.00x [0.98, 1.01]:
    the same kernel runs.
    Refuses: unknown extents; axes that are not the last ones; a variance written as mean(x²) - mean(x)² (Flax), which
    cancels where the mean is large: the operator would be more exact than it, by more than rounding.
    """

    name: ClassVar[str] = "layer-norm"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Add", "Div", "Mul"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if scope.model.opset < 7 or not is_float32(scope, node.outputs[0]):
            return None
        norm = normalised(scope, node)
        if norm is None or not norm.centred or not trailing(norm):
            return None
        extents = static((scope.shape(norm.x) or ())[norm.axes[0] :])
        if extents is None:
            return self.skip(node, "the extents of the axes that it normalises are not known")
        found = tail(scope, norm, lambda value: _parameter(value, extents), extents)
        if found is None:
            return self.skip(node, "its scale or shift reaches beyond the axes that it normalises")
        why = obstacle(scope, node, norm.nodes)
        if why is None and not has_kernel(
            "LayerNormalization", OPSET, shapes=((2, 4), (4,)), provider=scope.target.provider
        ):
            return None
        why = why or scope.reach_opset(OPSET)
        return self.skip(node, why) if why is not None else self._rewrite(node, norm, found, scope)

    def _rewrite(self, node: gs.Node, norm: Normalised, found: Tail, scope: Scope) -> Site:
        count = len({id(inner) for inner in (*norm.nodes, *found.nodes)})
        site = self.site(node, f"{count} nodes became LayerNormalization")
        parameters = [scope.editor.add_constant(f"{norm.x.name}_scale", found.scale)]
        if found.shift is not None:
            parameters.append(scope.editor.add_constant(f"{norm.x.name}_shift", found.shift))
        attrs = {"axis": norm.axes[0] - norm.rank, "epsilon": norm.epsilon}
        put_instead(scope, node, norm.nodes, "LayerNormalization", [norm.x, *parameters], **attrs)
        for extra in found.nodes:
            scope.bypass(extra, 1 - int(constant_index(scope, extra) or 0))
        return site


def _parameter(value: Array, extents: tuple[int, ...]) -> Array | None:
    """A constant operand as scale or shift of the last axes; ``None`` where it varies over others."""
    while value.ndim > len(extents) and value.shape[0] == 1:
        value = value[0]
    if value.ndim > len(extents):
        return None
    return np.array(np.broadcast_to(value, extents), np.float32)
