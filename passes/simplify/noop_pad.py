"""Rule `noop-pad`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class NoopPad(Rule):
    """Remove a Pad by nothing.

    Pattern: Pad in any mode.
    Conditions: all pads are constant zeros (an input since opset 11, an attribute before).
    Proof: no element is added or taken away, in whatever mode and on whatever axes.
    Refuses: negative pads, which crop.
    """

    name: ClassVar[str] = "noop-pad"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Pad"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        pads = scope.ints(node, 1, "pads")
        if pads is None or any(pads) or not scope.can_bypass(node):
            return None
        site = self.site(node, "removed Pad by zero")
        scope.bypass(node)
        return site
