"""From a protobuf to the editing view, keeping by the side whatever the view has no place for."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from typing import Any, TypeVar

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto

from graphopt.model import dtypes, wellformed
from graphopt.model.external import ExternalFiles
from graphopt.model.findings import raise_first
from graphopt.model.graph import (
    AttributeRecord,
    EditConstant,
    EditGraph,
    EditNode,
    EditVariable,
    NodeRecord,
    RawAttribute,
    Shape,
)
from graphopt.model.limits import Limits
from graphopt.model.weights import TensorRecord, bring_in, decode, decode_sparse

Scope = ChainMap[str, gs.Tensor]


class Importer:
    """Imports one model.

    Args:
        ir_version: below 4, an initializer that is listed as an input is a constant all the same.
        files: external data.
        limits: on single tensors.

    Attributes:
        notes: what was repaired, in sentences.
    """

    def __init__(self, ir_version: int, files: ExternalFiles, limits: Limits) -> None:
        self._overridable = ir_version >= 4
        self._files = files
        self._limits = limits
        self._taken: set[str] = set()
        self._used: set[str] = set()
        self._count = 0
        self._renamed: list[str] = []
        self._sorted = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was repaired on the way in."""
        notes = []
        if self._sorted:
            notes.append("the nodes were not in topological order: sorted")
        if self._renamed:
            shown = ", ".join(self._renamed[:3]) + (", …" if len(self._renamed) > 3 else "")
            notes.append(f"{len(self._renamed)} nodes shared a name with another: renamed ({shown})")
        return tuple(notes)

    def graph(self, proto: onnx.GraphProto) -> EditGraph:
        """The editing view of the top-level graph; nothing of ``proto`` is aliased.

        Raises:
            ModelError: GO-304 for a malformed graph, GO-306 for external data, GO-308 for what cannot be carried.
        """
        self._taken.update(n.name for n in wellformed.walk_nodes(proto.node) if n.name)
        # The view refers to protobuf nodes; a copy without weights lets the source's memory go.
        light = copy_fields(proto, without=("initializer", "sparse_initializer"))
        raise_first(wellformed.text(light))
        return self._graph(light, ChainMap(), None, initializers=proto)

    def _graph(
        self,
        proto: onnx.GraphProto,
        scope: Scope,
        parent: EditGraph | None,
        initializers: onnx.GraphProto | None = None,
    ) -> EditGraph:
        source = initializers or proto
        order = wellformed.order_nodes(proto, scope, source)
        raise_first(order.findings)
        self._sorted |= order.moved
        graph = EditGraph(name=proto.name, doc_string=proto.doc_string)
        graph.parent = parent
        self._declare(graph, proto)
        local = scope.new_child()
        listed = {value.name for value in proto.input}
        self._initializers(graph, source, local, listed if self._overridable else set())
        for value in proto.input:
            if value.name not in local.maps[0]:
                graph.inputs.append(self._variable(graph, value, local))
            elif value.name in graph.envelope.defaults:
                graph.inputs.append(local[value.name])
        for node in order.nodes:
            graph.nodes.append(self._node(graph, node, local))
        graph.outputs = [local[value.name] for value in proto.output]
        return graph

    @staticmethod
    def _declare(graph: EditGraph, proto: onnx.GraphProto) -> None:
        envelope = graph.envelope
        held = ("node", "initializer", "sparse_initializer", "input", "output", "value_info")
        envelope.proto = copy_fields(proto, without=held)
        envelope.inputs = {value.name: value for value in proto.input}
        envelope.outputs = {value.name: value for value in proto.output}
        envelope.values = {value.name: value for value in proto.value_info}

    def _initializers(self, graph: EditGraph, proto: onnx.GraphProto, local: Scope, overridable: set[str]) -> None:
        records = [(t.name, decode(t, self._files, self._limits)) for t in proto.initializer]
        records += [(t.values.name, decode_sparse(t, self._files, self._limits)) for t in proto.sparse_initializer]
        for name, record in records:
            raise_first(wellformed.text(record.header))
            constant = _constant(name, record, graph)
            if name in overridable:
                graph.envelope.defaults[name] = constant
                self._variable(graph, graph.envelope.inputs[name], local)
            else:
                graph.envelope.constants.append(constant)
                local[name] = constant

    @staticmethod
    def _variable(graph: EditGraph, value: onnx.ValueInfoProto, local: Scope) -> EditVariable:
        variable = EditVariable(value.name)
        variable.home = graph
        variable.dtype, variable.shape, variable.type = view_of(value.type)
        local[value.name] = variable
        return variable

    def _node(self, graph: EditGraph, proto: onnx.NodeProto, local: Scope) -> EditNode:
        inputs = [local[name] if name else gs.Variable.empty() for name in proto.input]
        outputs = [self._output(graph, name, local) for name in proto.output]
        records, attrs = [], {}
        for attribute in proto.attribute:
            record, value = self._attribute(attribute, local, graph)
            records.append(record)
            attrs[attribute.name] = value
        domain = None if proto.domain in ("", "ai.onnx") else proto.domain
        name = self._name(proto)
        node = EditNode(proto.op_type, name, attrs, inputs, outputs, domain)
        node.home = graph
        bare = copy_fields(proto, without=("attribute",)) if records else proto
        node.record = NodeRecord(bare, tuple(records), name)
        return node

    @staticmethod
    def _output(graph: EditGraph, name: str, local: Scope) -> gs.Variable:
        if not name:
            return gs.Variable.empty()
        variable = EditVariable(name)
        variable.home = graph
        declared = graph.envelope.values.get(name) or graph.envelope.outputs.get(name)
        if declared is not None:
            variable.dtype, variable.shape, variable.type = view_of(declared.type)
        local[name] = variable
        return variable

    def _name(self, proto: onnx.NodeProto) -> str:
        """A name no other node has: passes, reports and recipes address nodes by name."""
        self._count += 1
        if proto.name and proto.name in self._taken:
            self._taken.discard(proto.name)
            self._used.add(proto.name)
            return proto.name
        base = proto.name or f"{proto.op_type}_{self._count - 1}"
        name, suffix = base, 1
        while name in self._taken or name in self._used:
            name, suffix = f"{base}_{suffix}", suffix + 1
        if proto.name:
            self._renamed.append(name)
        self._used.add(name)
        return name

    def _attribute(self, proto: onnx.AttributeProto, local: Scope, graph: EditGraph) -> tuple[AttributeRecord, Any]:
        if proto.type == AttributeProto.GRAPH:
            light = copy_fields(proto, without=("g",))
            return AttributeRecord(light, None), self._graph(proto.g, local, graph)
        if proto.type == AttributeProto.TENSOR and not proto.ref_attr_name:
            record = decode(proto.t, self._files, self._limits)
            if proto.t.data_location == TensorProto.EXTERNAL:
                shown = AttributeRecord(copy_fields(proto, without=("t",)), record.array, record)
            else:
                shown = AttributeRecord(proto, record.array)
            return shown, _constant(proto.t.name, record, graph)
        value = plain_value(proto)
        if isinstance(value, RawAttribute):
            bring_in(proto, self._files, self._limits)
        return AttributeRecord(proto, tuple(value) if isinstance(value, list) else value), value


