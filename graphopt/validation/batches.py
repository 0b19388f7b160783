"""Feeds of another batch than the samples have: a rewrite that takes one batch for the only one shows there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graphopt.data.samples import Array, Feed
from graphopt.model.interface import Interface, TensorSpec

MOST_ELEMENTS = 1 << 24
"""Larger inputs are not doubled."""


def larger_batch(interface: Interface, feeds: Sequence[Feed]) -> Feed | None:
    """Two feeds as one batch; ``None`` where the model takes one batch only, or the two do not go together.

    Batch dimensions are the first of each input that is not a number, and every other one of the same name.

    Args:
        interface: of the model.
        feeds: at least one; the second, or the first again, is put behind the first.
    """
    names = {spec.shape[0] for spec in interface.inputs if spec.shape and isinstance(spec.shape[0], str)}
    first, second = feeds[0], feeds[min(1, len(feeds) - 1)]
    joined: dict[str, Array] = {}
    for spec in interface.inputs:
        if spec.name not in first or spec.name not in second:
            continue  # it has a default value
        axis = _batch_axis(spec, names)
        values = [first[spec.name], second[spec.name]]
        if axis is None:
            joined[spec.name] = values[0]
        elif not _go_together(values, axis):
            return None
        else:
            joined[spec.name] = np.concatenate(values, axis)
    changed = any(value is not first[name] for name, value in joined.items())
    size = sum(math.prod(value.shape) for value in joined.values() if isinstance(value, np.ndarray))
    return {**first, **joined} if changed and size <= MOST_ELEMENTS else None


def _batch_axis(spec: TensorSpec, names: set[str]) -> int | None:
    if spec.kind != "tensor" or not spec.shape:
        return None
    if not isinstance(spec.shape[0], int):
        return 0
    return next((axis for axis, dim in enumerate(spec.shape) if dim in names), None)


def _go_together(values: Sequence[Array], axis: int) -> bool:
    if not all(isinstance(value, np.ndarray) and value.ndim > axis for value in values):
        return False
    rest = [value.shape[:axis] + value.shape[axis + 1 :] for value in values]
    return rest[0] == rest[1] and values[0].dtype == values[1].dtype
