"""Rule `dead-node`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class DeadNode(Rule):
    """Remove a node none of whose outputs is used.

    Pattern: any node of any domain.
    Conditions: no output is a graph output (of any graph) or an input of a node, bodies of If, Loop and Scan
    included.
    Proof: ONNX nodes have no effect but their outputs.
    Refuses: nothing. It runs before the other rules at each node, so that a dead user never counts as "another
    user".
    """

    name: ClassVar[str] = "dead-node"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = None

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if any(scope.used(tensor) for tensor in node.outputs):
            return None
        site = self.site(node, f"removed {node.op}, which nothing uses")
        scope.remove(node)
        return site
