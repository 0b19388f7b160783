"""What the small integer tensors of a graph hold: shapes, pads, split sizes.

Exporters compute them inside the graph (Shape → Gather → Concat → Reshape), and slicing channels must know which of
those numbers are channel counts. A value is an object array whose elements are an int, a ``Dim`` (the size of some
axis) or ``None`` (known only at run time).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphopt.analysis.channels.factors import Atoms, Expr

Value = npt.NDArray[np.object_]
Array = npt.NDArray[Any]
LIMIT = 1 << 12
"""Largest tensor, in elements, whose value is followed."""

MOVES = {"Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Identity", "Reshape", "Flatten"}
"""Operators that move elements about and compute nothing."""


@dataclass(frozen=True)
class Dim:
    """The size of an axis, read by a Shape operator."""

    expr: Expr


Element = Dim | int | None


def elements(value: Value) -> list[Element]:
    """The elements of a value, in row-major order."""
    found: list[Element] = value.reshape(-1).tolist()
    return found


def evaluate(op: str, inputs: Sequence[Array | None], attrs: Mapping[str, Any], opset: int) -> Array | None:
    """One operator on constants, by onnx's reference implementation; ``None`` where it has none for these.

    Args:
        op: operator of the default domain, deterministic.
        inputs: its inputs, ``None`` for an omitted one.
        attrs: attributes as Python values, strings and arrays.
        opset: version of the default domain.
    """
    names = [f"i{k}" if value is not None else "" for k, value in enumerate(inputs)]
    feeds = {f"i{k}": value for k, value in enumerate(inputs) if value is not None}
    try:
        plain: dict[str, Any] = {key: _attribute(given) for key, given in attrs.items()}
        node = helper.make_node(op, names, ["y"], **plain)
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ]
        graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name="y")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        results: Any = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # the reference implementation raises whatever numpy raises
        return None
    return np.asarray(results[0]) if isinstance(results[0], np.ndarray | np.generic) else None


def _attribute(value: Any) -> Any:
    """An attribute as ``make_node`` takes it; a tensor of the graph view has its array in ``values``."""
    array = value if isinstance(value, np.ndarray) else getattr(value, "values", None)
    return numpy_helper.from_array(array) if isinstance(array, np.ndarray) else value


def as_int(element: Element, atoms: Atoms) -> int | None:
    """The element as a number: an int, or the size of an axis that is never sliced."""
    if isinstance(element, Dim):
        return atoms.size(element.expr) if atoms.is_frozen(element.expr) else None
    return element


def lift(array: Array) -> Value:
    """A constant as a value."""
    out = np.empty(array.shape, object)
    out[...] = array.tolist() if array.ndim else array.item()
    return out


def lower(value: Value, atoms: Atoms) -> Array | None:
    """The value as int64, or ``None`` where an element is not known."""
    numbers = [as_int(element, atoms) for element in elements(value)]
    if any(n is None for n in numbers):
        return None
    return np.array(numbers, np.int64).reshape(value.shape)


def move(op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any], atoms: Atoms, opset: int) -> Value | None:
    """What an operator of ``MOVES`` makes of its first input (all inputs: Concat).

    The operator is run on the positions of the elements, then the elements are laid out accordingly.
    """
    data = inputs if op == "Concat" else inputs[:1]
    flat: list[Element] = []
    arrays: list[Array | None] = []
    for value in data:
        if value is None:
            return None
        arrays.append(np.arange(len(flat), len(flat) + value.size, dtype=np.int64).reshape(value.shape))
        flat.extend(elements(value))
    for value in inputs[len(data) :]:
        arrays.append(None if value is None else lower(value, atoms))
    if op in ("Cast", "Identity"):
        return data[0]
    positions = evaluate(op, arrays, attrs, opset)
    if positions is None:
        return None
    out = np.empty(positions.shape, object)
    for index in np.ndindex(positions.shape):
        out[index] = flat[int(positions[index])]
    return out
