"""Rule `static-shape`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Array, Dims, Rule, Scope, static


class StaticShape(Rule):
    """Replace what is asked of a shape by its value, where the dimensions asked for are fixed.

    Pattern: Shape (with ``start`` and ``end``, opset 15), Size; Gather or Slice with constant indices on the
    output of Shape.
    Conditions: every dimension that the result holds is a number; the others may be dynamic.
    Proof: inferred fixed dimensions follow from the fixed dimensions of the graph inputs, which runtimes
    enforce, by the operators' definitions. Gather and Slice pick from the vector of dimensions, so only the
    picked ones matter.
    Refuses: dimensions known by name only.
    """

    name: ClassVar[str] = "static-shape"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Shape", "Size", "Gather", "Slice"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if scope.editor.is_output(node.outputs[0]):
            return None
        value = _value(node, scope)
        if value is None:
            return None
        site = self.site(node, f"{node.op} of fixed dimensions became the constant {value.tolist()}")
        scope.become_constant(node, [value])
        return site


def _value(node: gs.Node, scope: Scope) -> Array | None:
    if node.op == "Shape":
        dims = _dims(node, scope)
        return None if dims is None else _vector(dims)
    if node.op == "Size":
        sizes = static(scope.shape(node.inputs[0]))
        return None if sizes is None else np.array(np.prod(sizes, dtype=np.int64), np.int64)
    producer = scope.producer(node.inputs[0])
    if producer is None or producer.op != "Shape" or not in_standard_domain(producer):
        return None
    dims = _dims(producer, scope)
    if dims is None:
        return None
    return _gathered(node, scope, dims) if node.op == "Gather" else _sliced(node, scope, dims)


def _dims(shape_node: gs.Node, scope: Scope) -> Dims | None:
    """What a Shape node gives, fixed or not; Python's slices clamp as the operator does."""
    shape = scope.shape(shape_node.inputs[0])
    if shape is None:
        return None
    return shape[shape_node.attrs.get("start", 0) : shape_node.attrs.get("end", len(shape))]


def _vector(dims: Dims) -> Array | None:
    sizes = static(dims)
    return None if sizes is None else np.array(sizes, np.int64)


def _gathered(node: gs.Node, scope: Scope, dims: Dims) -> Array | None:
    indices = scope.constant(node, 1)
    if indices is None or ((indices < -len(dims)) | (indices >= len(dims))).any():
        return None
    picked = _vector(tuple(dims[int(i)] for i in indices.reshape(-1)))
    return None if picked is None else picked.reshape(indices.shape)


def _sliced(node: gs.Node, scope: Scope, dims: Dims) -> Array | None:
    bounds = scope.ints(node, 1, "starts"), scope.ints(node, 2, "ends")
    step = (1,) if scope.input(node, 4) is None else scope.ints(node, 4)
    if bounds[0] is None or bounds[1] is None or step is None or len(bounds[0]) != 1 or step[0] <= 0:
        return None
    return _vector(dims[bounds[0][0] : bounds[1][0] : step[0]])
