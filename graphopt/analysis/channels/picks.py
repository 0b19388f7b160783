"""Gather along channels: constant indices that move whole runs of them, or deal them out like a channel shuffle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from graphopt.analysis.channels.factors import Expr, Indices, Mismatch
from graphopt.analysis.channels.layout import take
from graphopt.analysis.channels.op import Op, Unknown, total


def gather(op: Op) -> None:
    """Rows of the first input, picked by the second."""
    x, picked = op.axes(0), op.axes(1)
    axis = int(op.attr("axis", 0)) % len(x)
    followed = _followed(op, x[axis])
    if followed is not None:
        op.pick(x[axis], followed)
        op.emit([*x[:axis], followed, *x[axis + 1 :]])
        return
    # Not the second input's axes either: a masked index would be 0, which picks an entry as well.
    op.freeze_all([x[axis], *picked], f"{op.where} picks some of its entries")
    op.emit([*x[:axis], *picked, *x[axis + 1 :]])


def _followed(op: Op, expr: Expr) -> Expr | None:
    """What is picked from an axis, where that is its own factors in another order, or some of them."""
    use, size = op.use(1), op.size(expr)
    if use is None or use.value.ndim != 1 or use.value.size < 2 or size is None or op.atoms.is_frozen(expr):
        return None
    indices = np.where(use.value < 0, use.value + size, use.value).astype(np.int64)
    if indices.min() < 0 or indices.max() >= size:
        return None
    try:
        return _shuffled(op, expr, indices, size) or _runs(op, expr, indices, size)
    except (Mismatch, Unknown):
        return None


def _shuffled(op: Op, expr: Expr, indices: Indices, size: int) -> Expr | None:
    """Groups of channels dealt out in turn: [groups, each] turned to [each, groups] (Zhang et al. 2018, ShuffleNet)."""
    each = int(indices[1])
    if len(indices) != size or not 1 < each < size or size % each:
        return None
    if not np.array_equal(indices, np.arange(size).reshape(-1, each).T.reshape(-1)):
        return None
    groups, rest = take(op, op.atoms.resolve(expr), size // each, front=True)
    return rest + groups


def _runs(op: Op, expr: Expr, indices: Indices, size: int) -> Expr | None:
    """Runs of neighbours, each laid down whole, none twice."""
    begins = np.concatenate([[0], np.flatnonzero(np.diff(indices) != 1) + 1])
    if 2 * len(begins) > len(indices):  # what is picked one by one stays whole anyway
        return None
    spans = [(int(run[0]), int(run[-1]) + 1) for run in np.split(indices, begins[1:])]
    ordered = sorted(spans)
    if any(before[1] > after[0] for before, after in pairwise(ordered)):
        return None
    edges = sorted({0, size, *(edge for span in spans for edge in span)})
    pieces = op.cut(expr, [int(n) for n in np.diff(edges)])
    at = dict(zip(edges, pieces, strict=False))
    return total([at[first] for first, _ in spans])
