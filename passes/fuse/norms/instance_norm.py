"""Rule `instance-norm`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.norms.normalisations import Normalised, Tail, constant_index, normalised, tail
from graphopt.passes.fuse.patterns import is_float32, obstacle, put_instead
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Array, Rule, Scope
from graphopt.runtime.schemas import has_kernel


class InstanceNorm(Rule):
    """Write InstanceNormalization from its parts.

    Pattern: as for `layer-norm`, over all axes behind the channels of a tensor of rank 3 to 5 ([N, C, H, W]: axes 2 and
    3), then a constant scale and shift for each channel, either of which may be missing.
    Conditions: float32; the number of channels is known; 0 < epsilon ≤ 1; scale and shift vary over the channels only
    and do not enlarge the shape; no inner tensor has another user; the target has a kernel. At rank 3 without a scale
    for each channel it is a LayerNormalization as well, and `layer-norm` takes it where the last extent is known.
    Proof: InstanceNormalization is that function (Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016; ONNX
    operator set 6); mean and variance are sums in another order, a few roundings each. A mean far from zero costs
    digits in every form, as for `layer-norm`.
    Effect: onnxruntime recognises none of the spellings. Measured on one thread of an AVX2 processor, onnxruntime
    1.32: 2.22x at [1, 64, 28, 28], 2.36x at [1, 64, 112, 112], 1.87x at [1, 64, 784].
    Refuses: an unknown number of channels; other axes; a mean square of something else than the difference.
    """

    name: ClassVar[str] = "instance-norm"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Add", "Div", "Mul"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if scope.model.opset < 7 or not is_float32(scope, node.outputs[0]):
            return None
        norm = normalised(scope, node)
        if norm is None or not norm.centred or norm.rank not in (3, 4, 5) or norm.axes != tuple(range(2, norm.rank)):
            return None
        shape = scope.shape(norm.x) or ()
        channels = shape[1]
        if not isinstance(channels, int):
            return self.skip(node, "the number of channels is not known")
        found = tail(scope, norm, lambda value: _parameter(value, channels, norm.rank), (channels,))
        if found is None or not _is_per_channel(norm, found, isinstance(shape[-1], int), scope):
            return None
        why = obstacle(scope, node, norm.nodes)
        if why is not None:
            return self.skip(node, why)
        shapes = ((1, 2, 4, 4), (2,), (2,))
        if not has_kernel("InstanceNormalization", scope.model.opset, shapes=shapes, provider=scope.target.provider):
            return None
        return self._rewrite(node, norm, found, scope)

    def _rewrite(self, node: gs.Node, norm: Normalised, found: Tail, scope: Scope) -> Site:
        count = len({id(inner) for inner in (*norm.nodes, *found.nodes)})
        site = self.site(node, f"{count} nodes became InstanceNormalization")
        shift = np.zeros_like(found.scale) if found.shift is None else found.shift
        parameters = [
            scope.editor.add_constant(f"{norm.x.name}_{hint}", value)
            for hint, value in (("scale", found.scale), ("shift", shift))
        ]
        put_instead(scope, node, norm.nodes, "InstanceNormalization", [norm.x, *parameters], epsilon=norm.epsilon)
        for extra in found.nodes:
            scope.bypass(extra, 1 - int(constant_index(scope, extra) or 0))
        return site


def _is_per_channel(norm: Normalised, found: Tail, width_known: bool, scope: Scope) -> bool:
    """Whether this is the better reading: what follows does not scale the normalised axes one by one."""
    taken = norm.scale is not None or norm.shift is not None or bool(found.nodes)
    if taken:
        return (
            norm.rank > 3
            or not width_known
            or bool(np.ptp(found.scale) or (found.shift is not None and np.ptp(found.shift)))
        )
    users = scope.editor.consumers(norm.nodes[0].outputs[0])
    scaled = any(user.op == "Mul" and constant_index(scope, user) is not None for user in users)
    return not width_known if norm.rank == 3 else not (width_known and scaled)


def _parameter(value: Array, channels: int, rank: int) -> Array | None:
    """A constant operand as scale or shift of the channels; ``None`` where it varies over other axes."""
    if value.ndim > rank:
        return None
    aligned = value.reshape((1,) * (rank - value.ndim) + value.shape)
    if aligned.size != aligned.shape[1]:
        return None
    return np.array(np.broadcast_to(aligned.reshape(-1), (channels,)), np.float32)
