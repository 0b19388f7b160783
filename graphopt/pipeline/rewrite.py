"""Runs rules over a model until none applies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.contract import Site, Skip
from graphopt.pipeline.rules import Rule, Scope


def rewrite(scope: Scope, rules: Sequence[Rule]) -> tuple[list[Site], list[Skip]]:
    """Apply ``rules`` to a fixed point.

    A work list holds the nodes still to look at, in graph order; after an edit the nodes around it come back.
    Each edit re-queues its neighbours only, so the time grows with nodes plus edges, not with their product.

    Returns:
        What was changed, in order, and the reasons for what was left alone in the end.
    """
    queue = deque(scope.editor.nodes())
    waiting = {id(node) for node in queue}
    matching = _Index(rules)
    sites: list[Site] = []
    skips: dict[int, list[Skip]] = {}
    while queue:
        node = queue.popleft()
        waiting.discard(id(node))
        if id(node) in scope.removed or not scope.may_rewrite(node):
            continue
        site, skips[id(node)] = _first_site(node, scope, matching.of(node))
        if site is None:
            continue
        sites.append(site)
        scope.touch([node])
        for near in scope.touched:
            if id(near) not in waiting and id(near) not in scope.removed:
                waiting.add(id(near))
                queue.append(near)
        scope.touched.clear()
    left = [skip for key, found in skips.items() if key not in scope.removed for skip in found]
    return sites, left


def _first_site(node: gs.Node, scope: Scope, rules: Sequence[Rule]) -> tuple[Site | None, list[Skip]]:
    skips: list[Skip] = []
    for rule in rules:
        found = rule.apply(node, scope)
        if isinstance(found, Site):
            return found, []
        if found is not None:
            skips.append(found)
    return None, skips


class _Index:
    """Which rules look at which op types."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._by_op: dict[tuple[bool, str], list[Rule]] = {}

    def of(self, node: gs.Node) -> list[Rule]:
        key = (in_standard_domain(node), node.op)
        if key not in self._by_op:
            self._by_op[key] = [r for r in self._rules if r.ops is None or (key[0] and node.op in r.ops)]
        return self._by_op[key]
