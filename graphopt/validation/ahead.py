"""Where to compare two models whose discontinuous outputs disagree.

A rounding error of 1e-7 may flip an ArgMax: the output then says nothing about the rewrite. If everything
from some tensors on is the same in both models, comparing these tensors compares the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.model import Model

TensorPair = tuple[str, str]
"""Name of a tensor in the reference, name of its counterpart in the candidate."""

DISCONTINUOUS = frozenset(
    (
        *("ArgMax", "ArgMin", "Bernoulli", "Ceil", "DynamicQuantizeLinear", "Equal", "Floor", "Greater"),
        *("GreaterOrEqual", "Hardmax", "Less", "LessOrEqual", "Mod", "Multinomial", "NonMaxSuppression"),
        *("NonZero", "QuantizeLinear", "Round", "Shrink", "Sign", "ThresholdedRelu", "TopK", "Unique"),
    )
)
"""Operators whose outputs jump where their inputs hardly move; a Cast to integers or booleans is another."""


def pairs_ahead(reference: Model, candidate: Model, output: str) -> tuple[TensorPair, ...]:
    """Floating-point tensors which, if they agree, make ``output`` agree but for a jump.

    Walks back from the output through both models as long as the nodes are the same. It stops ahead of a
    discontinuous node, and where the models begin to differ.

    Args:
        reference: one model.
        candidate: its rewritten form.
        output: an output of both.

    Returns:
        Pairs of tensor names, in the order found; empty where the output stands behind no discontinuity that
        both models share, or where a tensor to compare is not floating point.
    """
    walk = _Walk(reference, candidate)
    starts = [_output(model, output) for model in (reference, candidate)]
    if starts[0] is None or starts[1] is None:
        return ()
    return walk.run(starts[0], starts[1])


class _Walk:
    def __init__(self, reference: Model, candidate: Model) -> None:
        self._models = (reference, candidate)
        self._pairs: dict[TensorPair, None] = {}
        self._jumps = 0

    def run(self, left: gs.Tensor, right: gs.Tensor) -> tuple[TensorPair, ...]:
        stack = [(left, right)]
        seen: set[tuple[int, int]] = set()
        while stack:
            pair = stack.pop()
            if (id(pair[0]), id(pair[1])) in seen:
                continue
            seen.add((id(pair[0]), id(pair[1])))
            ahead = self._step(*pair)
            if ahead is None:
                return ()
            stack.extend(ahead)
        return tuple(self._pairs) if self._jumps else ()

    def _step(self, left: gs.Tensor, right: gs.Tensor) -> list[tuple[gs.Tensor, gs.Tensor]] | None:
        """What lies ahead of one pair of tensors; ``None``: no way to compare them."""
        if left.is_empty() and right.is_empty():
            return []
        if self._same_leaf(left, right):
            return []
        nodes = [m.editor.producer(t) for m, t in zip(self._models, (left, right), strict=True)]
        first, second = nodes
        if first is None or second is None or not _same_node(first, second, left, right):
            return [] if self._record(left, right) else None
        inputs = list(zip(first.inputs, second.inputs, strict=True))
        if not _jumps(first, self._models[0]):
            return inputs
        self._jumps += 1
        rest = []
        for a, b in inputs:
            if a.is_empty() or self._same_leaf(a, b) or not self._record(a, b):
                rest.append((a, b))
        return rest

    def _same_leaf(self, left: gs.Tensor, right: gs.Tensor) -> bool:
        """Equal constants, or the same graph input."""
        values = [m.editor.constant(t) for m, t in zip(self._models, (left, right), strict=True)]
        if values[0] is not None and values[1] is not None:
            return values[0].dtype == values[1].dtype and np.array_equal(values[0], values[1])
        inputs = [m.editor.is_input(t) for m, t in zip(self._models, (left, right), strict=True)]
        return all(inputs) and left.name == right.name

    def _record(self, left: gs.Tensor, right: gs.Tensor) -> bool:
        """Note a pair to compare; ``False`` if it is not floating point or has no name to ask for."""
        kinds = [m.dtype_of(t) for m, t in zip(self._models, (left, right), strict=True)]
        if any(kind is None or np.dtype(kind).kind != "f" for kind in kinds):
            return False
        if not left.name or not right.name:
            return False
        self._pairs[(left.name, right.name)] = None
        return True


def _output(model: Model, name: str) -> gs.Tensor | None:
    return next((t for t in model.graph.outputs if t.name == name), None)


def _jumps(node: gs.Node, model: Model) -> bool:
    """Whether the node's outputs may jump where its inputs hardly move."""
    if node.op != "Cast":
        return node.op in DISCONTINUOUS
    kind = model.dtype_of(node.outputs[0])
    return kind is None or np.dtype(kind).kind != "f"


def _same_node(first: gs.Node, second: gs.Node, left: gs.Tensor, right: gs.Tensor) -> bool:
    """Same operator, attributes and number of inputs, and the two tensors are the same output of it."""
    if first.op != second.op or (first.domain or "") != (second.domain or ""):
        return False
    if len(first.inputs) != len(second.inputs):
        return False
    index = [next(i for i, o in enumerate(n.outputs) if o is t) for n, t in ((first, left), (second, right))]
    return index[0] == index[1] and _same_attributes(first.attrs, second.attrs)


def _same_attributes(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    if first.keys() != second.keys():
        return False
    return all(_same_value(first[key], second[key]) for key in first)


def _same_value(left: Any, right: Any) -> bool:
    if isinstance(left, gs.Graph) or isinstance(right, gs.Graph):
        return False
    if isinstance(left, gs.Constant) and isinstance(right, gs.Constant):
        return np.array_equal(left.values, right.values)
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.array_equal(left, right)
    return type(left) is type(right) and bool(left == right)
