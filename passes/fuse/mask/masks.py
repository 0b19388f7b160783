"""What attention masks look like: constants so negative that Softmax gives nothing to a position.

A mask is added to the scores, or put in their place by Where. What is asked here is read off the graph alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.pipeline.rules import Scope, in_standard_domain

FILL = -80.0
"""A constant at most this large masks: its exp, beside scores around 0, is about the smallest normal float32."""
DEEPEST = 16

_VIEWS = frozenset(
    (
        *("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose"),
        *("Trilu", "Unsqueeze"),
    )
)
"""Hand values on; Trilu also puts in zeros."""


@dataclass(frozen=True)
class Masked:
    """Masked scores and their Softmax.

    Attributes:
        softmax: the Softmax, over the last axis.
        mask: the summand, or the condition of the Where.
        fill: what masked positions get.
    """

    softmax: gs.Node
    mask: gs.Tensor
    fill: float


def places(scope: Scope) -> Iterator[Masked]:
    """Every Softmax of masked scores."""
    for softmax in scope.editor.nodes():
        found = masked(softmax, scope) if softmax.op == "Softmax" and in_standard_domain(softmax) else None
        if found is not None:
            yield found


def masked(softmax: gs.Node, scope: Scope) -> Masked | None:
    """The masked scores that ``softmax`` reads, if it does."""
    joint = scope.editor.producer(softmax.inputs[0])
    if joint is None or not in_standard_domain(joint) or not _over_last_axis(scope, softmax):
        return None
    if joint.op == "Add":
        for summand in joint.inputs:
            fill = fill_of(scope, summand)
            if fill is not None:
                return Masked(softmax, summand, fill)
    if joint.op == "Where":
        fill = _written_fill(scope, joint)
        return None if fill is None else Masked(softmax, joint.inputs[0], fill)
    return None


def fill_of(scope: Scope, mask: gs.Tensor, depth: int = DEEPEST) -> float | None:
    """The lowest fill that a summand of scores holds; ``None`` where it does not look like a mask."""
    value = scope.editor.constant(mask)
    if value is not None:
        return _fill(float(np.min(value))) if value.size and value.dtype.kind == "f" else None
    node = scope.editor.producer(mask)
    if node is None or not depth or not in_standard_domain(node):
        return None
    if node.op in ("Where", "Mul", "ConstantOfShape"):
        return _written_fill(scope, node)
    if node.op in _VIEWS:
        given = node.inputs if node.op == "Concat" else node.inputs[:1]
    elif node.op == "Add":
        given = node.inputs
    else:
        return None
    return min((fill for tensor in given if (fill := fill_of(scope, tensor, depth - 1)) is not None), default=None)


def _fill(value: float) -> float | None:
    return value if value <= FILL else None


def _written_fill(scope: Scope, node: gs.Node) -> float | None:
    """The fill that a node brings into a mask, or into scores."""
    if node.op == "Where":
        values = [value for index in (1, 2) if (value := scope.constant(node, index)) is not None and value.size]
        return _fill(min((float(np.min(v)) for v in values if v.dtype.kind == "f"), default=0.0))
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        values = getattr(value, "values", value)
        return None if values is None else _fill(float(np.min(np.asarray(values))))
    for index in (0, 1):
        factor = scope.constant(node, index)
        if factor is not None and factor.size == 1:
            number = float(factor.reshape(-1)[0])
            before = scope.editor.producer(node.inputs[1 - index])
            if number > 0 and before is not None and before.op == "Sub":  # (x - 1) · 10000
                number = -number
            return _fill(number)
    return None


def _over_last_axis(scope: Scope, softmax: gs.Node) -> bool:
    """Whether a Softmax goes over the last axis, and over nothing else."""
    axis = int(softmax.attrs.get("axis", -1 if scope.model.opset >= 13 else 1))
    shape = scope.shape(softmax.inputs[0])
    return axis == -1 or (shape is not None and axis == len(shape) - 1)
