"""Rule `noop-view`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Dims, Rule, Scope, is_filled, static


class NoopView(Rule):
    """Remove a shape operator that gives the shape it was given.

    Pattern: Reshape, Flatten, Squeeze, Unsqueeze, Expand, Tile.
    Conditions: one of
    (a) both shapes are fully known and equal;
    (b) Reshape to a constant shape of the input's rank whose every entry is the input's own dimension (the same
    number, or 0 with ``allowzero`` off), except at most one -1; (c) Expand to a constant shape of ones, not
    longer than the input's rank; (d) Tile by a constant of ones.
    Proof: these operators keep the elements in row-major order (Reshape, Flatten, Squeeze, Unsqueeze) or repeat
    them (Expand, Tile); equal shapes leave one possible result. In (b) a single -1 stands for the only
    dimension left, which is the input's own.
    Refuses: dimensions known by name only: two equal names from different sources need not be equal numbers.
    """

    name: ClassVar[str] = "noop-view"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        before = scope.shape(node.inputs[0])
        known = static(before)
        same = known is not None and known == static(scope.shape(node.outputs[0]))
        if not (same or _keeps_dynamic_shape(node, before, scope)) or not scope.can_bypass(node):
            return None
        site = self.site(node, f"removed {node.op}, which keeps the shape")
        scope.bypass(node)
        return site


def _keeps_dynamic_shape(node: gs.Node, shape: Dims | None, scope: Scope) -> bool:
    if node.op == "Reshape":
        return _reshape_keeps(node, shape, scope)
    if node.op in ("Expand", "Tile"):
        value = scope.constant(node, 1)
        if value is None or not is_filled(value, 1):
            return False
        return node.op == "Tile" or (shape is not None and value.size <= len(shape))
    return False


def _reshape_keeps(node: gs.Node, shape: Dims | None, scope: Scope) -> bool:
    target = scope.ints(node, 1, "shape")
    if shape is None or target is None or len(target) != len(shape):
        return False
    zero_copies = not node.attrs.get("allowzero", 0)
    open_entries = [
        wanted
        for wanted, dim in zip(target, shape, strict=True)
        if not (wanted == dim and wanted != 0) and not (wanted == 0 and zero_copies)
    ]
    return open_entries in ([], [-1])