MessageT = TypeVar("MessageT", bound=Message)


def copy_fields(message: MessageT, without: Sequence[str]) -> MessageT:
    """A copy of a protobuf message that leaves some fields out (without copying them first)."""
    copy: MessageT = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.name in without:
            continue
        if isinstance(value, Message):
            getattr(copy, descriptor.name).CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(copy, descriptor.name, value)
        else:
            getattr(copy, descriptor.name).extend(value)
    return copy


def _constant(name: str, record: TensorRecord, graph: EditGraph) -> EditConstant:
    constant = EditConstant(name, record.array)
    constant.record = record
    constant.home = graph
    return constant


def plain_value(proto: onnx.AttributeProto) -> Any:
    """An attribute as a Python value: numbers, text (bytes where it is no UTF-8), lists; else a ``RawAttribute``."""
    if proto.ref_attr_name:
        return RawAttribute(proto)
    if proto.type == AttributeProto.INT:
        return proto.i
    if proto.type == AttributeProto.INTS:
        return list(proto.ints)
    if proto.type == AttributeProto.FLOAT:
        return proto.f
    if proto.type == AttributeProto.FLOATS:
        return list(proto.floats)
    if proto.type == AttributeProto.STRING:
        return _text(proto.s)
    if proto.type == AttributeProto.STRINGS:
        return [_text(item) for item in proto.strings]
    return RawAttribute(proto)


def _text(item: bytes) -> str | bytes:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        return item


def view_of(proto: onnx.TypeProto) -> tuple[Any, list[int | str | None] | None, str]:
    """``(dtype, shape, gs type name)`` of a value; dtype and shape are ``None`` where the value is no tensor."""
    kind = proto.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        return None, None, kind
    shape = dims_of(proto)
    return (
        dtypes.numpy_of(proto.tensor_type.elem_type),
        None if shape is None else list(shape),
        kind,
    )


def dims_of(proto: onnx.TypeProto) -> Shape | None:
    """The dimensions of a tensor type: integers, symbols, ``None`` where unknown; ``None`` without a shape."""
    if not proto.tensor_type.HasField("shape"):
        return None
    dims: list[int | str | None] = []
    for dim in proto.tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(int(dim.dim_value))
        else:
            dims.append(dim.dim_param or None)
    return tuple(dims)
