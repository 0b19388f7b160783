"""What onnx's schemas ask of a node: the one place that reads them for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx
from onnx.defs import OpSchema


@dataclass(frozen=True)
class Demands:
    """What every node of an operator has.

    Attributes:
        inputs: least and most of them.
        outputs: likewise.
        single: index and name of each input that cannot be left out.
        kinds: name → type, an ``AttributeProto.AttributeType``, of each attribute.
        required: names of the attributes without a default.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    single: tuple[tuple[int, str], ...]
    kinds: Mapping[str, int]
    required: tuple[str, ...]


@cache
def demands_of(op: str, version: int) -> Demands | None:
    """What an operator of the standard domain asks of its nodes; ``None`` where onnx does not know it."""
    schema = schema_of(op, version)
    if schema is None:
        return None
    single = OpSchema.FormalParameterOption.Single
    return Demands(
        inputs=(schema.min_input, schema.max_input),
        outputs=(schema.min_output, schema.max_output),
        single=tuple((i, formal.name) for i, formal in enumerate(schema.inputs) if formal.option == single),
        kinds={name: int(attribute.type.value) for name, attribute in schema.attributes.items()},  # type: ignore[attr-defined]
        required=tuple(name for name, attribute in schema.attributes.items() if attribute.required),
    )


@cache
def schema_of(op: str, version: int, domain: str = "") -> OpSchema | None:
    """The schema of an operator in an operator set; ``None`` where onnx has none, or cannot represent the version."""
    try:
        return onnx.defs.get_schema(op, version, domain)
    except (onnx.defs.SchemaError, TypeError):
        return None
