"""Types and shapes of inner values: cleared and inferred anew, never believed from a stale declaration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

import onnx
import onnx_graphsurgeon as gs

from graphopt.blackbox import doing
from graphopt.model.graph import EditGraph
from graphopt.model.importer import view_of
from graphopt.model.schemas import schema_of
from graphopt.model.wellformed import walk_nodes


@dataclass(frozen=True)
class Inference:
    """What onnx inferred.

    Attributes:
        proto: the model with its inner values declared; ``None`` where even lenient inference gave up.
        failures: what strict inference refused, one entry a node; empty: it passed.
    """

    proto: onnx.ModelProto | None
    failures: frozenset[str]


def opaque_nodes(header: onnx.ModelProto) -> Callable[[gs.Node], bool]:
    """A test for nodes whose operator onnx knows nothing about, and which is no local function."""
    functions = {(f.domain, f.name) for f in header.functions}
    opsets = {entry.domain: entry.version for entry in header.opset_import}

    @cache
    def unknown(domain: str, op: str) -> bool:
        return (domain, op) not in functions and schema_of(op, opsets.get(domain, 1), domain) is None

    return lambda node: unknown(node.domain or "", node.op)


FRAGILE = frozenset(
    {
        ("", "EyeLike"),
        ("", "RegexFullMatch"),
        ("ai.onnx.ml", "DictVectorizer"),
        ("ai.onnx.ml", "LabelEncoder"),
        ("ai.onnx.ml", "TreeEnsemble"),
    }
)
"""Operators whose inference follows a null pointer where an input has no type, which ends the process.

Measured with onnx 1.23 on every operator: an input without a type, left out, or computed by a custom operator.
"""
_HIDDEN = "graphopt.hidden"


@doing("onnx's shape inference")
def infer(skeleton: onnx.ModelProto) -> Inference:
    """Infers strictly, with data propagation; where that fails, leniently, keeping what failed.

    What outputs are declared to be is a claim, which onnxruntime only warns about: it is held against what was found,
    and nothing is inferred from it. An output that is declared with batch 1 does not make the batch 1.
    """
    bare = _inferable(skeleton)
    nodes = [*bare.graph.node, *(node for function in bare.functions for node in function.node)]
    if any((node.domain, node.op_type) in FRAGILE for node in walk_nodes(nodes)):
        first = _infer(_hiding(bare, frozenset()))
        found = first if first.proto is None else _infer(_hiding(bare, _typed(first.proto.graph)))
    else:
        found = _infer(bare)
    if found.proto is None:
        return found
    return Inference(found.proto, found.failures | frozenset(_broken_claims(skeleton.graph, found.proto.graph)))


def _inferable(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose outputs, those of bodies too, have types but no shapes, and whose sparse weights are dense values.

    onnx gives sparse weights a type that no operator's inference takes, where onnxruntime makes dense ones of them.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(skeleton)
    for graph in _levels(bare.graph):
        for value in graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        for weight in graph.sparse_initializer:
            name, kind = weight.values.name, weight.values.data_type
            graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, weight.dims))
        graph.ClearField("sparse_initializer")
    return bare


def _broken_claims(declared: onnx.GraphProto, inferred: onnx.GraphProto) -> Iterator[str]:
    """Outputs of the graph that are declared with another rank or size than was inferred."""
    for claim, found in zip(declared.output, inferred.output, strict=True):
        sizes = [_sizes(value.type.tensor_type) for value in (claim, found)]
        if sizes[0] is None or sizes[1] is None:
            continue
        pairs = list(zip(*sizes, strict=False))
        if len(sizes[0]) != len(sizes[1]) or any(a != b for a, b in pairs if a is not None and b is not None):
            yield f"output {claim.name}: declared {_text(sizes[0])}, inferred {_text(sizes[1])}"


def _sizes(tensor: onnx.TypeProto.Tensor) -> list[int | None] | None:
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]


def _text(sizes: list[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"


def _infer(skeleton: onnx.ModelProto) -> Inference:
    values = not _has_long_vector(skeleton)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=values)
        return Inference(inferred, frozenset())
    except Exception as error:  # the binding raises several unrelated types
        failures = _entries(str(error))
    try:
        return Inference(onnx.shape_inference.infer_shapes(skeleton, data_prop=values), failures)
    except Exception:
        return Inference(None, failures)


LONGEST = 1 << 18
"""Elements of the longest vector that onnx's data propagation is let near."""


