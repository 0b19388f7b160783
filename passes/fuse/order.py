"""Walking and tidying a graph that rules are in the middle of rewriting."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from graphopt.model.algorithms import needed_tensors, stable_order
from graphopt.pipeline.rules import Scope


def nodes_in_order(scope: Scope) -> list[gs.Node]:
    """The top-level nodes, producers first; rules may have left them in another order."""
    nodes = scope.editor.nodes()
    position = {id(node): place for place, node in enumerate(nodes)}

    def before(place: int) -> list[int]:
        producers = (scope.editor.producer(t) for t in needed_tensors(nodes[place]))
        return [position[id(p)] for p in producers if p is not None and id(p) in position]

    return [nodes[place] for place in stable_order(len(nodes), before)]


def sweep(scope: Scope, nodes: Sequence[gs.Node | None]) -> None:
    """Remove nodes that nobody uses any more, and what only they used."""
    stack = [node for node in nodes if node is not None]
    while stack:
        node = stack.pop()
        if id(node) in scope.removed or len(node.outputs) == 0 or any(scope.used(t) for t in node.outputs):
            continue
        stack.extend(p for t in node.inputs if not t.is_empty() and (p := scope.editor.producer(t)) is not None)
        scope.remove(node)
