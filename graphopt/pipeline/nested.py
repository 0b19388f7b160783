"""What is said of nodes that a pass does not look into: bodies of control flow, and local functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_graphsurgeon as gs

from graphopt.model.graph import node_bodies
from graphopt.model.model import Model
from graphopt.pipeline.contract import Skip
from graphopt.pipeline.selection import Selection


def nested_skips(
    model: Model, selection: Selection, concerns: Callable[[gs.Node], bool] = lambda _: True
) -> tuple[Skip, ...]:
    """One reason for each node whose inside a pass that works on the top level leaves alone.

    Args:
        model: the model, as the pass leaves it.
        selection: nodes that the user leaves out need no reason.
        concerns: whether the pass would look at such a node on the top level; functions are named whatever they hold.
    """
    functions = set(model.functions)
    found = []
    for node in model.editor.nodes():
        if not selection.allows(node):
            continue
        if (node.domain or "", node.op) in functions:
            found.append(Skip(node.name, f"the nodes of the function {node.op} are left as they are"))
        elif any(concerns(inner) for inner in _inside(node)):
            found.append(Skip(node.name, f"the nodes in the bodies of this {node.op} are left as they are"))
    return tuple(found)


def _inside(node: gs.Node) -> Iterator[gs.Node]:
    """The nodes of all bodies in a node."""
    graphs = list(node_bodies(node))
    while graphs:
        for inner in graphs.pop().nodes:
            yield inner
            graphs += node_bodies(inner)
