"""Where a graph and its bodies begin and end, looked up in constant time however many outputs there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import onnx_graphsurgeon as gs

from graphopt.model.graph import EditGraph


class Ends:
    """Inputs, outputs and names of one model's levels; made anew where bodies come or go.

    Args:
        levels: the top-level graph, then all bodies.
    """

    def __init__(self, levels: Sequence[EditGraph]) -> None:
        self._bodies = levels[1:]
        self._inputs = {id(tensor) for level in levels for tensor in level.inputs}
        self._outputs: dict[int, list[tuple[EditGraph, int]]] = {}
        for level in levels:
            for index, tensor in enumerate(level.outputs):
                self._outputs.setdefault(id(tensor), []).append((level, index))

    def is_input(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is an input of some level."""
        return id(tensor) in self._inputs

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is an output of some level."""
        return id(tensor) in self._outputs

    def remove_input(self, tensor: gs.Tensor) -> None:
        """``tensor`` is an input no longer."""
        self._inputs.discard(id(tensor))

    def replace_output(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Makes ``new`` the output wherever ``old`` is one."""
        places = self._outputs.pop(id(old), [])
        for level, index in places:
            level.outputs[index] = new
        if places:
            self._outputs.setdefault(id(new), []).extend(places)

    def is_taken_within(self, level: EditGraph, name: str) -> bool:
        """Whether a body within ``level`` defined a tensor of that name: it would hide one of ``level`` itself.

        Tensors made since do not count: their names are new to the whole model.
        """
        return name in self._names_within.get(id(level), ())

    @cached_property
    def _names_within(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for body in self._bodies:
            names = {tensor.name for tensor in (*body.inputs, *body.envelope.constants)}
            names.update(tensor.name for node in body.nodes for tensor in node.outputs)
            around = body.parent
            while around is not None:
                found.setdefault(id(around), set()).update(names)
                around = around.parent
        return found
