"""Rule `noop-slice`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope

_NO_END = 2**31 - 1  # the smallest of the values that exporters write for "to the end"


class NoopSlice(Rule):
    """Remove a Slice that takes everything.

    Pattern: Slice (bounds as attributes before opset 10, as inputs since).
    Conditions: bounds constant, every step 1; on each axis the start is 0, or so far negative that it is
    clamped to 0 on a known dimension; the end lies at or beyond a known dimension, or at 2³¹ - 1 or more.
    Proof: bounds are clamped to the dimension, so [0, end ≥ dimension) is the whole axis.
    Refuses: ends short of 2³¹ - 1 on an unknown dimension.
    """

    name: ClassVar[str] = "noop-slice"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Slice"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if not _takes_all(node, scope) or not scope.can_bypass(node):
            return None
        site = self.site(node, "removed Slice, which takes everything")
        scope.bypass(node)
        return site


def _takes_all(node: gs.Node, scope: Scope) -> bool:
    starts, ends = scope.ints(node, 1, "starts"), scope.ints(node, 2, "ends")
    if starts is None or ends is None:
        return False
    axes, steps = _axes(node, scope, len(starts)), _steps(node, scope, len(starts))
    if axes is None or steps is None or any(step != 1 for step in steps):
        return False
    if not len(starts) == len(ends) == len(axes) == len(steps):
        return False
    shape = scope.shape(node.inputs[0])
    if shape is not None and any(not -len(shape) <= axis < len(shape) for axis in axes):
        return False
    for axis, start, end in zip(axes, starts, ends, strict=True):
        dim = shape[axis] if shape is not None else None
        size = dim if isinstance(dim, int) else None
        from_start = start == 0 or (size is not None and start <= -size)
        to_end = end >= _NO_END or (size is not None and end >= size)
        if not (from_start and to_end):
            return False
    return True


def _axes(node: gs.Node, scope: Scope, count: int) -> tuple[int, ...] | None:
    if "axes" not in node.attrs and scope.input(node, 3) is None:
        return tuple(range(count))
    return scope.ints(node, 3, "axes")


def _steps(node: gs.Node, scope: Scope, count: int) -> tuple[int, ...] | None:
    return (1,) * count if scope.input(node, 4) is None else scope.ints(node, 4)
