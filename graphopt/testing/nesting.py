"""The same model, its nodes put where many passes do not look: into a branch, or into a local function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto, helper

DOMAIN = "graphopt.testing"
"""Domain of the local function."""


def variants(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Where the nodes are now, in words, and the model; none for a model with bodies or functions of its own."""
    nested = any(a.type in (a.GRAPH, a.GRAPHS) for node in proto.graph.node for a in node.attribute)
    if nested or proto.functions or not proto.graph.node:
        return
    yield "in the branches of an If", in_branches(proto)
    yield "in a local function", in_function(proto)


def in_branches(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All nodes in both branches of an If, weights outside; a new input ``condition`` chooses, and both agree."""
    outer = _shell(proto)
    outer.graph.input.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
    names = [value.name for value in proto.graph.output]
    branches = {f"{which}_branch": _branch(proto, which) for which in ("then", "else")}
    outer.graph.node.append(helper.make_node("If", ["condition"], names, name="choice", **branches))
    return outer


def _branch(proto: onnx.ModelProto, which: str) -> onnx.GraphProto:
    made = {name for node in proto.graph.node for name in node.output if name}
    fresh = {name: f"{which}/{name}" for name in made}
    nodes = [_renamed(node, fresh, which) for node in proto.graph.node]
    # What no node computes, an input or a weight, is no output that a branch may hand on.
    handed = {value.name: value for value in proto.graph.output}
    nodes += [helper.make_node("Identity", [name], [f"{which}/{name}"]) for name in handed if name not in made]
    outputs = []
    for name, value in handed.items():
        output = onnx.ValueInfoProto()
        output.CopyFrom(value)
        output.name = f"{which}/{name}"
        outputs.append(output)
    return helper.make_graph(nodes, which, [], outputs)


def _renamed(node: onnx.NodeProto, fresh: Mapping[str, str], which: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{which}/{node.name}" if node.name else ""
    for field in (copy.input, copy.output):
        field[:] = [fresh.get(name, name) for name in field]
    return copy


def in_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All nodes in a local function that is called once, with the weights as arguments."""
    outer = _shell(proto)
    outer.ir_version = max(8, proto.ir_version)
    weights = [tensor.name for tensor in proto.graph.initializer]
    inputs = [value.name for value in proto.graph.input if value.name not in weights] + weights
    outputs = [value.name for value in proto.graph.output]
    body = helper.make_function(DOMAIN, "Inner", inputs, outputs, list(proto.graph.node), list(proto.opset_import))
    outer.functions.append(body)
    outer.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    outer.graph.node.append(helper.make_node("Inner", inputs, outputs, name="call", domain=DOMAIN))
    return outer


def _shell(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its nodes."""
    outer = onnx.ModelProto()
    outer.CopyFrom(proto)
    del outer.graph.node[:]
    del outer.graph.value_info[:]
    return outer
