"""Rule `single-input`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class SingleInput(Rule):
    """Remove an operator over several tensors that has one.

    Pattern: Concat, Sum, Max, Min or Mean of one input; Split into one output.
    Conditions: exactly one input (for Split: one output), which may be any tensor.
    Proof: the concatenation, sum, maximum, minimum and mean of one tensor are that tensor, bit for bit (a mean
    divides by 1); a Split into one part has the whole of it.
    Refuses: nothing.
    """

    name: ClassVar[str] = "single-input"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Concat", "Sum", "Max", "Min", "Mean", "Split"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        count = len(node.outputs) if node.op == "Split" else len(node.inputs)
        if count != 1 or not scope.can_bypass(node):
            return None
        site = self.site(node, f"removed {node.op} of one tensor")
        scope.bypass(node)
        return site
