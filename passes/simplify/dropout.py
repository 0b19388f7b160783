"""Rule `dropout`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class InferenceDropout(Rule):
    """Remove Dropout that does not drop.

    Pattern: Dropout.
    Conditions: inference mode: opset ≥ 12 with ``training_mode`` absent or constant false, opset 7 to 11
    always, opset ≤ 6 with ``is_test`` set; the mask output is unused.
    Proof: in inference mode the output is the input, whatever the ratio.
    Refuses: training mode that is true or known at run time only; a mask that something uses.
    """

    name: ClassVar[str] = "dropout"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Dropout"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if not _in_inference_mode(node, scope):
            return self.skip(node, "Dropout in training mode is left alone")
        if any(scope.used(mask) for mask in node.outputs[1:]):
            return self.skip(node, "the mask of this Dropout is used")
        if not scope.can_bypass(node):
            return None
        site = self.site(node, "removed Dropout, which does nothing in inference")
        scope.bypass(node)
        return site


def _in_inference_mode(node: gs.Node, scope: Scope) -> bool:
    if scope.model.opset < 7:
        return bool(node.attrs.get("is_test", 0))
    if scope.model.opset < 12 or scope.input(node, 2) is None:
        return True
    mode = scope.constant(node, 2)
    return mode is not None and not mode.any()
