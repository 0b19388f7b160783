"""Rule `dead-node`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class DeadNode(Rule):
    """Remove a node none of whose outputs is used.

    Pattern: any node of any domain.
    Conditions: it has outputs (a node without is there for an effect); none of them is a graph output (of any graph)
    or an input of a node, bodies of If, Loop and Scan included.
    Proof: ONNX nodes have no effect but their outputs.
    Refuses: nothing. All dead nodes go before the other rules begin, so that a dead user never counts as "another
    user"; later ones go as they are met.
    """

    name: ClassVar[str] = "dead-node"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = None

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if not any(t.name for t in node.outputs) or any(scope.used(tensor) for tensor in node.outputs):
            return None
        site = self.site(node, f"removed {node.op}, which nothing uses")
        scope.remove(node)
        return site
