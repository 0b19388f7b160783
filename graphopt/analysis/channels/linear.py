"""Rules for operators that hold weights: what their channels are tied to, and what a masked channel becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from graphopt.analysis.channels.factors import Expr
from graphopt.analysis.channels.op import Op, Unknown

UNKNOWN = math.nan
"""A masked channel that is not one constant."""


def padded(op: Op) -> bool:
    """Whether a sliding window reaches over the border."""
    return any(op.attr("pads") or ()) or op.attr("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


def spatial(op: Op) -> None:
    """A sliding window needs every position."""
    op.freeze_all(op.axes(0)[2:], "a spatial axis")


def conv(op: Op) -> None:
    """X [N, C, …], W [M, C/g, …], B [M]."""
    x, w = op.axes(0), op.axes(1)
    spatial(op)
    op.freeze_all(w[2:], "a kernel axis")
    groups = int(op.attr("group", 1))
    if groups == 1:
        op.same(x[1], w[1])
        op.contract(w[1], 0, 1, 1, bias=2, uniform=not padded(op))
    else:
        _grouped(op, groups)
    if op.has(2):
        op.same(op.axes(2)[0], w[0])
    op.candidate(w[0])
    op.emit([x[0], w[0], *(op.fresh(axis) for axis in range(2, len(x)))])


def _grouped(op: Op, groups: int) -> None:
    x, w = op.axes(0), op.axes(1)
    inside, rows = op.fixed(w[1]), op.fixed(w[0])
    group, multiple = op.atoms.new(groups), op.atoms.new(rows // groups)
    op.same(x[1], group + w[1])
    op.same(w[0], group + multiple)
    if inside == 1:
        op.edit("group", [group], scalar=True)
        op.freeze(multiple, f"the channel multiplier of the depthwise {op.where}")
    else:
        op.freeze(group, f"whole groups of the grouped {op.where} stay")
        op.contract(w[1], 0, 1, 1, uniform=False)


def conv_transpose(op: Op) -> None:
    """X [N, C, …], W [C, M/g, …], B [M]."""
    x, w = op.axes(0), op.axes(1)
    spatial(op)
    op.freeze_all(w[2:], "a kernel axis")
    groups = int(op.attr("group", 1))
    out = w[1]
    op.same(x[1], w[0])
    if groups == 1:
        op.contract(w[0], 0, 1, 0, bias=2, uniform=False)
    else:
        inside = op.fixed(w[0]) // groups
        group, rest = op.atoms.new(groups), op.atoms.new(inside)
        op.same(w[0], group + rest)
        out = group + w[1]
        if inside == 1:
            op.edit("group", [group], scalar=True)
        else:
            op.freeze(group, f"whole groups of the grouped {op.where} stay")
            op.contract(rest, 0, 1, 0, uniform=False)
    if op.has(2):
        op.same(op.axes(2)[0], out)
    op.candidate(out)
    op.emit([x[0], out, *(op.fresh(axis) for axis in range(2, len(x)))])


def gemm(op: Op) -> None:
    """Y = αA'B' + βC."""
    a, b = op.axes(0), op.axes(1)
    ka, kb = (0 if op.attr("transA", 0) else 1), (1 if op.attr("transB", 0) else 0)
    op.same(a[ka], b[kb])
    plain = op.attr("alpha", 1.0) == op.attr("beta", 1.0) == 1.0
    op.contract(b[kb], 0, 1, kb, bias=2 if plain else None)
    out = [a[1 - ka], b[1 - kb]]
    if op.has(2):
        broadcast(op, [out, op.axes(2)])
    op.candidate(b[1 - kb])
    op.emit(out)


def matmul(op: Op) -> None:
    """Y[…, m, n] = Σ_k A[…, m, k]·B[…, k, n]."""
    a, b = op.axes(0), op.axes(1)
    if len(a) < 2 or len(b) < 2:
        raise Unknown(f"{op.where} multiplies a vector")
    op.same(a[-1], b[-2])
    if op.use(1) is not None:
        op.contract(b[-2], 0, 1, -2)
        op.candidate(b[-1])
    elif op.use(0) is not None:
        op.contract(a[-1], 1, 0, -1)
        op.candidate(a[-2])
    else:
        op.contract(a[-1], 0, None)
        if len(b) == 2:
            op.candidate(b[-1])
    op.emit([*broadcast(op, [a[:-2], b[:-2]]), a[-2], b[-1]])


def broadcast(op: Op, shapes: Sequence[Sequence[Expr]]) -> list[Expr]:
    """Tie the axes of several tensors right-aligned and return the result's; an axis of size 1 is tied to none."""
    rank = max(len(shape) for shape in shapes)
    out: list[Expr] = []
    for position in range(rank):
        column = [s[position - rank + len(s)] for s in shapes if position >= rank - len(s)]
        wide = [expr for expr in column if expr != () and op.size(expr) != 1]
        if any(op.size(e) is None for e in wide):
            # A size known only at run time may turn out to be 1: then this is no coupling but a broadcast.
            op.freeze_all(wide, f"{op.where} combines it with an axis of unknown size")
            known = [e for e in wide if op.size(e) is not None]
            out.append((known or wide)[0])
            continue
        for expr in wide[1:]:
            op.same(wide[0], expr)
        out.append(wide[0] if wide else ())
    return out


def batch_norm(op: Op) -> None:
    """Scale, bias, mean and variance follow the channels."""
    if op.attr("training_mode", 0) or len([o for o in op.node.outputs if not o.is_empty()]) > 1:
        raise Unknown(f"{op.where} is in training mode")
    x = op.axes(0)
    for index in range(1, 5):
        op.same(x[1], op.axes(index)[0])
    op.keep_values(3)
    op.keep_values(4)
    op.emit(x)


def instance_norm(op: Op) -> None:
    """Statistics are taken in each channel by itself."""
    x = op.axes(0)
    op.same(x[1], op.axes(1)[0])
    op.same(x[1], op.axes(2)[0])
    op.freeze_all(x[2:], "a spatial axis")
    op.emit(x)


def layer_norm(op: Op) -> None:
    """Statistics are taken over the last axes: they would change."""
    x = op.axes(0)
    axis = int(op.attr("axis", -1)) % len(x)
    for offset in range(len(x) - axis):
        op.freeze(x[axis + offset], f"{op.where} takes its statistics over the channels")
        for index in (1, 2):
            if op.has(index) and len(op.axes(index)) == len(x) - axis:
                op.same(x[axis + offset], op.axes(index)[offset])
    op.emit(x)
    for index in range(1, len(op.node.outputs)):
        op.emit([op.fresh(a, index) for a in range(len(x))], index)


def dead_rows(op: Op, seen: Mapping[int, float]) -> float:
    """The weight's rows and its bias are zero, whatever comes in."""
    if op.has(2) and seen.get(2) != 0.0:
        return UNKNOWN
    return 0.0 if 0.0 in (seen.get(0), seen.get(1)) else UNKNOWN


def dead_scale(op: Op, seen: Mapping[int, float]) -> float:
    """Scale and bias of the channel are zero."""
    return 0.0 if seen.get(1) == 0.0 and seen.get(2) == 0.0 else UNKNOWN
