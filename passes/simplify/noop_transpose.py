"""Rule `noop-transpose`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class NoopTranspose(Rule):
    """Remove a Transpose that leaves every axis in place.

    Pattern: Transpose.
    Conditions: ``perm`` is 0, 1, 2, …; or ``perm`` is absent (axes reversed) and the rank is at most 1.
    Proof: by definition.
    Refuses: permutations that only move axes of size 1; those are views, not no-ops, since the shape changes.
    """

    name: ClassVar[str] = "noop-transpose"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Transpose"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        perm = node.attrs.get("perm")
        if perm is None:
            shape = scope.shape(node.inputs[0])
            keeps = shape is not None and len(shape) <= 1
        else:
            keeps = list(perm) == list(range(len(perm)))
        if not keeps or not scope.can_bypass(node):
            return None
        site = self.site(node, "removed Transpose, which moves no axis")
        scope.bypass(node)
        return site
