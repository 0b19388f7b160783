"""Rule `noop-cast`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class NoopCast(Rule):
    """Remove a Cast to the type its input already has.

    Pattern: Cast, CastLike.
    Conditions: the element types before and after are known and equal.
    Proof: a conversion of a type into itself copies each element.
    Refuses: nothing.
    """

    name: ClassVar[str] = "noop-cast"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Cast", "CastLike"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        before = scope.model.dtype_of(node.inputs[0])
        after = scope.model.dtype_of(node.outputs[0])
        if before is None or before != after or not scope.can_bypass(node):
            return None
        site = self.site(node, f"removed {node.op} from {before} to itself")
        scope.bypass(node)
        return site
