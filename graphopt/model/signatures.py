"""Nodes against onnx's schemas: how many inputs and outputs an operator takes, and which attributes.

Calls of local functions likewise, against what the function declares.

Only what onnxruntime refuses too is looked for; a node that it passes over is Constant, which it makes an initializer
of whatever its inputs and attributes are. Deprecated operators are let pass, and so are attributes that refer to one of
the function that the node is in: what they are is for each call to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import AttributeProto

from graphopt.model.findings import Finding
from graphopt.model.schemas import Demands, demands_of

_TAKES_ANY = frozenset({"LayerNormalization"})
"""Operators whose schema lets any attribute pass, which Python is not told: measured over all, in onnx 1.23."""


def miscounts(node: onnx.NodeProto, version: int) -> Iterator[Finding]:
    """More or fewer inputs or outputs than an operator of the standard domain takes (GO-304)."""
    demands = _demands(node, version)
    if demands is None:
        return
    for kind, takes, found, (least, most) in (
        ("input", "takes", len(node.input), demands.inputs),
        ("output", "gives", len(node.output), demands.outputs),
    ):
        if not least <= found <= most:
            yield _error(node, f"the node has {_counted(found, kind)}, {node.op_type} {takes} {_range(least, most)}")


def miscalls(node: onnx.NodeProto, function: onnx.FunctionProto) -> Iterator[Finding]:
    """A call with more inputs than a local function takes, or another number of outputs than it gives (GO-304).

    Fewer inputs are let pass: onnxruntime takes those that are missing as left out (1.32, measured).
    """
    named = f"the function {function.name!r}"
    for kind, takes, found, (least, most) in (
        ("input", "takes", len(node.input), (0, len(function.input))),
        ("output", "gives", len(node.output), (len(function.output), len(function.output))),
    ):
        if not least <= found <= most:
            yield _error(node, f"the node has {_counted(found, kind)}, {named} {takes} {most}")


def misfits(node: onnx.NodeProto, version: int) -> Iterator[Finding]:
    """Inputs and attributes that an operator of the standard domain needs, and attributes it does not take (GO-304)."""
    demands = _demands(node, version)
    if demands is None:
        return
    for index, name in demands.single:
        if index < len(node.input) and not node.input[index]:
            yield _error(node, f"{node.op_type} needs its input {name}, the node leaves it out")
    present = {attribute.name for attribute in node.attribute}
    for name in demands.required:
        if name not in present:
            yield _error(node, f"{node.op_type} needs the attribute {name!r}, the node has none")
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            yield from _misfit(node, attribute, demands, version)


def _demands(node: onnx.NodeProto, version: int) -> Demands | None:
    """What is asked of a node; ``None``: nothing that onnxruntime looks at."""
    return None if node.op_type == "Constant" else demands_of(node.op_type, version)


def _misfit(node: onnx.NodeProto, attribute: onnx.AttributeProto, demands: Demands, version: int) -> Iterator[Finding]:
    """What is wrong with an attribute that has a value of its own."""
    wanted = demands.kinds.get(attribute.name)
    if wanted is None and node.op_type in _TAKES_ANY:
        return
    if wanted is None:
        yield _error(node, f"{node.op_type} of opset {version} has no attribute {attribute.name!r}")
    elif attribute.type != wanted:
        named, needed = (AttributeProto.AttributeType.Name(kind) for kind in (attribute.type, wanted))
        yield _error(node, f"attribute {attribute.name!r} of {node.op_type} is of type {named}, {needed} is needed")


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


def _counted(number: int, kind: str) -> str:
    return f"{number} {kind}{'' if number == 1 else 's'}"


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"at least {least}" if most >= (1 << 31) - 1 else f"{least} to {most}"


def _error(node: onnx.NodeProto, what: str) -> Finding:
    return Finding("GO-304", "error", what, owner(node), hint="export the model again")
