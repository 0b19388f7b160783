"""How large a model from elsewhere may be; checked before anything is allocated for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, TensorProto

from graphopt.model import dtypes
from graphopt.model.findings import Finding


@dataclass(frozen=True)
class Limits:
    """Bounds on a model file. The defaults refuse no model that could be used.

    Attributes:
        max_file_bytes: of the model file itself; protobuf reads no more than 2 GiB.
        max_nodes: in the graph, all bodies and local functions together.
        max_nesting: of If, Loop and Scan bodies in each other.
        max_tensor_bytes: that one tensor declares.
        max_external_bytes: that all tensors with external data declare together.
    """

    max_file_bytes: int = (1 << 31) - 1
    max_nodes: int = 1_000_000
    max_nesting: int = 64
    max_tensor_bytes: int = 64 << 30
    max_external_bytes: int = 4 << 40


DEFAULT_LIMITS = Limits()


def exceeded(name: str, found: int, limit: int, *, where: str | None = None, hint: str | None = None) -> Finding:
    """The finding for a limit that does not hold."""
    return Finding("GO-701", "error", f"the limit {name} is {limit:,}, the model has {found:,}", where, hint=hint)


def excesses(proto: onnx.ModelProto, limits: Limits) -> Iterator[Finding]:
    """The limits that a model exceeds as a whole; single tensors are checked when they are decoded."""
    nodes = external = 0
    deepest = 1
    stack: list[tuple[onnx.GraphProto | onnx.FunctionProto, int]] = [(proto.graph, 1)]
    stack += [(function, 1) for function in proto.functions]
    while stack:
        body, depth = stack.pop()
        deepest = max(deepest, depth)
        nodes += len(body.node)
        if isinstance(body, onnx.GraphProto):
            external += sum(_external_bytes(tensor) for tensor in body.initializer)
        for node in body.node:
            for attribute in node.attribute:
                external += sum(_external_bytes(tensor) for tensor in (attribute.t, *attribute.tensors))
                if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                    stack += [(inner, depth + 1) for inner in attribute_graphs(attribute)]
    # One level is the graph itself.
    for name, found in (("max_nodes", nodes), ("max_nesting", deepest - 1), ("max_external_bytes", external)):
        if found > getattr(limits, name):
            yield exceeded(name, found, getattr(limits, name))


def attribute_graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The subgraphs an attribute holds."""
    if attribute.type == AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs)


def tensor_size(tensor: TensorProto, limits: Limits) -> Iterator[Finding]:
    """What is wrong with the dimensions that a tensor declares: negative, beyond 64 bits, or beyond the limit."""
    where = f"tensor {tensor.name!r}"
    if any(dim < 0 for dim in tensor.dims):
        yield Finding("GO-304", "error", f"negative dimension in {list(tensor.dims)}", where)
        return
    count = math.prod(tensor.dims)
    if count >= 1 << 63:
        yield Finding("GO-304", "error", f"the dimensions {list(tensor.dims)} overflow 64 bits", where)
        return
    size = dtypes.raw_size(tensor.data_type, count)
    if size is not None and size > limits.max_tensor_bytes:
        yield exceeded("max_tensor_bytes", size, limits.max_tensor_bytes, where=where)


def _external_bytes(tensor: TensorProto) -> int:
    if tensor.data_location != TensorProto.EXTERNAL:
        return 0
    return dtypes.raw_size(tensor.data_type, max(math.prod(tensor.dims), 0)) or 0
