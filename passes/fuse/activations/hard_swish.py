"""Rule `hard-swish`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.fuse.patterns import add_like, is_float32, obstacle, pairs, put_instead, ramps
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope, label
from graphopt.runtime.schemas import has_kernel

OPSET = 14
Found = tuple[gs.Tensor, tuple[gs.Node, ...]]


class HardSwish(Rule):
    """Write ``x · clip(x + 3, 0, 6) / 6`` as HardSwish.

    Pattern: a product of x, a number and a ramp of x that together are x · clip(x / 6 + 0.5, 0, 1): the division by 6
    (or product with 1/6) at the product, at the clip or at x; the clip as Clip, Min and Max, Relu and Min, or
    HardSigmoid(1/6, 0.5); operands in any order.
    Conditions: float32; scalar constants that do not enlarge the shape, equal to 3, 6 and 1/6 to a relative 1e-6; no
    inner tensor has another user; the target has a kernel of HardSigmoid.
    Proof: HardSwish is defined as x · HardSigmoid(x; 1/6, 0.5) (ONNX operator set 14). The forms differ in rounding
    only: the ramp by 3e-7 of its span, the product by as much of |x|; constants off by 1e-6 move it by 1.5e-6 for
    |x| ≤ 3 and not at all beyond. Inputs that make x · 6 overflow (|x| > 5.6e37) gave inf and now give x.
    Effect: onnxruntime's CPU provider expands HardSwish into HardSigmoid and Mul, keeps both in the blocked layout of
    the convolutions and, where a Conv precedes, takes them into it; of Clip and Add it does neither. Measured on one
    thread of an AVX2 processor, onnxruntime 1.32, alone and beside all other families: an OCR detector with 24 of
    them 1.08x [1.07, 1.10] and 1.13x [1.11, 1.14], an OCR recogniser with 28 of them 1.06x [1.04, 1.07] and 1.19x
    [1.16, 1.21]: `scale-shift-after` brings each next to its Conv.
    Without opset 14 (and no way to it) it is written as x · HardSigmoid(x), which runs the same.
    Refuses: other constants (2.9 is not 3); an inner tensor with another user.
    """

    name: ClassVar[str] = "hard-swish"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Mul", "Div"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if scope.model.opset < 7 or not is_float32(scope, node.outputs[0]):
            return None
        why: str | None = None
        for x, nodes in _readings(node, scope):
            why = obstacle(scope, node, nodes)
            if why is None:
                return self._rewrite(node, x, nodes, scope)
        return None if why is None else self.skip(node, why)

    def _rewrite(self, node: gs.Node, x: gs.Tensor, nodes: tuple[gs.Node, ...], scope: Scope) -> Site | Skip | None:
        if not has_kernel("HardSigmoid", scope.model.opset, provider=scope.target.provider):
            return None
        why = scope.reach_opset(OPSET)
        gated = sorted(inner.op for inner in nodes) == ["HardSigmoid", "Mul"]
        if why is not None and gated:
            return self.skip(node, why)
        site = self.site(node, f"{len(nodes)} nodes became HardSwish")
        if why is None:
            put_instead(scope, node, nodes, "HardSwish", [x])
        else:
            gate = add_like(scope, x, "HardSigmoid", [x], f"{label(node)}_gate", alpha=1 / 6, beta=0.5)
            put_instead(scope, node, nodes, "Mul", [x, gate])
        return site


def _readings(node: gs.Node, scope: Scope) -> Iterator[Found]:
    for product, x, gate in pairs(scope, node.outputs[0]):
        for ramp in ramps(scope, gate):
            if ramp.tensor is x and ramp.nodes and ramp.times(product.scale).is_(1 / 6, 0.5, 0.0, 1.0):
                yield x, (*product.nodes, *ramp.nodes)
