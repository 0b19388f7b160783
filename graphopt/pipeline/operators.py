"""Operators of the standard domain, and nodes of theirs, that rules leave alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real

import onnx
import onnx_graphsurgeon as gs

RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial"})
RANDOM |= {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
"""Their values are drawn; Dropout's in training mode."""
QUANTIZATION = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
"""Quantization that is already in a model stays as it is: runtimes look for its form."""

_Attribute = onnx.defs.OpSchema.AttrType
_LISTS = frozenset({_Attribute.INTS, _Attribute.FLOATS})
_NUMBERS: Mapping[_Attribute, type] = {
    **dict.fromkeys((_Attribute.INT, _Attribute.INTS), Integral),
    **dict.fromkeys((_Attribute.FLOAT, _Attribute.FLOATS), Real),
}


def is_deterministic(op: str, opset: int) -> bool:
    """Whether ONNX knows an operator in this operator set, and does not mark it as giving values of its own."""
    schema = _schema(op, opset)
    return schema is not None and not bool(getattr(schema, "non_deterministic", False))


def is_whole(node: gs.Node, opset: int) -> bool:
    """Whether a node of the standard domain has what its operator must have: operands, and numbers for attributes.

    Rules index what they match: a node that lacks an operand, or whose attribute is of another type than its
    operator's, is no form of anything. Operators that ONNX does not know are taken as they are.
    """
    needs = _needs(node.op, opset)
    if len(node.inputs) < needs.inputs or len(node.outputs) < needs.outputs:
        return False
    if any(node.inputs[index].is_empty() for index in needs.given):
        return False
    return needs.attributes <= node.attrs.keys() and all(
        _is_of(value, needs.types[name]) for name, value in node.attrs.items() if name in needs.types
    )


@dataclass(frozen=True)
class _Needs:
    """What every node of an operator has.

    Attributes:
        inputs: how many inputs at least.
        outputs: how many outputs at least.
        given: which inputs are never left out.
        attributes: names of those without a default.
        types: name → type, of attributes that are numbers.
    """

    inputs: int
    outputs: int
    given: tuple[int, ...]
    attributes: frozenset[str]
    types: Mapping[str, _Attribute]


@cache
def _needs(op: str, opset: int) -> _Needs:
    schema = _schema(op, opset)
    if schema is None:
        return _Needs(0, 0, (), frozenset(), {})
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return _Needs(
        schema.min_input,
        schema.min_output,
        tuple(index for index, formal in enumerate(schema.inputs) if formal.option == single),
        frozenset(name for name, formal in schema.attributes.items() if formal.required),
        {name: formal.type for name, formal in schema.attributes.items() if formal.type in _NUMBERS},
    )


def _is_of(value: object, kind: _Attribute) -> bool:
    items = value if kind in _LISTS and isinstance(value, Iterable) else [value]
    return all(isinstance(item, _NUMBERS[kind]) for item in items)


@cache
def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
