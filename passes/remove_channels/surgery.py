"""The two steps of a removal: mask the channels (same shapes, zeros), then cut them out (smaller shapes)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.analysis.channels import Channels, Fold, Kept, SizeEdit, Use
from graphopt.analysis.channels.factors import Indices
from graphopt.model.model import Model

Array = npt.NDArray[Any]
Shared = dict[tuple[str, tuple[int, ...], bytes], gs.Constant]


def gone(kept: Indices, size: int) -> Indices:
    """The channels that do not stay: int64, ascending."""
    return np.setdiff1d(np.arange(size, dtype=np.int64), kept)


def mask(model: Model, channels: Channels, kept: Kept) -> None:
    """Set every entry that produces a removed channel to zero.

    A removed channel then is zero in every tensor, or a constant c where an operator maps 0 to c; at a consumer that
    sums it, c·ΣW goes into the bias and the weights of the channel are set to zero.
    """
    folds = [(group.number, fold) for group in channels.groups if group.number in kept for fold in group.folds]
    for number, fold in folds:
        _fold(model, channels, kept, number, fold)
    shared: Shared = {}
    for use in _touched(channels, kept):
        if not use.zeroed[0]:
            continue
        rows = [axis for axis in range(len(use.axes)) if axis not in use.columns]
        value = _current(model, use)
        masked = value.copy()
        for axis in rows:
            lost = gone(channels.remaining(use.axes[axis], kept), value.shape[axis])
            masked[(slice(None),) * axis + (lost,)] = 0
        _replace(model, use, masked, shared)


def cut(model: Model, channels: Channels, kept: Kept) -> None:
    """Take the removed channels out of every weight, attribute and shape."""
    shared: Shared = {}
    for use in _touched(channels, kept):
        value = _current(model, use)
        for axis, expr in enumerate(use.axes):
            value = np.take(value, channels.remaining(expr, kept), axis)
        _replace(model, use, np.ascontiguousarray(value), shared)
    for edit in channels.facts.edits:
        _resize(model, channels, kept, edit)


def _touched(channels: Channels, kept: Kept) -> list[Use]:
    """Every use of a constant that holds a removed channel, each once, in graph order."""
    seen: dict[tuple[int, int], Use] = {}
    for use in channels.facts.uses.values():
        if any(atom in kept for expr in use.axes for atom in channels.facts.atoms.leaves(expr)):
            seen[id(use.node), use.index] = use
    return list(seen.values())


def _current(model: Model, use: Use) -> Array:
    value = model.editor.constant(use.node.inputs[use.index])
    if value is None:  # pragma: no cover - uses are constants by construction
        raise ValueError(f"input {use.index} of {use.node.name} is no longer constant")
    return value


def _replace(model: Model, use: Use, value: Array, shared: Shared) -> None:
    """Give the use its new value; uses of one constant that get the same value go on sharing one."""
    key = (use.node.inputs[use.index].name, value.shape, value.tobytes())
    twin = shared.get(key)
    if twin is not None:
        model.editor.set_input(use.node, use.index, twin)
    else:
        shared[key] = model.editor.set_constant(use.node, use.index, value)


def _fold(model: Model, channels: Channels, kept: Kept, number: int, fold: Fold) -> None:
    site = fold.contraction
    use = channels.facts.uses[id(site.node), site.weight or 0]
    axis = next(iter(use.columns))
    labels = channels.facts.atoms.labels(use.axes[axis], number)
    lost = np.flatnonzero((labels >= 0) & ~np.isin(labels, kept[number]))
    weight = _current(model, use).astype(np.float64)
    outputs = next(a for a in range(weight.ndim) if a not in use.columns)
    entries = np.take(weight, lost, axis)
    push = entries.sum(axis=tuple(a for a in range(weight.ndim) if a != outputs)) * fold.constant
    add_bias(model, site.node, site.bias or 0, push)
    weight[(slice(None),) * axis + (lost,)] = 0
    model.editor.set_constant(use.node, use.index, weight.astype(use.value.dtype))


def add_bias(model: Model, node: gs.Node, index: int, push: npt.NDArray[np.float64]) -> None:
    """Add ``push`` [outputs] to the node's bias, made where there is none."""
    editor = model.editor
    present = index < len(node.inputs) and not node.inputs[index].is_empty()
    if present:
        bias = editor.constant(node.inputs[index])
        if bias is None:
            raise ValueError(f"the bias of {node.name} is not constant")
        editor.set_constant(node, index, (bias.astype(np.float64) + push).astype(bias.dtype))
        return
    weight = editor.constant(node.inputs[1])
    dtype = np.float32 if weight is None else weight.dtype
    editor.set_input(node, index, editor.add_constant(f"{node.name}_bias", push.astype(dtype)))


def _resize(model: Model, channels: Channels, kept: Kept, edit: SizeEdit) -> None:
    atoms = channels.facts.atoms
    if not any(a in kept for item in edit.template if not isinstance(item, int) for a in atoms.leaves(item)):
        return
    numbers = [n if isinstance(n, int) else len(channels.remaining(n, kept)) for n in edit.template]
    if isinstance(edit.target, str):
        model.editor.set_attr(edit.node, edit.target, numbers[0] if edit.scalar else numbers)
    else:
        fresh = model.editor.add_constant(f"{edit.node.name}_sizes", np.array(numbers, np.int64))
        model.editor.set_input(edit.node, edit.target, fresh)
    if edit.drop and edit.drop in edit.node.attrs:
        model.editor.set_attr(edit.node, edit.drop, None)