def _has_long_vector(skeleton: onnx.ModelProto) -> bool:
    """Whether data propagation would meet a vector of more than ``LONGEST`` elements.

    It takes every vector for a possible shape and makes an object for each element, about 100 bytes (measured with onnx
    1.23: more than 1 GiB for 10 million elements, until the machine has no memory left for 2^62). Only where a declared
    shape or a whole number in the model makes such a length possible is the graph inferred without it, to see.
    """
    if not any(size > LONGEST for size in _declared_sizes(skeleton)):
        return False
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton)
    except Exception:
        return True
    shapes = [value.type.tensor_type.shape.dim for graph in _levels(inferred.graph) for value in _values(graph)]
    return any(len(dims) == 1 and dims[0].dim_value > LONGEST for dims in shapes)


def _declared_sizes(skeleton: onnx.ModelProto) -> Iterator[int]:
    """Elements of every declared tensor, and every number that may become a size."""
    tensors = [a.t for node in walk_nodes(skeleton.graph.node) for a in node.attribute if node.op_type == "Constant"]
    for graph in _levels(skeleton.graph):
        tensors += graph.initializer
        for value in _values(graph):
            yield math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    for tensor in tensors:
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and math.prod(tensor.dims) <= 8:
            yield from (int(size) for size in onnx.numpy_helper.to_array(tensor).reshape(-1))


def _levels(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all bodies in it."""
    yield graph
    for node in walk_nodes(graph.node):
        yield from (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _hiding(skeleton: onnx.ModelProto, typed: frozenset[str]) -> onnx.ModelProto:
    """A copy in which fragile nodes are of a domain that inference passes over, unless all their inputs are ``typed``.

    Those in bodies and functions always are: what they read is not known there.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton)
    proto.opset_import.add(domain=_HIDDEN, version=1)
    for function in proto.functions:
        function.opset_import.add(domain=_HIDDEN, version=1)
    hidden = [node for node in proto.graph.node if not (node.input and typed.issuperset(node.input))]
    hidden += [inner for node in proto.graph.node for inner in islice(walk_nodes([node]), 1, None)]
    hidden += [node for function in proto.functions for node in walk_nodes(function.node)]
    for node in hidden:
        if (node.domain, node.op_type) in FRAGILE:
            node.domain = _HIDDEN
    return proto


def _typed(graph: onnx.GraphProto) -> frozenset[str]:
    values = [*graph.input, *graph.value_info, *graph.output]
    known = {value.name for value in values if value.type.WhichOneof("value")}
    return frozenset(known | {tensor.name for tensor in graph.initializer})


def _entries(message: str) -> frozenset[str]:
    lines = [line.strip() for line in re.split(r"\n|(?=\(op_type:)", message)]
    entries = {line for line in lines if line.startswith("(op_type:")}
    return frozenset(entries or {message.strip()})


def apply(graph: EditGraph, proto: onnx.GraphProto, is_opaque: Callable[[gs.Node], bool]) -> None:
    """Writes inferred types onto the tensors of ``graph`` and its bodies.

    Declared inputs and outputs keep their declaration; what was inferred for an output is kept beside it. Values that
    only a custom operator knows keep what the source declared.

    Args:
        graph: the editing view.
        proto: the same graph, inferred.
        is_opaque: whether nothing can be inferred for a node.
    """
    types = {value.name: value.type for value in [*proto.value_info, *proto.output]}
    outputs = {id(t) for t in graph.outputs}
    for node, source in zip(graph.nodes, proto.node, strict=True):
        opaque = is_opaque(node)
        for tensor in node.outputs:
            if tensor.name and not opaque:
                _set(tensor, types.get(tensor.name), is_output=id(tensor) in outputs)
        inner = {a.name: a.g for a in source.attribute if a.type == onnx.AttributeProto.GRAPH}
        for name, body in node.attrs.items():
            if isinstance(body, gs.Graph):
                apply(body, inner[name], is_opaque)


def _set(tensor: gs.Tensor, inferred: onnx.TypeProto | None, *, is_output: bool) -> None:
    dtype, shape, kind = view_of(inferred) if inferred is not None else (None, None, tensor.type)
    if is_output:
        tensor.inferred = (dtype, shape)
        return
    tensor.inferred = None
    tensor.dtype, tensor.shape, tensor.type = dtype, shape, kind
