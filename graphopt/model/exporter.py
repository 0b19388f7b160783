"""From the editing view back to a protobuf: what nobody touched is written exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto

from graphopt.errors import PassError
from graphopt.model import dtypes
from graphopt.model.arrays import Array
from graphopt.model.constants import settled
from graphopt.model.graph import AttributeRecord, EditConstant, EditGraph, NodeRecord, RawAttribute
from graphopt.model.importer import view_of
from graphopt.model.weights import TensorRecord, encode

Writer = Callable[[str, Array, TensorRecord | None], TensorProto | onnx.SparseTensorProto]


@dataclass(frozen=True)
class ExportOptions:
    """How to write.

    Attributes:
        writer: turns a top-level initializer into a tensor; the place to put a stub.
        given_names: write the unique names the editing view gave, also where the source has none.
        list_initializers: IR below 4: every initializer is listed among the inputs.
        is_opaque: declare, of the inner values, only the outputs of nodes for which this holds; ``None``: all that
            the envelope declares.
    """

    writer: Writer = encode
    given_names: bool = False
    list_initializers: bool = False
    is_opaque: Callable[[gs.Node], bool] | None = None


def export_graph(graph: EditGraph, options: ExportOptions, proto: onnx.GraphProto, *, top: bool = True) -> None:
    """Writes the graph into an empty protobuf.

    Raises:
        PassError: GO-801 when an edit left an attribute that ONNX cannot express, with the node's name.
    """
    proto.CopyFrom(graph.envelope.proto)
    for node in graph.nodes:
        _export_node(node, proto.node.add(), options)
    constants = owned_constants(graph, top=top, hoist=options.list_initializers)
    writer = options.writer if top else encode
    for constant in [*constants, *_live_defaults(graph)]:
        tensor = writer(constant.name, settled(constant), getattr(constant, "record", None))
        if isinstance(tensor, TensorProto):
            proto.initializer.append(tensor)
        else:
            proto.sparse_initializer.append(tensor)
    _export_inputs(graph, constants, proto, options)
    proto.output.extend(_declared(t, graph.envelope.outputs) for t in graph.outputs)
    if options.is_opaque is None:
        proto.value_info.extend(graph.envelope.values.values())
    else:
        proto.value_info.extend(_opaque_values(graph, options.is_opaque))


def _live_defaults(graph: EditGraph) -> list[EditConstant]:
    inputs = {t.name for t in graph.inputs}
    return [constant for name, constant in graph.envelope.defaults.items() if name in inputs]


def owned_constants(graph: EditGraph, *, top: bool, hoist: bool = False) -> list[EditConstant]:
    """The initializers to write in ``graph``: the source's in their order, then new ones in order of first use.

    A new constant belongs to the graph whose nodes use it; one used on several levels, to the top (an initializer of
    an outer graph is visible in the bodies, so it is never copied into them).

    Args:
        graph: the level to write.
        top: whether it is the top level.
        hoist: put every new constant at the top level.
    """
    owned = {id(c): c for c in graph.envelope.constants}
    for constant in _used_constants(graph, recursive=top):
        if id(constant) in owned:
            continue
        home = getattr(constant, "home", None)
        if home is None:
            home = _common_home(constant, hoist)
        if (top and home.parent is None) or home is graph:
            owned[id(constant)] = constant
    return list(owned.values())


def _used_constants(graph: EditGraph, *, recursive: bool) -> Iterator[gs.Constant]:
    levels = [graph, *graph.bodies()] if recursive else [graph]
    for level in levels:
        for node in level.nodes:
            yield from (t for t in node.inputs if isinstance(t, gs.Constant))
        yield from (t for t in level.outputs if isinstance(t, gs.Constant))


def _common_home(constant: gs.Constant, hoist: bool) -> EditGraph:
    homes = {id(node.home): node.home for node in constant.outputs if getattr(node, "home", None) is not None}
    home: EditGraph | None = next(iter(homes.values()), None)
    if home is None:
        return EditGraph()
    if hoist or len(homes) > 1:
        while home.parent is not None:
            home = home.parent
    return home


def _export_inputs(
    graph: EditGraph, constants: list[EditConstant], proto: onnx.GraphProto, options: ExportOptions
) -> None:
    tensors: dict[str, gs.Tensor] = {t.name: t for t in graph.inputs}
    if options.list_initializers:
        tensors.update((c.name, c) for c in constants)
    declared = graph.envelope.inputs
    first = [tensors[name] for name in declared if name in tensors]
    seen = {t.name for t in first}
    if [t.name for t in graph.inputs] != [t.name for t in first if not isinstance(t, gs.Constant)]:
        first, seen = list(graph.inputs), {t.name for t in graph.inputs}
    for tensor in [*first, *(t for name, t in tensors.items() if name not in seen)]:
        proto.input.append(_declared(tensor, declared))


def _declared(tensor: gs.Tensor, declarations: Mapping[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    """The declaration of an input or output: the source's, unless an edit gave the tensor another type."""
    source = declarations.get(tensor.name)
    if source is not None and (tensor.dtype is None or agrees(tensor, source)):
        return source
    return value_info(tensor, source)


