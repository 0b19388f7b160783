"""The two steps of a removal: mask the channels (same shapes, zeros), then cut them out (smaller shapes)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.analysis.channels import Channels, Fold, Kept, Pick, SizeEdit, Use
from graphopt.analysis.channels.factors import Indices
from graphopt.model.model import Model

Array = npt.NDArray[Any]
Shared = dict[tuple[str, tuple[int, ...], bytes], gs.Constant]


def gone(kept: Indices, size: int) -> Indices:
    """The channels that do not stay: int64, ascending."""
    return np.setdiff1d(np.arange(size, dtype=np.int64), kept)


class Removal:
    """One removal: which channels stay, in which model.

    Args:
        model: the model to change.
        channels: its channel structure, of its own nodes.
        kept: channels that stay, by group.
    """

    def __init__(self, model: Model, channels: Channels, kept: Kept) -> None:
        self.model = model
        self.channels = channels
        self.kept = kept
        self._biases: list[Use] = []

    def mask(self) -> None:
        """Set every entry that produces a removed channel to zero.

        A removed channel then is zero in every tensor, or a constant c where an operator maps 0 to c; at a consumer
        that sums it, c·ΣW goes into the bias and the weights of the channel are set to zero.
        """
        for group in self.channels.groups:
            if group.number in self.kept:
                for fold in group.folds:
                    self._fold(group.number, fold)
        shared: Shared = {}
        for use in self._touched():
            if not use.zeroed[0]:
                continue
            masked = self._current(use).copy()
            for axis in (a for a in range(len(use.axes)) if a not in use.columns):
                lost = gone(self.channels.remaining(use.axes[axis], self.kept), masked.shape[axis])
                masked[(slice(None),) * axis + (lost,)] = 0
            self._replace(use, masked, shared)

    def cut(self) -> None:
        """Take the removed channels out of every weight, attribute and shape."""
        shared: Shared = {}
        for use in self._touched():
            value = self._current(use)
            for axis, expr in enumerate(use.axes):
                value = np.take(value, self.channels.remaining(expr, self.kept), axis)
            self._replace(use, np.ascontiguousarray(value), shared)
        for edit in self.channels.facts.edits:
            self._resize(edit)
        for pick in self.channels.facts.picks:
            self._renumber(pick)

    def add_bias(self, node: gs.Node, index: int, push: npt.NDArray[np.float64]) -> None:
        """Add ``push`` [outputs] to the node's bias; where there is none, one is made and shrinks with the outputs."""
        editor = self.model.editor
        if index < len(node.inputs) and not node.inputs[index].is_empty():
            bias = constant(self.model, node, index)
            editor.set_constant(node, index, (bias.astype(np.float64) + push).astype(bias.dtype))
            return
        weight = self.channels.facts.uses[id(node), 1]
        fresh = push.astype(weight.value.dtype)
        editor.set_input(node, index, editor.add_constant(f"{node.name}_bias", fresh))
        self._biases.append(Use(node, index, fresh, [weight.axes[output_axis(weight)]]))

    def _touched(self) -> list[Use]:
        """Every use of a constant that holds a removed channel, in graph order."""
        atoms = self.channels.facts.atoms
        uses = [*self.channels.facts.uses.values(), *self._biases]
        return [use for use in uses if any(a in self.kept for expr in use.axes for a in atoms.leaves(expr))]

    def _current(self, use: Use) -> Array:
        return constant(self.model, use.node, use.index)

    def _replace(self, use: Use, value: Array, shared: Shared) -> None:
        """Give the use its new value; uses of one constant that get the same value go on sharing one."""
        key = (use.node.inputs[use.index].name, value.shape, value.tobytes())
        twin = shared.get(key)
        if twin is not None:
            self.model.editor.set_input(use.node, use.index, twin)
        else:
            shared[key] = self.model.editor.set_constant(use.node, use.index, value)

    def _fold(self, number: int, fold: Fold) -> None:
        site = fold.contraction
        use = self.channels.facts.uses[id(site.node), site.weight or 0]
        axis = next(iter(use.columns))
        labels = self.channels.facts.atoms.labels(use.axes[axis], number)
        lost = np.flatnonzero((labels >= 0) & ~np.isin(labels, self.kept[number]))
        weight = self._current(use).astype(np.float64)
        others = tuple(a for a in range(weight.ndim) if a != output_axis(use))
        self.add_bias(site.node, site.bias or 0, np.take(weight, lost, axis).sum(axis=others) * fold.constant)
        weight[(slice(None),) * axis + (lost,)] = 0
        self.model.editor.set_constant(use.node, use.index, weight.astype(use.value.dtype))

    def _renumber(self, pick: Pick) -> None:
        """Let indices name the channels that stay by their new places."""
        atoms = self.channels.facts.atoms
        if not any(atom in self.kept for atom in atoms.leaves(pick.source)):
            return
        old = constant(self.model, pick.node, 1)
        named = old[self.channels.remaining(pick.picked, self.kept)] % (atoms.size(pick.source) or 1)
        fresh = np.searchsorted(self.channels.remaining(pick.source, self.kept), named)
        self.model.editor.set_constant(pick.node, 1, fresh.astype(old.dtype))

    def _resize(self, edit: SizeEdit) -> None:
        atoms = self.channels.facts.atoms
        sizes = [item for item in edit.template if not isinstance(item, int)]
        if not any(atom in self.kept for item in sizes for atom in atoms.leaves(item)):
            return
        numbers = [n if isinstance(n, int) else len(self.channels.remaining(n, self.kept)) for n in edit.template]
        editor = self.model.editor
        if isinstance(edit.target, str):
            editor.set_attr(edit.node, edit.target, numbers[0] if edit.scalar else numbers)
        else:
            fresh = editor.add_constant(f"{edit.node.name}_sizes", np.array(numbers, np.int64))
            editor.set_input(edit.node, edit.target, fresh)
        if edit.drop and edit.drop in edit.node.attrs:
            editor.set_attr(edit.node, edit.drop, None)


def output_axis(use: Use) -> int:
    """The axis of a weight that its consumer does not sum over: the first one that is not a column."""
    return next(axis for axis in range(use.value.ndim) if axis not in use.columns)


def constant(model: Model, node: gs.Node, index: int) -> Array:
    """The value of a constant input as it is now.

    Raises:
        ValueError: the input is not constant.
    """
    value = model.editor.constant(node.inputs[index])
    if value is None:
        raise ValueError(f"input {index} of {node.name} is not constant")
    return value
