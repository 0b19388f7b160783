"""Nodes against onnx's schemas: how many inputs and outputs an operator takes, and which attributes.

Only what onnxruntime refuses too is looked for; a node that it passes over is Constant, which it makes an initializer
of whatever its inputs and attributes are. Attributes that a schema does not list and deprecated operators are let pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import onnx
from onnx import AttributeProto
from onnx.defs import OpSchema

from graphopt.model.findings import Finding


@dataclass(frozen=True)
class _Signature:
    """What a schema asks of a node.

    Attributes:
        inputs: least and most of them.
        outputs: likewise.
        single: index and name of each input that cannot be left out.
        kinds: the type of each attribute.
        required: attributes without a default.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    single: tuple[tuple[int, str], ...]
    kinds: Mapping[str, int]
    required: tuple[str, ...]


def misfits(node: onnx.NodeProto, version: int) -> Iterator[Finding]:
    """What is wrong with a node of the standard domain whose operator onnx knows at ``version``: GO-304."""
    if node.op_type == "Constant":
        return
    signature = _signature(node.op_type, version)
    for kind, takes, found, (least, most) in (
        ("input", "takes", len(node.input), signature.inputs),
        ("output", "gives", len(node.output), signature.outputs),
    ):
        if not least <= found <= most:
            counted = f"{found} {kind}{'' if found == 1 else 's'}"
            yield _error(node, f"the node has {counted}, {node.op_type} {takes} {_range(least, most)}")
    for index, name in signature.single:
        if index < len(node.input) and not node.input[index]:
            yield _error(node, f"{node.op_type} needs its input {name}, the node leaves it out")
    present = {attribute.name: attribute.type for attribute in node.attribute}
    for name in signature.required:
        if name not in present:
            yield _error(node, f"{node.op_type} needs the attribute {name!r}, the node has none")
    for name, found in present.items():
        wanted = signature.kinds.get(name, found)
        if found != wanted:
            named, needed = (AttributeProto.AttributeType.Name(kind) for kind in (found, wanted))
            yield _error(node, f"attribute {name!r} of {node.op_type} is of type {named}, {needed} is needed")


def repeated_attributes(node: onnx.NodeProto) -> Iterator[Finding]:
    """Attributes that a node is given twice (GO-304): which value holds is for each reader to guess."""
    if len(node.attribute) > 1:
        for name, count in Counter(attribute.name for attribute in node.attribute).items():
            if count > 1:
                yield _error(node, f"attribute {name!r} is given {count} times")


def owner(node: onnx.NodeProto) -> str:
    """How a finding names a node, which may have no name."""
    if node.name:
        return f"node {node.name!r}"
    return f"the node that makes {list(node.output)}" if node.output else f"a node {node.op_type}"


@cache
def _signature(op: str, version: int) -> _Signature:
    schema = onnx.defs.get_schema(op, version, "")
    single = OpSchema.FormalParameterOption.Single
    return _Signature(
        inputs=(schema.min_input, schema.max_input),
        outputs=(schema.min_output, schema.max_output),
        single=tuple((i, formal.name) for i, formal in enumerate(schema.inputs) if formal.option == single),
        kinds={name: int(attribute.type.value) for name, attribute in schema.attributes.items()},  # type: ignore[attr-defined]
        required=tuple(name for name, attribute in schema.attributes.items() if attribute.required),
    )


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"at least {least}" if most >= (1 << 31) - 1 else f"{least} to {most}"


def _error(node: onnx.NodeProto, what: str) -> Finding:
    return Finding("GO-304", "error", what, owner(node), hint="export the model again")
