"""Rule `rms-norm`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.norms.normalisations import Normalised, Tail, constant_index, normalised, tail
from graphopt.passes.fuse.patterns import add_like, is_float32, obstacle, put_instead
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Array, Rule, Scope
from graphopt.runtime.schemas import has_kernel

OPSET = 23
RECOGNISED = frozenset({"Add", "Div", "Mul", "Pow", "ReduceMean", "Sqrt"})


class RmsNorm(Rule):
    """Write RMSNormalization from its parts, or in the spelling that the runtime takes for it.

    Pattern: x / Sqrt(ReduceMean(x²) + epsilon), the square and the quotient spelled in any of the ways of
    `layer-norm`, then a constant scale, before or behind the product with x, or none.
    Conditions: float32; the mean over the last axis, kept; its extent is known; 0 < epsilon ≤ 1; the scale covers that
    axis only and does not enlarge the shape; no inner tensor has another user.
    Proof: RMSNormalization is that function (Zhang and Sennrich, Root Mean Square Layer Normalization, 2019; ONNX
    operator set 23); the mean square is a sum in another order, and a reciprocal and a product are rounded once more
    than a quotient.
    Effect: RMSNormalization is written where the model has opset 23; opsets are not raised beyond 21, so elsewhere
    the spelling with Pow, Div and a scale, which onnxruntime takes for a SimplifiedLayerNormalization: it does not
    take a square written as product, nor Reciprocal. Measured on one thread of an AVX2 processor, onnxruntime 1.32, at
    [1, 64, 384]: an unrecognised spelling against RMSNormalization 1.63x; that against the recognised one 0.97.
    Refuses: an unknown extent; another axis. What the runtime recognises stays.
    """

    name: ClassVar[str] = "rms-norm"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Div", "Mul"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if scope.model.opset < 7 or not is_float32(scope, node.outputs[0]):
            return None
        norm = normalised(scope, node)
        if norm is None or norm.centred or norm.axes != (norm.rank - 1,):
            return None
        width = (scope.shape(norm.x) or (None,))[-1]
        if not isinstance(width, int):
            return self.skip(node, "the extent of the axis that it normalises is not known")
        found = tail(scope, norm, lambda value: _parameter(value, width), (width,), ("Mul",))
        if found is None:
            return self.skip(node, "its scale reaches beyond the axis that it normalises")
        shapes, provider = ((2, 4), (4,)), scope.target.provider
        written = scope.model.opset >= OPSET and has_kernel("RMSNormalization", OPSET, shapes=shapes, provider=provider)
        if not written and _is_recognised(norm, found):
            return None
        why = obstacle(scope, node, norm.nodes)
        return self.skip(node, why) if why is not None else self._rewrite(node, norm, found, written, scope)

    def _rewrite(self, node: gs.Node, norm: Normalised, found: Tail, written: bool, scope: Scope) -> Site:
        what = "RMSNormalization" if written else "the spelling of RMSNormalization that the runtime recognises"
        site = self.site(node, f"{len({id(n) for n in (*norm.nodes, *found.nodes)})} nodes became {what}")
        scale = scope.editor.add_constant(f"{norm.x.name}_scale", found.scale)
        if written:
            put_instead(scope, node, norm.nodes, "RMSNormalization", [norm.x, scale], axis=-1, epsilon=norm.epsilon)
        else:
            quotient = add_like(scope, norm.x, "Div", [norm.x, _root(norm, scope)], f"{norm.x.name}_rms_div")
            put_instead(scope, node, norm.nodes, "Mul", [quotient, scale])
        for extra in found.nodes:
            scope.bypass(extra, 1 - int(constant_index(scope, extra) or 0))
        return site


def _root(norm: Normalised, scope: Scope) -> gs.Tensor:
    """Nodes for ``sqrt(mean(x²) + epsilon)`` in the spelling that onnxruntime looks for; the last one's output."""
    name, editor = f"{norm.x.name}_rms", scope.editor
    two, epsilon = (
        editor.add_constant(f"{name}_{hint}", np.asarray(value, np.float32))
        for hint, value in (("two", 2.0), ("epsilon", norm.epsilon))
    )
    square = add_like(scope, norm.x, "Pow", [norm.x, two], f"{name}_pow")
    # The mean that is there is taken over: it has the axes as the operator set wants them.
    old = next(inner for inner in norm.nodes if inner.op == "ReduceMean")
    like = old.outputs[0]
    mean = editor.add_node("ReduceMean", [square, *old.inputs[1:]], attrs=dict(old.attrs), name=f"{name}_mean")
    result = mean.outputs[0]
    result.dtype, result.shape = like.dtype, like.shape
    return add_like(
        scope, like, "Sqrt", [add_like(scope, like, "Add", [result, epsilon], f"{name}_add")], f"{name}_sqrt"
    )


def _is_recognised(norm: Normalised, found: Tail) -> bool:
    """Whether onnxruntime takes the form for a SimplifiedLayerNormalization as it stands."""
    ops = [inner.op for inner in norm.nodes]
    squared = any(inner.op == "Mul" and inner.inputs[0] is inner.inputs[1] for inner in norm.nodes)
    return set(ops) <= RECOGNISED and "Sqrt" in ops and not squared and norm.scale is None and bool(found.nodes)


def _parameter(value: Array, width: int) -> Array | None:
    """A constant operand as scale of the last axis; ``None`` where it varies over others."""
    if value.size != (value.shape[-1] if value.ndim else 1):
        return None
    return np.array(np.broadcast_to(value.reshape(-1), (width,)), np.float32)
