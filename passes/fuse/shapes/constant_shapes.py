"""Rule `constant-shapes`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.fuse.order import sweep
from graphopt.passes.fuse.shapes.shape_facts import ShapeFacts
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Array, GraphRule, Scope


class ConstantShapes(GraphRule):
    """Replace shape arithmetic that no input can change by its value.

    Pattern: a small integer tensor (int32 or int64, at most 64 elements), computed from Shape, Size and constants by
    Gather, Slice, Concat, Reshape, Transpose, Cast, Where, Equal, integer arithmetic and the like.
    Conditions: every element is a number in all runs: fixed dimensions, and formulas over dynamic ones in which
    those cancel; the tensor is no graph output. Chains that compute the amounts of a Pad, a Reshape's target or the
    bounds of a Slice are the usual places.
    Proof: dimensions are followed as symbols of the tensor and axis they come from, values as polynomials over
    those; a canonical polynomial without symbols is a number.
    Effect: some nodes of integer arithmetic less in each run. No model measured had any left after `simplify`.
    Refuses: dimensions known by name only, which may differ between two inputs; overflow of 32 bits; floating-point
    detours (a Cast to float and back).
    """

    name: ClassVar[str] = "constant-shapes"
    safety: ClassVar[Safety] = Safety.EXACT

    def apply(self, scope: Scope) -> tuple[list[Site], list[Skip]]:
        """See ``GraphRule.apply``."""
        facts = ShapeFacts.of(scope)
        sites = []
        for node in facts.order:
            if id(node) in scope.removed or not scope.selection.allows(node) or len(node.outputs) != 1:
                continue
            values = _fixed(node, facts)
            if values is None or not _is_edge(node, facts, scope):
                continue
            result = node.outputs[0]
            array = values.astype(scope.model.dtype_of(result))
            sites.append(self.site(node, f"computed {array.tolist()}, the same in every run"))
            readers = scope.editor.consumers(result)
            scope.editor.replace_uses(result, scope.editor.add_constant(result.name, array))
            sweep(scope, [node])
            scope.touch(readers)
        return sites, []


def _fixed(node: gs.Node, facts: ShapeFacts) -> Array | None:
    result = node.outputs[0]
    if node.op == "Constant" or getattr(facts.scope.model.dtype_of(result), "name", "") not in ("int32", "int64"):
        return None
    return facts.value(result) if facts.ints(result) is not None else None


def _is_edge(node: gs.Node, facts: ShapeFacts, scope: Scope) -> bool:
    """Whether somebody reads the result who does not become a constant as well."""
    result = node.outputs[0]
    if scope.editor.is_output(result):
        return False
    return any(
        len(reader.outputs) != 1
        or _fixed(reader, facts) is None
        or not scope.selection.allows(reader)
        or scope.editor.is_output(reader.outputs[0])
        for reader in scope.editor.consumers(result)
    )
