"""Constants as passes see them: initializers and the outputs of Constant nodes, always read-only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.model.arrays import Array, frozen
from graphopt.model.graph import EditConstant, RawAttribute

_SCALAR_FORMS: dict[str, npt.DTypeLike] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}
"""Attributes of a Constant node that hold no tensor, and the element type each stands for."""


def settled(constant: gs.Constant) -> Array:
    """A constant's array, read-only from now on, also where it was put in past the editor."""
    array: Array = constant.values
    if array.flags.writeable:
        array = constant._values = frozen(array)
    return array


def node_value(node: gs.Node) -> Array | None:
    """The value of a Constant node; ``None`` for a sparse one."""
    for key, value in node.attrs.items():
        if isinstance(value, gs.Constant):
            return settled(value)
        if key in _SCALAR_FORMS and not isinstance(value, RawAttribute):
            return frozen(np.array(value, dtype=_SCALAR_FORMS[key]))
    return None


def attribute_value(value: Any) -> Any:
    """An attribute value as the editing view holds it: arrays as tensors, numpy scalars as numbers, lists."""
    if isinstance(value, np.ndarray):
        return EditConstant("", frozen(value))
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple) else value