def agrees(tensor: gs.Tensor, source: onnx.ValueInfoProto) -> bool:
    """Whether a declaration says what the editing view says (a constant may be declared less precisely)."""
    dtype, shape, _ = view_of(source.type)
    own = None if tensor.shape is None else list(tensor.shape)
    if isinstance(tensor, gs.Constant):
        fits = shape is None or (
            len(shape) == len(own or [])
            and all(a == b or not isinstance(a, int) for a, b in zip(shape, own or [], strict=True))
        )
        return bool(dtype == tensor.dtype) and fits
    return bool(dtype == tensor.dtype) and shape == own


def value_info(tensor: gs.Tensor, source: onnx.ValueInfoProto | None = None) -> onnx.ValueInfoProto:
    """A declaration made from what the editing view knows; docs and metadata come from ``source``."""
    value = onnx.ValueInfoProto()
    if source is not None:
        value.CopyFrom(source)
        value.ClearField("type")
    value.name = tensor.name
    if tensor.dtype is not None:
        shape = None if tensor.shape is None else list(tensor.shape)
        value.type.CopyFrom(onnx.helper.make_tensor_type_proto(dtypes.onnx_of(tensor.dtype), shape))
    return value


def _opaque_values(graph: EditGraph, is_opaque: Callable[[gs.Node], bool]) -> Iterator[onnx.ValueInfoProto]:
    for node in graph.nodes:
        if is_opaque(node):
            for tensor in node.outputs:
                if tensor.name and tensor.name not in graph.envelope.outputs:
                    declared = graph.envelope.values.get(tensor.name)
                    if tensor.dtype is not None:
                        yield value_info(tensor, declared)
                    elif declared is not None:
                        yield declared


def _export_node(node: gs.Node, proto: onnx.NodeProto, options: ExportOptions) -> None:
    record: NodeRecord | None = getattr(node, "record", None)
    if record is not None:
        proto.CopyFrom(record.proto)
    _export_header(node, proto, record, options)
    sources = {} if record is None else {r.proto.name: r for r in record.attributes}
    names = [name for name in sources if name in node.attrs]
    names += [name for name in node.attrs if name not in sources]
    for name in names:
        _export_attribute(node, name, sources.get(name), proto.attribute.add(), options)


def _export_header(node: gs.Node, proto: onnx.NodeProto, record: NodeRecord | None, options: ExportOptions) -> None:
    inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
    if list(proto.input) != inputs:
        proto.input[:] = inputs
    if list(proto.output) != outputs:
        proto.output[:] = outputs
    if proto.op_type != node.op:
        proto.op_type = node.op
    if proto.domain != (node.domain or ""):
        proto.domain = node.domain or ""
    nameless = record is not None and not record.proto.name and node.name == record.name
    if proto.name != node.name and (options.given_names or not nameless):
        proto.name = node.name


def _export_attribute(
    node: gs.Node,
    name: str,
    source: AttributeRecord | None,
    proto: onnx.AttributeProto,
    options: ExportOptions,
) -> None:
    value = node.attrs[name]
    if isinstance(value, gs.Graph):
        if source is not None and source.proto.type == AttributeProto.GRAPH:
            proto.CopyFrom(source.proto)
        proto.name, proto.type = name, AttributeProto.GRAPH
        export_graph(value, options, proto.g, top=False)
    elif source is not None and _is_source_value(value, source):
        proto.CopyFrom(source.proto)
        if source.left is not None:
            proto.t.CopyFrom(encode(source.left.header.name, source.left.array, source.left))
    elif isinstance(value, RawAttribute):
        proto.CopyFrom(value.proto)
        proto.name = name
    elif isinstance(value, gs.Constant | np.ndarray):
        array = value if isinstance(value, np.ndarray) else value._values
        proto.name, proto.type = name, AttributeProto.TENSOR
        proto.t.CopyFrom(encode(getattr(value, "name", "") or "", array, None))
    else:
        kind = source.proto.type if source is not None else _attribute_type(node, name)
        proto.CopyFrom(_make_attribute(node, name, value, kind))
        if source is not None and source.proto.HasField("doc_string"):
            proto.doc_string = source.proto.doc_string


def _is_source_value(value: Any, source: AttributeRecord) -> bool:
    if isinstance(value, gs.Constant):
        return value._values is source.value
    if isinstance(value, np.ndarray) or isinstance(source.value, np.ndarray):
        return False
    return bool((tuple(value) if isinstance(value, list) else value) == source.value)


def _attribute_type(node: gs.Node, name: str) -> int | None:
    try:
        schema = onnx.defs.get_schema(node.op, node.domain or "")
    except onnx.defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    return None if attribute is None else int(attribute.type.value)  # type: ignore[attr-defined]


_NUMBERS: dict[int, Callable[[Any], Any]] = {
    AttributeProto.FLOAT: float,
    AttributeProto.INT: int,
    AttributeProto.FLOATS: lambda items: [float(i) for i in items],
    AttributeProto.INTS: lambda items: [int(i) for i in items],
}


def _make_attribute(node: gs.Node, name: str, value: Any, kind: int | None) -> onnx.AttributeProto:
    if isinstance(value, np.generic):
        value = value.item()
    try:
        if kind in _NUMBERS:
            value = _NUMBERS[kind](value)
        made: onnx.AttributeProto = onnx.helper.make_attribute(name, value, attr_type=kind)
    except (TypeError, ValueError) as error:
        raise PassError(
            "GO-801",
            f"attribute {name!r} cannot hold {value!r}",
            where=f"node {node.name!r} ({node.op})",
            why=str(error),
        ) from None
    return made
