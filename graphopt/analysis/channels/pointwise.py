"""Rules for operators that work element by element, in windows, or reduce: channels pass through."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from graphopt.analysis.channels.linear import UNKNOWN, broadcast, padded, spatial
from graphopt.analysis.channels.op import Op, Unknown
from graphopt.analysis.channels.values import evaluate


def unary(op: Op) -> None:
    """One tensor in; further inputs are single numbers (Clip, Dropout)."""
    for index in range(1, len(op.node.inputs)):
        if op.has(index) and any(axis != () and op.size(axis) != 1 for axis in op.axes(index)):
            raise Unknown(f"{op.where} takes a tensor where a number is expected")
    for index in range(len(op.node.outputs)):
        op.emit(op.axes(0), index)


def elementwise(op: Op) -> None:
    """Several tensors, broadcast against each other."""
    present = [i for i in range(len(op.node.inputs)) if op.has(i)]
    if op.attr("axis") is not None or op.attr("broadcast"):
        raise Unknown(f"{op.where} broadcasts in the way of opsets below 7")
    op.emit(broadcast(op, [op.axes(i) for i in present]))


def divide(op: Op) -> None:
    """As ``elementwise``; zeros must not be written into the divisor or the exponent."""
    op.keep_values(1)
    elementwise(op)


def dead_elementwise(op: Op, seen: Mapping[int, float]) -> float:
    """The function's value at the constants that come in; 0 times anything is 0."""
    known = {i: _scalar(op, i, seen) for i in range(len(op.node.inputs)) if op.has(i)}
    if op.node.op == "Mul" and 0.0 in known.values():
        return 0.0
    if op.node.op == "Div" and known[0] == 0.0:
        return 0.0
    if op.node.op == "PRelu" and known[0] == 0.0:
        return 0.0
    if any(math.isnan(v) for v in known.values()):
        return UNKNOWN
    width = len(op.node.inputs)
    inputs = [np.array([known[i]], np.float32) if i in known else None for i in range(width)]
    if op.node.op in ("Clip", "Dropout"):
        inputs = [None if v is None else v if i == 0 else v.reshape(()) for i, v in enumerate(inputs)]
    result = evaluate(op.node.op, inputs, op.node.attrs, op.facts.model.opset)
    if result is None or result.size != 1 or not np.isfinite(float(result.reshape(-1)[0])):
        return UNKNOWN
    return float(result.reshape(-1)[0])


def _scalar(op: Op, index: int, seen: Mapping[int, float]) -> float:
    if index in seen:
        return seen[index]
    use = op.use(index)
    if use is None or not use.value.size or use.value.dtype.kind not in "fiu":
        return UNKNOWN
    flat = use.value.reshape(-1)
    return float(flat[0]) if bool(np.all(flat == flat[0])) else UNKNOWN


def dead_first(op: Op, seen: Mapping[int, float]) -> float:
    """Channels are moved, not computed with: all that come in must hold the same constant."""
    values = set(seen.values())
    return values.pop() if len(values) == 1 else UNKNOWN


def dead_zero(op: Op, seen: Mapping[int, float]) -> float:
    """0 stays 0; another constant does not stay constant (borders, sums, norms)."""
    return 0.0 if dead_first(op, seen) == 0.0 else UNKNOWN


def pool(op: Op) -> None:
    """A window slides over each channel by itself."""
    x = op.axes(0)
    spatial(op)
    for index in range(len(op.node.outputs)):
        op.emit([x[0], x[1], *(op.fresh(axis) for axis in range(2, len(x)))], index)


def dead_average(op: Op, seen: Mapping[int, float]) -> float:
    """The mean of a constant, unless zeros of the border count."""
    counts_border = padded(op) and bool(op.attr("count_include_pad", 0))
    return dead_zero(op, seen) if counts_border else dead_first(op, seen)


def global_pool(op: Op) -> None:
    """All positions of a channel become one."""
    x = op.axes(0)
    spatial(op)
    op.emit([x[0], x[1], *(() for _ in x[2:])])


def reduce(op: Op) -> None:
    """Axes named by attribute or input are reduced, by default all."""
    x = op.axes(0)
    named = op.ints(1, "axes") if op.node.op not in ("ArgMax", "ArgMin") else [int(op.attr("axis", 0))]
    if named is None and op.has(1):
        raise Unknown(f"{op.where} reduces axes known only at run time")
    if not named and op.attr("noop_with_empty_axes", 0):
        op.emit(x)
        return
    axes = {a % len(x) for a in named} if named else set(range(len(x)))
    for axis in axes:
        op.freeze(x[axis], f"{op.where} reduces over it")
    if op.attr("keepdims", 1):
        op.emit([() if a in axes else expr for a, expr in enumerate(x)])
    else:
        op.emit([expr for a, expr in enumerate(x) if a not in axes])


def softmax(op: Op) -> None:
    """Normalised along an axis (opset < 13: along all from that axis on)."""
    x = op.axes(0)
    legacy = op.facts.model.opset < 13
    axis = int(op.attr("axis", 1 if legacy else -1)) % len(x)
    for expr in x[axis:] if legacy else [x[axis]]:
        op.freeze(expr, f"{op.where} normalises over it")
    op.emit(x)


def local_norm(op: Op) -> None:
    """LRN and its like mix neighbouring channels."""
    x = op.axes(0)
    op.freeze(x[1], f"{op.where} mixes neighbouring channels")
    op.emit(x)
