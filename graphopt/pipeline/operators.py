"""Operators of the standard domain, and nodes of theirs, that rules leave alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real

import onnx_graphsurgeon as gs
from onnx import AttributeProto

from graphopt.model.schemas import demands_of, schema_of

RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial"})
RANDOM |= {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
"""Their values are drawn; Dropout's in training mode."""
QUANTIZATION = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
"""Quantization that is already in a model stays as it is: runtimes look for its form."""

_LISTS = frozenset({AttributeProto.INTS, AttributeProto.FLOATS})
_NUMBERS: Mapping[int | None, type] = {
    **dict.fromkeys((AttributeProto.INT, AttributeProto.INTS), Integral),
    **dict.fromkeys((AttributeProto.FLOAT, AttributeProto.FLOATS), Real),
}


def is_deterministic(op: str, opset: int) -> bool:
    """Whether ONNX knows an operator in this operator set, and does not mark it as giving values of its own."""
    schema = schema_of(op, opset)
    return schema is not None and not bool(getattr(schema, "non_deterministic", False))


def is_whole(node: gs.Node, opset: int) -> bool:
    """Whether a node of the standard domain has what its operator must have: operands, and numbers for attributes.

    Rules index what they match: a node that lacks an operand, or whose attribute is of another type than its
    operator's, is no form of anything. Operators that ONNX does not know are taken as they are.
    """
    demands = demands_of(node.op, opset)
    if demands is None:
        return True
    if len(node.inputs) < demands.inputs[0] or len(node.outputs) < demands.outputs[0]:
        return False
    if any(node.inputs[index].is_empty() for index, _ in demands.single):
        return False
    return node.attrs.keys() >= set(demands.required) and all(
        _is_of(value, demands.kinds.get(name)) for name, value in node.attrs.items()
    )


def _is_of(value: object, kind: int | None) -> bool:
    """Whether an attribute's value is what its kind asks for; only numbers are looked at."""
    if kind not in _NUMBERS:
        return True
    items = value if kind in _LISTS and isinstance(value, Iterable) else [value]
    return all(isinstance(item, _NUMBERS[kind]) for item in items)
