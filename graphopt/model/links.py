"""Who reads a tensor, kept true in linear time whatever is shared."""

from __future__ import annotations

import onnx_graphsurgeon as gs

_LAZY_ABOVE = 32
"""Readers above which a tensor's list of readers is put right lazily."""


class Links:
    """The reader lists of one model's tensors.

    Searching the readers of a tensor that thousands share (a scale, a zero point) once for each of them would be
    quadratic: such lists are put right when someone looks.
    """

    def __init__(self) -> None:
        self._stale: dict[int, gs.Tensor] = {}

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """The readers of ``tensor``, one entry a place; the tensor's own list."""
        if self._stale.pop(id(tensor), None) is not None:
            unique = {id(node): node for node in tensor.outputs}
            places = [node for node in unique.values() for source in node.inputs if source is tensor]
            list.clear(tensor.outputs)
            list.extend(tensor.outputs, places)
        found: list[gs.Node] = tensor.outputs
        return found

    def forget(self, tensor: gs.Tensor, node: gs.Node) -> None:
        """``node`` reads ``tensor`` in one place less."""
        if len(tensor.outputs) <= _LAZY_ABOVE:
            list.remove(tensor.outputs, node)
        else:
            self._stale[id(tensor)] = tensor

    def replace(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Makes ``tensor`` the input ``index`` of ``node``."""
        old = node.inputs[index]
        list.__setitem__(node.inputs, index, tensor)
        list.append(tensor.outputs, node)
        self.forget(old, node)

    def move(self, old: gs.Tensor, new: gs.Tensor, readers: list[gs.Node]) -> None:
        """Makes ``readers`` read ``new`` wherever they read ``old``."""
        moved = {id(node) for node in readers}
        for node in readers:
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    list.__setitem__(node.inputs, index, new)
                    list.append(new.outputs, node)
        kept = [node for node in old.outputs if id(node) not in moved]
        list.clear(old.outputs)
        list.extend(old.outputs, kept)

    def drop(self, node: gs.Node) -> None:
        """Unlinks a node from everything it reads and computes."""
        inputs = list(node.inputs)
        list.clear(node.inputs)
        for tensor in inputs:
            self.forget(tensor, node)
        node.outputs.clear()

    def settle(self) -> None:
        """Puts every list right."""
        for tensor in list(self._stale.values()):
            self.readers(tensor)


def new_ancestors(tensor: gs.Tensor) -> set[int]:
    """Ids of the nodes behind ``tensor``, back to the first that came from the source."""
    found: set[int] = set()
    stack = list(tensor.inputs)
    while stack:
        node = stack.pop()
        if id(node) not in found and getattr(node, "record", None) is None:
            found.add(id(node))
            stack.extend(producer for t in node.inputs for producer in t.inputs)
    return found
