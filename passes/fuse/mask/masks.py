"""What attention masks look like: constants so negative that Softmax gives nothing to a position.

A mask is added to the scores, or put in their place by Where. What is asked here is read off the graph alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.pipeline.rules import Scope, in_standard_domain

FILL = -60.0
"""What masked positions get; measured: nothing is slow between -30 and -70."""
CERTAIN = -1000.0
"""A constant at most this large in a summand of scores is a mask: scores lie within some tens."""
DOUBTFUL = -80.0
"""From here down to CERTAIN a constant is likely to be a mask, but may be a bias of positions."""
CLEAR = -10.0
"""A position whose mask is above this counts as unmasked."""
DEEPEST = 16

_VIEWS = frozenset(
    (
        *("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose"),
        *("Trilu", "Unsqueeze"),
    )
)
"""Hand values on; Trilu also puts in zeros."""
_SCALINGS = frozenset(("Cast", "Div", "Identity", "Mul", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
_PRODUCTS = frozenset(("Einsum", "Gemm", "MatMul"))


@dataclass(frozen=True)
class Fill:
    """What masked positions get.

    Attributes:
        value: the constant.
        certain: it is so large that it can only be a mask.
    """

    value: float
    certain: bool

    @classmethod
    def of(cls, value: float) -> Fill | None:
        """A fill, if ``value`` may be one."""
        return cls(value, value <= CERTAIN) if value <= DOUBTFUL else None


def fill_of(scope: Scope, mask: gs.Tensor, depth: int = DEEPEST) -> Fill | None:
    """The largest fill that a summand of scores holds; ``None`` where it does not look like a mask."""
    value = scope.editor.constant(mask)
    if value is not None:
        return Fill.of(float(np.min(value))) if value.size and value.dtype.kind == "f" else None
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
    found = [fill for tensor in given if (fill := fill_of(scope, tensor, depth - 1)) is not None]
    return min(found, key=lambda fill: fill.value, default=None)


def _written_fill(scope: Scope, node: gs.Node) -> Fill | None:
    """The fill that a node brings into a mask."""
    if node.op == "Where":
        values = [value for index in (1, 2) if (value := scope.constant(node, index)) is not None and value.size]
        return Fill.of(min((float(np.min(v)) for v in values if v.dtype.kind == "f"), default=0.0))
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        values = getattr(value, "values", value)
        return None if values is None else Fill.of(float(np.min(np.asarray(values))))
    for index in (0, 1):
        factor = scope.constant(node, index)
        if factor is not None and factor.size == 1:
            number = float(factor.reshape(-1)[0])
            before = scope.editor.producer(node.inputs[1 - index])
            if number > 0 and before is not None and before.op == "Sub":  # (x - 1) · 10000
                number = -number
            return Fill.of(number)
    return None


def hides_a_mask(scope: Scope, scores: gs.Tensor, depth: int = DEEPEST) -> bool:
    """Whether scores may hold a mask: they do not come from a product by scalings, views and small biases alone."""
    value = scope.editor.constant(scores)
    if value is not None:
        return value.dtype.kind != "f" or not value.size or float(np.min(value)) < FILL
    node = scope.editor.producer(scores)
    if node is None or not depth or not in_standard_domain(node):
        return True
    if node.op in _PRODUCTS:
        return False
    if node.op in ("Add", "Sub"):
        return any(hides_a_mask(scope, tensor, depth - 1) for tensor in node.inputs)
    if node.op not in _SCALINGS:
        return True
    if node.op in ("Mul", "Div"):
        return any(hides_a_mask(scope, t, depth - 1) for t in node.inputs if not _is_factor(scope, t))
    return hides_a_mask(scope, node.inputs[0], depth - 1)


def _is_factor(scope: Scope, tensor: gs.Tensor) -> bool:
    """Whether multiplying by ``tensor`` cannot mask single positions: it is constant, or one number."""
    shape = scope.shape(tensor)
    return scope.editor.constant(tensor) is not None or (shape is not None and all(dim == 1 for dim in shape))


def is_last_axis(scope: Scope, softmax: gs.Node) -> bool:
    """Whether a Softmax goes over the last axis, and over nothing else."""
    axis = int(softmax.attrs.get("axis", -1 if scope.model.opset >= 13 else 1))
    shape = scope.shape(softmax.inputs[0])
    return axis == -1 or (shape is not None and axis == len(shape) - 1)
