"""Rule `hard-sigmoid`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.fuse.patterns import WIDEST, Ramp, is_float32, near, obstacle, put_instead, ramps
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope
from graphopt.runtime.schemas import has_kernel


class HardSigmoid(Rule):
    """Write a scaled, shifted and clipped tensor as HardSigmoid.

    Pattern: two or more nodes that together compute clip(alpha · x + beta, 0, 1): Clip(x + 3, 0, 6) / 6,
    Clip(x / 6 + 0.5, 0, 1), Min(Max(x + 3, 0), 6) · 0.16666667, Relu and Min, and so on: every order of scalar Add,
    Sub, Mul, Div, Neg, Relu, Min, Max and Clip (bounds as inputs, or as attributes before opset 11).
    Conditions: float32; finite scalar constants that do not enlarge the shape; alpha > 0; all
    summands of beta together ≤ 4, none cancelling another; bounds 0 and 1
    after all scaling, to a relative 1e-6; no inner tensor has another user; the target has a kernel.
    Proof: the function is the same; only where it is rounded differs. Where it is not cut off, |alpha · x| ≤
    1 + |beta|, so each form is off by a few roundings of 5, absolutely ≤ 2e-6 of a result that spans [0, 1].
    Effect: see `hard-swish`, whose gate it makes; by itself it saves one or two passes over the tensor, and
    onnxruntime takes it into the Conv before it.
    Refuses: larger summands, where the order of rounding would show; a lone Clip, which a Conv takes as well.
    """

    name: ClassVar[str] = "hard-sigmoid"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Add", "Clip", "Div", "Max", "Min", "Mul", "Relu", "Sub"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if scope.model.opset < 7 or not is_float32(scope, node.outputs[0]):
            return None
        found = [ramp for ramp in ramps(scope, node.outputs[0]) if len(ramp.nodes) > 1 and _is_gate(ramp)]
        if not found or not has_kernel("HardSigmoid", scope.model.opset, provider=scope.target.provider):
            return None
        why: str | None = None
        for ramp in reversed(found):
            why = obstacle(scope, node, ramp.nodes)
            if why is None:
                return self._rewrite(node, ramp, scope)
        return self.skip(node, str(why))

    def _rewrite(self, node: gs.Node, ramp: Ramp, scope: Scope) -> Site:
        site = self.site(node, f"{len(ramp.nodes)} nodes became HardSigmoid")
        put_instead(scope, node, ramp.nodes, "HardSigmoid", [ramp.tensor], alpha=ramp.scale, beta=ramp.shift)
        return site


def _is_gate(ramp: Ramp) -> bool:
    return ramp.low == 0 and near(ramp.high, 1) and ramp.scale > 0 and ramp.spread <= WIDEST
