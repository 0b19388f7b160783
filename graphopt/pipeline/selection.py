"""Which nodes a pass may touch: the `only` and `skip` options that every pass takes."""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.errors import UsageError
from graphopt.model.model import Model
from graphopt.nearest import did_you_mean

_OP = "op:"
_SPAN = ".."


@dataclass(frozen=True)
class Selection:
    """The nodes of one model state that a pass may touch, by identity of the node objects.

    Attributes:
        blocked: ``id`` of each top-level node that the user's words leave out; empty when everything is allowed.
    """

    blocked: frozenset[int] = frozenset()

    def allows(self, node: gs.Node) -> bool:
        """Whether the pass may touch ``node``. A node made by the pass itself is always allowed."""
        return id(node) not in self.blocked

    @staticmethod
    def of(model: Model, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Selection:
        """Resolve the patterns on a model.

        Each pattern is a node name, a glob over node names, ``op:TYPE`` (glob over op types) or a region
        ``FROM_TENSOR..TO_TENSOR`` (every node on a path from one tensor to the other).

        Raises:
            UsageError: GO-207, a pattern matches no node.
        """
        nodes = model.editor.nodes()
        blocked: set[int] = set()
        if only:
            chosen = _matches(nodes, model, only)
            blocked |= {id(n) for n in nodes if id(n) not in chosen}
        if skip:
            blocked |= _matches(nodes, model, skip)
        return Selection(frozenset(blocked))


def _matches(nodes: Sequence[gs.Node], model: Model, patterns: Iterable[str]) -> set[int]:
    found: set[int] = set()
    for pattern in patterns:
        hits = _match_one(nodes, model, pattern)
        if not hits:
            raise _no_match(nodes, model, pattern)
        found |= hits
    return found


def _no_match(nodes: Sequence[gs.Node], model: Model, pattern: str) -> UsageError:
    if _SPAN in pattern and not pattern.startswith(_OP):
        why, near = _why_no_region(nodes, model, pattern)
    else:
        names = [n.name for n in nodes] + sorted({f"{_OP}{n.op}" for n in nodes})
        why, near = None, did_you_mean(pattern, names, most=3)
    hint = near or "`graphopt inspect -vv` lists node names, op types and tensors"
    return UsageError("GO-207", f"the selection {pattern!r} matches no node", why=why, hint=hint)


def _why_no_region(nodes: Sequence[gs.Node], model: Model, pattern: str) -> tuple[str, str]:
    """Why a region holds no node, and what may have been meant; empty: nobody knows."""
    start, _, end = pattern.partition(_SPAN)
    tensors = {tensor.name for node in nodes for tensor in (*node.inputs, *node.outputs)}
    unknown = next((name for name in (start, end) if model.editor.tensor(name) is None), None)
    if unknown is not None:
        return f"there is no tensor {unknown!r}", did_you_mean(unknown, tensors, most=3)
    back = ", but one leads back" if _region(model, end, start) else ""
    return f"no path leads from {start!r} to {end!r}{back}", ""


def _match_one(nodes: Sequence[gs.Node], model: Model, pattern: str) -> set[int]:
    exact = {id(n) for n in nodes if n.name == pattern}
    if exact:
        return exact
    if pattern.startswith(_OP):
        return {id(n) for n in nodes if fnmatch.fnmatchcase(n.op, pattern.removeprefix(_OP))}
    if _SPAN in pattern:
        start, _, end = pattern.partition(_SPAN)
        return _region(model, start, end)
    return {id(n) for n in nodes if fnmatch.fnmatchcase(n.name, pattern)}


def _region(model: Model, start: str, end: str) -> set[int]:
    """Nodes reachable forward from tensor ``start`` and backward from tensor ``end``."""
    editor = model.editor
    first, last = editor.tensor(start), editor.tensor(end)
    if first is None or last is None:
        return set()
    forward = _walk(editor.consumers(first), lambda n: [c for o in n.outputs for c in editor.consumers(o)])
    producer = editor.producer(last)
    backward = _walk(
        [producer] if producer is not None else [],
        lambda n: [p for i in n.inputs if (p := editor.producer(i)) is not None],
    )
    return forward & backward


def _walk(start: Iterable[gs.Node], step: Callable[[gs.Node], Iterable[gs.Node]]) -> set[int]:
    seen: set[int] = set()
    queue = deque(start)
    while queue:
        node = queue.popleft()
        if id(node) in seen:
            continue
        seen.add(id(node))
        queue.extend(step(node))
    return seen
