"""The forms in which a model leaves its editing view: whole, as a skeleton, and in parts for a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx
import onnx_graphsurgeon as gs

from graphopt.model import save
from graphopt.model.arrays import Array, stored_size
from graphopt.model.exporter import ExportOptions, export_graph, owned_constants
from graphopt.model.graph import EditGraph
from graphopt.model.header import import_domains, write_metadata
from graphopt.model.parts import Parts, Stored
from graphopt.model.weights import TensorRecord, encode, stub

STUB_LIMIT = 1024
"""Bytes above which a weight is left out of the skeleton."""
SHAPE_LIMIT = 1 << 20
"""Bytes up to which an integer constant stays in the skeleton, since it may feed a shape."""


@dataclass(frozen=True)
class Forms:
    """A model that is about to be written.

    Attributes:
        header: the model around its graph.
        metadata: its ``metadata_props``.
        graph: the editing view.
    """

    header: onnx.ModelProto
    metadata: Mapping[str, str]
    graph: EditGraph

    def whole(self) -> onnx.ModelProto:
        """One protobuf, weights inside."""
        return self._export(ExportOptions())

    def skeleton(
        self, *, given_names: bool, is_opaque: Callable[[gs.Node], bool] | None = None
    ) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The model with stubs for its large weights, and those by name.

        Args:
            given_names: write the unique node names of the editing view.
            is_opaque: of the inner values, declare only the outputs of such nodes; ``None``: all that are declared.
        """
        arrays: dict[str, Array] = {}
        defaults = self.graph.envelope.defaults

        def writer(name: str, array: Array, record: TensorRecord | None) -> onnx.TensorProto | onnx.SparseTensorProto:
            if name in defaults or not _is_large(array, record) or _may_feed_a_shape(array):
                return encode(name, array, record)
            arrays[name] = array
            return stub(name, array, record)

        options = ExportOptions(writer=writer, given_names=given_names, is_opaque=is_opaque)
        return self._export(options), arrays

    def parts(self) -> Parts:
        """What to write to files: weights that were external stay so; above 1.9 GiB all large ones are."""
        constants = owned_constants(self.graph, top=True)
        records = [getattr(c, "record", None) for c in (*constants, *self.graph.envelope.defaults.values())]
        external = [record.external for record in records if record is not None and record.external is not None]
        tied = {place for place, count in Counter(external).items() if count > 1}
        too_large = weight_bytes(self.graph) > save.EXTERNAL_LIMIT
        parts = Parts(onnx.ModelProto(), {}, {})

        def writer(name: str, array: Array, record: TensorRecord | None) -> onnx.TensorProto | onnx.SparseTensorProto:
            place = None if record is None else record.external
            large = _is_large(array, record)
            moves = (too_large or (external and record is None)) and large and not _may_feed_a_shape(array)
            if moves or (place is not None and array.dtype != object):
                parts.external[name] = Stored(array, place, tied=place in tied)
                return stub(name, array, record)
            if large:
                parts.inline[name] = array
            return encode(name, array, record, deferred=large)

        return replace(parts, proto=self._export(ExportOptions(writer=writer)))

    def _export(self, options: ExportOptions) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.header)
        write_metadata(proto, self.metadata)
        import_domains(proto, [self.graph, *self.graph.bodies()])
        options = replace(options, list_initializers=self.header.ir_version < 4)
        export_graph(self.graph, options, proto.graph)
        return proto


def arrays_of(graph: EditGraph) -> list[Array]:
    """The values of all constants: initializers, defaults of inputs, tensors in attributes; bodies included."""
    found: list[Array] = []
    for level in [graph, *graph.bodies()]:
        found += [c._values for c in owned_constants(level, top=level is graph)]
        found += [c._values for c in level.envelope.defaults.values()]
        for node in level.nodes:
            found += [v._values for v in node.attrs.values() if isinstance(v, gs.Constant)]
    return found


def weight_bytes(graph: EditGraph) -> int:
    """Bytes that all constants take when stored."""
    return sum(stored_size(array) for array in arrays_of(graph))


def _is_large(array: Array, record: TensorRecord | None) -> bool:
    if array.dtype == object or isinstance(record and record.header, onnx.SparseTensorProto):
        return False
    return stored_size(array) > STUB_LIMIT


def _may_feed_a_shape(array: Array) -> bool:
    return array.dtype.kind == "i" and array.dtype.itemsize >= 4 and array.nbytes <= SHAPE_LIMIT
