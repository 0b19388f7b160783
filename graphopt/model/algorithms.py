"""Graph algorithms of graphopt's own: iterative, linear, and gentle to what is already right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.model.graph import EditGraph, node_bodies


class CycleError(ValueError):
    """The items depend on each other in a circle.

    Attributes:
        path: indices along the circle; each item depends on the one before it.
    """

    def __init__(self, path: Sequence[int]) -> None:
        super().__init__("cycle")
        self.path = tuple(path)


def stable_order(count: int, depends_on: Callable[[int], Iterable[int]]) -> list[int]:
    """Sorts items topologically by depth-first search, in O(items + dependencies).

    An order that is valid already is returned as it is; an item that comes too late is placed just before the first
    one that needs it.

    Args:
        count: number of items.
        depends_on: indices that must come before an item, in the order in which they should be placed.

    Raises:
        CycleError: with the circle's path.
    """
    order: list[int] = []
    state = bytearray(count)  # 0 new, 1 on the path, 2 placed
    for root in range(count):
        if state[root]:
            continue
        state[root] = 1
        path = [root]
        pending = [iter(depends_on(root))]
        while path:
            need = next((i for i in pending[-1] if state[i] != 2), None)
            if need is None:
                pending.pop()
                done = path.pop()
                state[done] = 2
                order.append(done)
            elif state[need] == 1:
                raise CycleError([*path[path.index(need) :], need][::-1])
            else:
                state[need] = 1
                path.append(need)
                pending.append(iter(depends_on(need)))
    return order


def needed_tensors(node: gs.Node) -> list[gs.Tensor]:
    """What a node reads: its inputs, then everything its subgraph bodies touch (their own tensors included)."""
    needed: list[gs.Tensor] = [t for t in node.inputs if t.name]
    stack = node_bodies(node)
    while stack:
        body = stack.pop()
        needed.extend(body.outputs)
        for inner in body.nodes:
            needed.extend(t for t in inner.inputs if t.name)
            stack.extend(node_bodies(inner))
    return needed


def sort_graph(graph: EditGraph) -> None:
    """Puts the nodes of ``graph`` and of every body in a valid order, moving as few as possible.

    Raises:
        ModelError: GO-304 with the path of a cycle.
    """
    for level in [graph, *graph.bodies()]:
        _sort_level(level)


def _sort_level(graph: EditGraph) -> None:
    nodes = list(graph.nodes)
    position = {id(node): index for index, node in enumerate(nodes)}

    def depends_on(index: int) -> list[int]:
        producers = (p for t in needed_tensors(nodes[index]) for p in t.inputs)
        return [position[id(p)] for p in producers if id(p) in position]

    try:
        order = stable_order(len(nodes), depends_on)
    except CycleError as cycle:
        where = cycle_text([nodes[i].name or nodes[i].op for i in cycle.path])
        raise ModelError("GO-304", "the graph has a cycle", where=where) from None
    if order != list(range(len(nodes))):
        graph.nodes[:] = [nodes[i] for i in order]


def cycle_text(names: Sequence[str]) -> str:
    """A cycle along ``names``, shortened when it is long."""
    shown = list(names) if len(names) <= 12 else [*names[:8], "…", *names[-3:]]
    return " -> ".join(shown)


def remove_dead_code(graph: EditGraph) -> int:
    """Removes nodes that no output needs, bodies included, and unlinks unused initializers.

    Linear in the graph's size, whatever is shared. Nodes without any output are kept: they can only be there for a
    side effect.

    Returns:
        How many nodes were removed.
    """
    live = _live_nodes(graph)
    removed = 0
    for level in [graph, *graph.bodies()]:
        dead = [node for node in level.nodes if id(node) not in live]
        if dead:
            level.nodes[:] = [node for node in level.nodes if id(node) in live]
            detach(dead)
            removed += len(dead)
    return removed


def _live_nodes(graph: EditGraph) -> set[int]:
    live: set[int] = set()
    stack: list[gs.Node] = [node for node in graph.nodes if not any(t.name for t in node.outputs)]
    for output in graph.outputs:
        stack.extend(output.inputs)
    while stack:
        node = stack.pop()
        if id(node) in live:
            continue
        live.add(id(node))
        for tensor in node.inputs:
            stack.extend(tensor.inputs)
        for body in node_bodies(node):
            stack.extend(inner for inner in body.nodes if not any(t.name for t in inner.outputs))
            for output in body.outputs:
                stack.extend(output.inputs)
    return live


def detach(nodes: Sequence[gs.Node]) -> None:
    """Unlinks nodes (and their bodies' nodes) from all tensors, in time linear in the links of those tensors."""
    gone: dict[int, gs.Node] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if id(node) in gone:
            continue
        gone[id(node)] = node
        for body in node_bodies(node):
            stack.extend(body.nodes)
    touched: dict[int, gs.Tensor] = {}
    for node in gone.values():
        for tensor in [*node.inputs, *node.outputs]:
            touched[id(tensor)] = tensor
        list.clear(node.inputs)
        list.clear(node.outputs)
    for tensor in touched.values():
        for links in (tensor.inputs, tensor.outputs):
            if any(id(node) in gone for node in links):
                kept = [node for node in links if id(node) not in gone]
                list.clear(links)
                list.extend(links, kept)
