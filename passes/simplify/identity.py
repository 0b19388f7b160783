"""Rule `identity`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class IdentityNode(Rule):
    """Remove Identity.

    Pattern: Identity of a tensor, sequence or optional.
    Conditions: graph inputs and outputs keep their names, so one end must be free: an Identity between a graph
    input (or an initializer, or another graph output) and a graph output stays.
    Proof: by definition.
    Refuses: nothing else.
    """

    name: ClassVar[str] = "identity"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Identity"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if not scope.can_bypass(node):
            return None
        site = self.site(node, "removed Identity")
        scope.bypass(node)
        return site
