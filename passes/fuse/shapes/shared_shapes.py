"""Rule `shared-shapes`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.fuse.order import sweep
from graphopt.passes.fuse.shapes.shape_facts import ShapeFacts
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import GraphRule, Scope, label


class SharedShapes(GraphRule):
    """Compute each dynamic shape once for the whole model.

    Pattern: small integer tensors (int32 or int64, at most 64 elements) that hold the same numbers in every run,
    though computed by different chains: Shape of two activations of one size, Gather, Unsqueeze and Concat beside
    every Reshape.
    Conditions: equal type and shape, and element for element equal polynomials over dimensions (of one tensor and
    axis each); the later one is no graph output.
    Proof: as for `constant-shapes`; the earlier tensor in topological order takes the later one's readers, so that
    no cycle can arise.
    Effect: measured together with `reshape-targets`, which see.
    Refuses: elements that depend on data; dimensions equal by name only.
    """

    name: ClassVar[str] = "shared-shapes"
    safety: ClassVar[Safety] = Safety.EXACT

    def apply(self, scope: Scope) -> tuple[list[Site], list[Skip]]:
        """See ``GraphRule.apply``."""
        facts = ShapeFacts.of(scope)
        first: dict[Hashable, gs.Tensor] = {}
        sites: list[Site] = []
        for node in facts.order:
            if id(node) in scope.removed or len(node.outputs) != 1 or node.op == "Constant":
                continue
            result = node.outputs[0]
            key = _key(result, facts, scope)
            earlier = None if key is None else first.setdefault(key, result)
            if earlier is None or earlier is result:
                continue
            if not scope.selection.allows(node) or scope.editor.is_output(result):
                continue
            producer = scope.editor.producer(earlier)
            sites.append(self.site(node, f"always equals {label(producer) if producer is not None else earlier.name}"))
            readers = scope.editor.consumers(result)
            scope.editor.replace_uses(result, earlier, consumers=readers)
            sweep(scope, [node])
            scope.touch(readers)
        return sites, []


def _key(tensor: gs.Tensor, facts: ShapeFacts, scope: Scope) -> Hashable | None:
    kind = getattr(scope.model.dtype_of(tensor), "name", "")
    elements = facts.value(tensor) if kind in ("int32", "int64") else None
    if elements is None or elements.size == 0 or not scope.used(tensor):
        return None
    return kind, elements.shape, tuple(elements.flat)
