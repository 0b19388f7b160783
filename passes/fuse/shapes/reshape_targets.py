"""Rule `reshape-targets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.passes.fuse.order import sweep
from graphopt.passes.fuse.shapes.shape_facts import ShapeFacts
from graphopt.passes.fuse.shapes.symbols import Term
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import GraphRule, Scope, label


class ReshapeTargets(GraphRule):
    """Write a computed Reshape target as a constant, and drop a Reshape or Expand to the shape there is.

    Pattern: Reshape whose target is computed; Expand.
    Conditions: (Reshape) each entry is a number, or the dimension that x itself has at that place, which 0 copies;
    at most one other, which is -1 already, or becomes -1 where all the rest are numbers ≥ 1. A -1 that can only be
    one number becomes that. ``[0, -1]`` becomes Flatten; a Reshape that gives x's own dimensions goes. (Expand) each
    entry is 1 or x's own dimension at that place, counted from behind, and there are not more of them than x has.
    Proof: 0 in a target stands for x's dimension at that place (``allowzero`` off); where a computed entry is that
    dimension, both forms hold the same number in every run. Elements are neither added nor lost, so one open entry is
    what the others leave. Broadcasting against 1 or against an equal dimension changes nothing.
    Effect: the nodes that computed the shape are gone. Measured together with `shared-shapes`, beside all others,
    one thread, AVX2, onnxruntime 1.32: MiniLM with 25 of them 1.08x [1.05, 1.10], an OCR recogniser with 5 of them
    1.04x [1.02, 1.05].
    Refuses: -1 newly written beside a copied dimension, since Reshape rejects it where that is 0; ``allowzero``;
    dimensions equal by name only.
    """

    name: ClassVar[str] = "reshape-targets"
    safety: ClassVar[Safety] = Safety.EXACT

    def apply(self, scope: Scope) -> tuple[list[Site], list[Skip]]:
        """See ``GraphRule.apply``."""
        facts = ShapeFacts.of(scope)
        sites: list[Site] = []
        for node in facts.order:
            if id(node) in scope.removed or not in_standard_domain(node) or not scope.may_rewrite(node):
                continue
            found = None
            if node.op == "Reshape":
                found = self._reshape(node, facts, scope)
            elif node.op == "Expand":
                found = self._expand(node, facts, scope)
            if found is not None:
                sites.append(found)
        return sites, []

    def _reshape(self, node: gs.Node, facts: ShapeFacts, scope: Scope) -> Site | None:
        if "shape" in node.attrs or node.attrs.get("allowzero", 0) or scope.constant(node, 1) is not None:
            return None
        sizes, wanted = facts.dims(node.inputs[0]), facts.value(node.inputs[1])
        target = None if sizes is None or wanted is None else _target(list(wanted.flat), sizes, facts)
        if target is None or sizes is None:
            return None
        chain = scope.producer(node.inputs[1])
        if facts.dims(node.outputs[0]) == sizes and scope.can_bypass(node):
            return self._dropped(node, chain, scope)
        site = self.site(node, f"its computed target became the constant {target}")
        if target == [0, -1] and len(sizes) >= 2 and scope.model.opset >= 9:
            flatten = scope.editor.add_node(
                "Flatten", [node.inputs[0]], attrs={"axis": 1}, outputs=[node.outputs[0]], name=f"{label(node)}_flatten"
            )
            scope.remove(node)
            scope.touch([flatten, *scope.editor.consumers(flatten.outputs[0])])
        else:
            constant = scope.editor.add_constant(f"{label(node)}_target", np.array(target, np.int64))
            scope.editor.set_input(node, 1, constant)
            scope.touch([node, *scope.editor.consumers(node.outputs[0])])
        sweep(scope, [chain])
        return site

    def _expand(self, node: gs.Node, facts: ShapeFacts, scope: Scope) -> Site | None:
        sizes, wanted = facts.dims(node.inputs[0]), facts.value(node.inputs[1])
        if sizes is None or wanted is None or wanted.size > len(sizes) or not scope.can_bypass(node):
            return None
        own = sizes[len(sizes) - wanted.size :]
        if any(entry not in (1, size) for entry, size in zip(wanted.flat, own, strict=True)):
            return None
        return self._dropped(node, scope.producer(node.inputs[1]), scope)

    def _dropped(self, node: gs.Node, chain: gs.Node | None, scope: Scope) -> Site:
        site = self.site(node, f"removed {node.op} to the shape there is")
        scope.bypass(node)
        sweep(scope, [chain])
        return site


def _target(wanted: Sequence[Term], sizes: Sequence[Term], facts: ShapeFacts) -> list[int] | None:
    """The constant target; ``None`` where there is none."""
    target: list[int | None] = []
    for place, entry in enumerate(wanted):
        if not isinstance(entry, int):
            target.append(0 if place < len(sizes) and entry == sizes[place] else None)
        elif entry == 0 and place >= len(sizes):
            return None
        else:
            target.append(entry)
    if target.count(None) + target.count(-1) > 1:
        return None
    if -1 in target:
        known = [sizes[place] if entry == 0 else entry for place, entry in enumerate(target) if entry != -1]
        rest = _rest(sizes, [term for term in known if term is not None], facts)
        return [rest if entry == -1 else entry for entry in target if entry is not None]
    if None in target and 0 in target:
        return None
    return [-1 if entry is None else entry for entry in target]


def _rest(sizes: Sequence[Term], known: Sequence[Term], facts: ShapeFacts) -> int:
    """What -1 stands for, where that is one number ≥ 1 in all runs; else -1."""
    rest = facts.algebra.quotient(facts.algebra.product(sizes), facts.algebra.product(known))
    return rest if isinstance(rest, int) and rest >= 1 else -1
