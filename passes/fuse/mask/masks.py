"""What attention masks look like: constants so negative that Softmax gives nothing to a position.

A mask is added to the scores, or put in their place by Where. What is asked here is read off the graph alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.rules import Array, Scope

FILL = -80.0
"""A constant at most this large masks: its exp, beside scores around 0, is about the smallest normal float32."""

_VIEWS = frozenset(
    (
        *("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose"),
        *("Trilu", "Unsqueeze"),
    )
)
"""Hand on the values of their first input; Trilu also puts in zeros."""


def mask_fill(scores: gs.Tensor, scope: Scope) -> float | None:
    """The lowest constant that masks ``scores``; ``None`` where they do not look masked."""
    joint = scope.producer(scores)
    if joint is None or joint.op not in ("Add", "Where") or not in_standard_domain(joint):
        return None
    lowest = min(_constants(scores, scope), default=0.0)
    return lowest if lowest <= FILL else None


def _constants(scores: gs.Tensor, scope: Scope) -> Iterator[float]:
    """The lowest numbers of the constants that ``scores`` are put together from, through sums, choices and views."""
    stack, seen = [scores], set()
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        value = scope.editor.constant(tensor)
        node = scope.producer(tensor)
        if value is not None:
            yield from _least(value)
        elif node is not None and in_standard_domain(node):
            if node.op in ("Add", "Concat"):
                stack.extend(node.inputs)
            elif node.op == "Where":
                stack.extend(node.inputs[1:])
            elif node.op in _VIEWS:
                stack.append(node.inputs[0])
            else:
                yield from _written(node, scope)


def _written(node: gs.Node, scope: Scope) -> Iterator[float]:
    """The constants that a node brings into a mask as a fill or a factor."""
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        yield from () if value is None else _least(np.asarray(getattr(value, "values", value)))
    elif node.op == "Mul":
        for index in (0, 1):
            factor = scope.constant(node, index)
            if factor is not None and factor.size == 1:
                before = scope.producer(node.inputs[1 - index])
                turned = before is not None and before.op == "Sub"  # (x - 1) · 10000
                yield from (-abs(number) if turned else number for number in _least(factor))


def _least(value: Array) -> Iterator[float]:
    if value.size and value.dtype.kind == "f":
        yield float(np.min(value))
