"""What operators that keep the elements in row-major order do to dimensions; shared by rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.rules import Dims, Scope, static

VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Axis:
    """The size of one axis of a view's input.

    Attributes:
        index: which, ≥ 0.
    """

    index: int


Entry = int | Axis | None
"""A dimension of a view's output: a number, one of its input's own, or something else."""


def is_view(node: gs.Node | None) -> bool:
    """Whether a node keeps every element and their order, and changes the shape only."""
    return node is not None and node.op in VIEWS and in_standard_domain(node)


def output_dims(node: gs.Node, scope: Scope) -> list[Entry] | None:
    """The dimensions of a view's output, in terms of its input; ``None`` where that needs values not known."""
    shape = scope.shape(node.inputs[0])
    if shape is None:
        return None
    entries = _DIMS[node.op](node, shape, scope)
    if entries is None:
        return None
    inferred = scope.shape(node.outputs[0])
    known = inferred if inferred is not None and len(inferred) == len(entries) else [None] * len(entries)
    return [_settled(entry, size, shape) for entry, size in zip(entries, known, strict=True)]


def _settled(entry: Entry, size: int | str | None, shape: Dims) -> Entry:
    if isinstance(size, int):
        return size
    own = shape[entry.index] if isinstance(entry, Axis) else None
    return own if isinstance(own, int) else entry


def squeezed_axes(node: gs.Node, rank: int, scope: Scope) -> list[int] | None:
    """The axes that a Squeeze takes out of ``rank``, or an Unsqueeze puts into a result of ``rank``; sorted."""
    axes = scope.ints(node, 1, "axes")
    if axes is None or any(not -rank <= axis < rank for axis in axes):
        return None
    return sorted({axis % rank for axis in axes})


def _squeeze(node: gs.Node, shape: Dims, scope: Scope) -> list[Entry] | None:
    if "axes" not in node.attrs and scope.input(node, 1) is None:
        sizes = static(shape)
        gone = None if sizes is None else [axis for axis, size in enumerate(sizes) if size == 1]
    else:
        gone = squeezed_axes(node, len(shape), scope)
    return None if gone is None else [Axis(axis) for axis in range(len(shape)) if axis not in gone]


def _unsqueeze(node: gs.Node, shape: Dims, scope: Scope) -> list[Entry] | None:
    axes = scope.ints(node, 1, "axes")
    if axes is None:
        return None
    rank = len(shape) + len(axes)
    new = squeezed_axes(node, rank, scope)
    if new is None or len(new) != len(axes):
        return None
    own = iter(range(len(shape)))
    return [1 if axis in new else Axis(next(own)) for axis in range(rank)]


def _flatten(node: gs.Node, shape: Dims, scope: Scope) -> list[Entry] | None:
    axis = int(node.attrs.get("axis", 1))
    if not -len(shape) <= axis <= len(shape):
        return None
    cut = axis + len(shape) if axis < 0 else axis
    return [_product(shape, range(cut)), _product(shape, range(cut, len(shape)))]


def _product(shape: Dims, axes: Sequence[int]) -> Entry:
    """The product of some dimensions, where it is a number or one of them."""
    numbers = math.prod(size for axis in axes if isinstance(size := shape[axis], int))
    others = [axis for axis in axes if not isinstance(shape[axis], int)]
    if not others:
        return numbers
    return Axis(others[0]) if len(others) == 1 and numbers == 1 else None


def _reshape(node: gs.Node, shape: Dims, scope: Scope) -> list[Entry] | None:
    target = scope.ints(node, 1, "shape")
    if target is None:
        return None
    copies = not node.attrs.get("allowzero", 0)
    entries: list[Entry] = []
    for place, wanted in enumerate(target):
        if wanted == 0 and copies:
            if place >= len(shape):
                return None
            entries.append(Axis(place))
        else:
            entries.append(None if wanted == -1 else wanted)
    return completed(entries, shape)


def completed(entries: list[Entry], shape: Dims) -> list[Entry]:
    """``entries`` with the only unknown one found from what the others leave of ``shape``, where that is one axis."""
    if entries.count(None) != 1:
        return entries
    rest = _remainder(entries, shape)
    return [rest if entry is None else entry for entry in entries]


def _remainder(entries: Sequence[Entry], shape: Dims) -> Entry:
    left = [axis for axis in range(len(shape)) if Axis(axis) not in entries]
    rest = _product(shape, left)
    numbers = math.prod(entry for entry in entries if isinstance(entry, int))
    if isinstance(rest, int):
        return rest // numbers if numbers > 0 and rest % numbers == 0 else None
    dynamic = [axis for axis in left if not isinstance(shape[axis], int)]
    known = math.prod(size for axis in left if isinstance(size := shape[axis], int))
    return Axis(dynamic[0]) if len(dynamic) == 1 and known == numbers and numbers > 0 else None


_DIMS = {"Flatten": _flatten, "Reshape": _reshape, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze}
