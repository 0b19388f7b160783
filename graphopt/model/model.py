"""The model: an ONNX file and its editable form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import GraphoptError, LimitError, ModelError
from graphopt.model import algorithms, envelope, opset, save, shapes, wellformed
from graphopt.model.arrays import Array
from graphopt.model.check import check_skeleton
from graphopt.model.clone import clone_graph
from graphopt.model.editor import GraphEditor
from graphopt.model.external import ExternalFiles
from graphopt.model.findings import raise_first
from graphopt.model.forms import Forms, arrays_of, weight_bytes
from graphopt.model.graph import EditGraph, tensor_dtype, tensor_shape
from graphopt.model.header import normalise_domains, unknown_fields
from graphopt.model.identity import Fingerprints, State
from graphopt.model.importer import Importer, copy_fields
from graphopt.model.interface import Interface, TensorSpec, read_interface
from graphopt.model.limits import DEFAULT_LIMITS, Limits, excesses
from graphopt.model.load import ModelFile, read_model
from graphopt.model.store import WeightStore
from graphopt.model.weights import bring_in

__all__ = ["Array", "Interface", "Model", "TensorSpec"]


class Model:
    """One model, opened for reading and editing.

    Use ``open``, ``from_proto`` or ``of``. Edits go through ``editor`` and end with ``finish``.

    Attributes:
        path: the file it was opened from.
        metadata: the model's ``metadata_props``; may be edited.
        notes: what was repaired or found odd on opening, in sentences.
        store: where weights that replace others are kept; clones share it.
    """

    def __init__(
        self,
        header: onnx.ModelProto,
        graph: EditGraph,
        *,
        path: Path | None,
        notes: tuple[str, ...] = (),
        store: WeightStore | None = None,
    ) -> None:
        self._header = header
        self._graph = graph
        self._editor: GraphEditor | None = None
        self._inferred = False
        self._source_failures: frozenset[str] = frozenset()
        self._settled: State | None = None
        self._fingerprints = Fingerprints()
        self.path = path
        self.notes = notes
        self.store = store or WeightStore()
        self.metadata: dict[str, str] = {entry.key: entry.value for entry in header.metadata_props}

    # Making one

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, *, store: WeightStore | None = None
    ) -> Model:
        """Opens a model file; external data is mapped, not read, and so are the weights inside a large file.

        Args:
            path: the file. While it is mapped, nobody should write over it; replacing it is no harm.
            limits: sizes above which it is refused.
            store: where weights that replace others are kept; the default keeps up to 1 GiB of them in memory.

        Raises:
            ModelError: GO-301 to GO-308: unreadable, not ONNX, incomplete, malformed, too new, unusable external
                data, or a feature that cannot be carried.
            LimitError: GO-701, the model exceeds one of ``limits``.
        """
        file = Path(path)
        try:
            return cls._build(read_model(file, limits), file, limits, store)
        except GraphoptError as error:
            raise error.within(str(path)) from error.__cause__

    @classmethod
    def from_proto(
        cls, proto: onnx.ModelProto, limits: Limits = DEFAULT_LIMITS, *, store: WeightStore | None = None
    ) -> Model:
        """A model from a protobuf, which is neither changed nor referred to afterwards.

        Raises:
            ModelError: as ``open``; GO-306 for external data, since a protobuf has no folder.
            LimitError: as ``open``.
        """
        return cls._build(ModelFile(proto, ExternalFiles(None)), None, limits, store)

    @classmethod
    def of(cls, source: str | os.PathLike[str] | onnx.ModelProto | Model, *, store: WeightStore | None = None) -> Model:
        """A model of one's own from whatever stands for a model; a ``Model`` is cloned."""
        if isinstance(source, Model):
            twin = source.clone()
            twin.store = store or twin.store
            return twin
        if isinstance(source, onnx.ModelProto):
            return cls.from_proto(source, store=store)
        return cls.open(source, store=store)

    @classmethod
    def _build(cls, file: ModelFile, path: Path | None, limits: Limits, store: WeightStore | None) -> Model:
        proto = file.proto
        try:
            cls._check_versions(proto, path)
            raise_first(excesses(proto, limits))
            raise_first(wellformed.text(header := copy_fields(proto, without=("graph",))))
            raise_first(wellformed.functions(proto))
            raise_first(wellformed.operators(proto))
            raise_first(wellformed.function_nodes(proto))
            raise_first(wellformed.calls(proto))
            raise_first(wellformed.lists_of_graphs(proto))
            bring_in(header, file.files, limits)
            importer = Importer(proto.ir_version, file.files, limits)
            graph = importer.graph(proto.graph)
        except UnicodeDecodeError as error:
            raise wellformed.bad_text(str(error)).as_error() from None
        notes = [*importer.notes, *normalise_domains(header), *unknown_fields(proto)]
        return cls(header, graph, path=path, notes=tuple(notes), store=store)

    @staticmethod
    def _check_versions(proto: onnx.ModelProto, path: Path | None) -> None:
        try:
            raise_first(wellformed.versions(proto))
        except ModelError as error:
            error.where = error.where or (None if path is None else str(path))
            raise

    def clone(self) -> Model:
        """An independent copy; weight arrays are shared, since nobody can write to them."""
        self.editor.flush()
        header = onnx.ModelProto()
        header.CopyFrom(self._header)
        twin = Model(header, clone_graph(self._graph), path=self.path, notes=self.notes, store=self.store)
        twin.metadata = dict(self.metadata)
        twin._inferred = self._inferred
        twin._source_failures = self._source_failures
        twin._settled = self._settled
        twin._fingerprints = self._fingerprints
        return twin

    # Reading

    @property
    def graph(self) -> EditGraph:
        """The editing view, an onnx-graphsurgeon graph."""
        self._ensure_inferred()
        return self._graph

    @property
    def editor(self) -> GraphEditor:
        """The one editor of this model."""
        self._ensure_inferred()
        if self._editor is None:
            self._editor = GraphEditor(self._graph, self.store.keep)
        return self._editor

    @property
    def interface(self) -> Interface:
        """Inputs and outputs as declared."""
        return read_interface(self._graph)

    @property
    def opsets(self) -> Mapping[str, int]:
        """Operator set versions by domain; the standard domain is ``""``."""
        return MappingProxyType({entry.domain: entry.version for entry in self._header.opset_import})

    @property
    def opset(self) -> int:
        """Version of the standard operator set; 0 where the model does not use it."""
        return self.opsets.get("", 0)

    @property
    def has_training_info(self) -> bool:
        """Whether the file holds a training graph, which refers to weights by name and shape."""
        return bool(self._header.training_info)

    @property
    def ir_version(self) -> int:
        """Version of the file format."""
        return int(self._header.ir_version)

    @property
    def functions(self) -> tuple[tuple[str, str], ...]:
        """Domain and name of each local function."""
        return tuple((f.domain, f.name) for f in self._header.functions)

    @property
    def inference_failures(self) -> tuple[str, ...]:
        """What onnx's strict shape inference refuses in the source, one entry a node; empty: it passed."""
        self._ensure_inferred()
        return tuple(sorted(self._source_failures))

    @property
    def node_count(self) -> int:
        """Nodes, those of subgraph bodies included."""
        self.editor.flush()
        return sum(len(level.nodes) for level in [self._graph, *self._graph.bodies()])

    @property
    def parameter_count(self) -> int:
        """Elements of all constants: initializers, defaults of inputs, Constant nodes."""
        return sum(array.size for array in arrays_of(self._forms().graph))

    @property
    def weight_bytes(self) -> int:
        """Bytes all constants take when stored."""
        return weight_bytes(self._forms().graph)

    @property
    def file_size(self) -> int:
        """Bytes that ``save`` would write, data file included."""
        return self._forms().parts().size

    def shape_of(self, tensor: gs.Tensor) -> tuple[int | str | None, ...] | None:
        """The inferred shape; symbols as text, unknown dimensions as ``None``; ``None`` without a known rank."""
        self._ensure_inferred()
        return tensor_shape(tensor)

    def dtype_of(self, tensor: gs.Tensor) -> np.dtype[Any] | None:
        """The inferred element type; ``object`` for strings; ``None`` where unknown or not a tensor."""
        self._ensure_inferred()
        return tensor_dtype(tensor)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the model's canonical bytes, weights included."""
        return self._fingerprints.of(*self._forms().skeleton(given_names=False))

    # Editing

    def finish(self) -> tuple[str, ...]:
        """Puts the model in order after edits: dead code out, stable sort, types and shapes inferred anew.

        A second call changes nothing.

        Returns:
            Notes, in sentences: what had to be left out or could not be inferred.

        Raises:
            ModelError: GO-304 for a cycle; GO-307 where strict inference fails and did not on the source;
                GO-308 where the training information names something that is gone.
        """
        self.editor.flush()
        if self._settled is not None and self._settled.same_as(State.of(*self._bare())):
            return ()
        algorithms.remove_dead_code(self._graph)
        notes = []
        if gone := envelope.drop_unused_initializers(self._graph):
            notes.append(f"{len(gone)} unused initializers removed ({_listed(gone)})")
        if gone := envelope.settle_annotations(self._graph):
            notes.append(f"quantization annotations of removed tensors dropped ({_listed(gone)})")
        envelope.check_training(self._header, self._graph)
        self.settle()
        return tuple(notes)

    def settle(self) -> None:
        """What ``finish`` does in the middle of editing: sorts and infers, and takes no node away.

        Raises:
            ModelError: GO-304 and GO-307 as ``finish``.
        """
        self.editor.flush()
        algorithms.sort_graph(self._graph)
        self._infer(source=False)
        envelope.refresh_values(self._graph)

    def raise_opset(self, version: int) -> tuple[str, ...]:
        """Raises the standard operator set to ``version`` by graphopt's own adapters; never lowers it.

        Nodes that somebody holds stay in the model, dead ones too: ``finish`` takes those away.

        Where it raises, some nodes may be rewritten already: call it on a clone that can be dropped.

        Returns:
            Notes, in sentences: what was rewritten.

        Raises:
            ModelError: GO-305 naming a node that has no adapter.
        """
        if version <= self.opset:
            return ()
        opset.check_functions(self._header, version)
        notes = opset.raise_opset(self, version)
        for entry in self._header.opset_import:
            if entry.domain == "":
                entry.version = version
        needed = onnx.helper.find_min_ir_version_for(list(self._header.opset_import), ignore_unknown=True)
        if needed > self.ir_version:
            notes += (f"IR version {self.ir_version} raised to {needed}",)
            self._header.ir_version = needed
        self._graph.opset = version
        self.settle()
        return notes

    # Writing

    def to_proto(self) -> onnx.ModelProto:
        """The whole model as one protobuf, weights inside; a fresh copy.

        Raises:
            LimitError: GO-701 above 1.9 GiB of weights, which one protobuf cannot hold; ``save`` can.
        """
        if self.weight_bytes > save.EXTERNAL_LIMIT:
            raise LimitError("GO-701", "the weights do not fit one protobuf", hint="save the model to a file instead")
        return self._forms().whole()

    def skeleton(self) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The model without its large weights, and those by name.

        Weights above 1 KiB become external tensors without a file; integer constants up to 1 MiB stay, since they
        may feed shapes. Nodes have the unique names of the editing view.
        """
        return self._forms().skeleton(given_names=True)

    def check(self) -> None:
        """Run onnx's checker on the model without its weights.

        Raises:
            ModelError: GO-304, with the checker's first line.
        """
        check_skeleton(self.skeleton()[0])

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the model, atomically; weights are written from where they are, never gathered in memory.

        Weights that were external data go to a data file beside the model; above 1.9 GiB all large ones do.

        Raises:
            OutputError: GO-501, GO-502, GO-503 or GO-504; what was there before is untouched then.
        """
        save.write(self._forms().parts(), save.checked_target(Path(path), overwrite=overwrite))

    # Inside

    def _forms(self) -> Forms:
        if self._editor is not None:
            self._editor.flush()
        return Forms(self._header, self.metadata, self._graph)

    def _ensure_inferred(self) -> None:
        if not self._inferred:
            self._inferred = True
            self._infer(source=True)

    def _bare(self) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The skeleton without the declarations that inference replaces."""
        return self._forms().skeleton(given_names=True, is_opaque=shapes.opaque_nodes(self._header))

    def _infer(self, *, source: bool) -> None:
        skeleton, arrays = self._bare()
        result = shapes.infer(skeleton)
        fresh = result.failures - self._source_failures
        if source:
            self._source_failures = result.failures
            if fresh:
                self.notes += (f"the source fails strict shape inference: {_shown(fresh)}",)
        elif fresh:
            raise ModelError("GO-307", "types or shapes conflict", where=_shown(fresh))
        self._settled = State.of(skeleton, arrays)
        if result.proto is not None:
            shapes.apply(self._graph, result.proto.graph, shapes.opaque_nodes(self._header))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _shown(failures: frozenset[str]) -> str:
    first = sorted(failures)[0]
    return first if len(first) <= 300 else first[:300] + "…"
