"""Keeping the side declarations true after edits: nothing stale survives, nothing is lost without a word."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.model.exporter import agrees, value_info
from graphopt.model.graph import EditGraph


def drop_unused_initializers(graph: EditGraph) -> list[str]:
    """Forgets initializers that nothing reads any more, on every level.

    Returns:
        Their names.
    """
    gone: list[str] = []
    for level in [graph, *graph.bodies()]:
        outputs = {id(t) for t in level.outputs}
        kept = [c for c in level.envelope.constants if c.outputs or id(c) in outputs]
        if len(kept) != len(level.envelope.constants):
            alive = {id(c) for c in kept}
            gone += [c.name for c in level.envelope.constants if id(c) not in alive]
            level.envelope.constants = kept
    return gone


def refresh_values(graph: EditGraph) -> None:
    """Re-declares inner values from what was just inferred; a declaration that nothing confirms is dropped."""
    for level in [graph, *graph.bodies()]:
        if not level.envelope.values:
            continue
        tensors = level_tensors(level)
        fresh = {}
        for name, source in level.envelope.values.items():
            tensor = tensors.get(name)
            if tensor is None:
                continue
            if agrees(tensor, source):
                fresh[name] = source
            elif tensor.dtype is not None and tensor.shape is not None:
                fresh[name] = _redeclared(tensor, source)
        level.envelope.values = fresh


def _redeclared(tensor: gs.Tensor, source: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Symbols that inference made up (``unk__0``) are not written: they mean nothing to a reader."""
    value = value_info(tensor, source)
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_param.startswith("unk__"):
            dim.ClearField("dim_param")
    return value


def level_tensors(level: EditGraph) -> dict[str, gs.Tensor]:
    """The tensors one graph defines, by name: inputs, initializers and what its nodes compute."""
    tensors: dict[str, gs.Tensor] = {t.name: t for t in [*level.inputs, *level.envelope.constants]}
    for node in level.nodes:
        tensors.update((t.name, t) for t in node.inputs if isinstance(t, gs.Constant))
        tensors.update((t.name, t) for t in node.outputs if t.name)
    return tensors


def settle_annotations(graph: EditGraph) -> list[str]:
    """Drops quantization annotations of tensors that are gone.

    Returns:
        The names of those tensors.
    """
    gone: list[str] = []
    for level in [graph, *graph.bodies()]:
        annotations = level.envelope.proto.quantization_annotation
        if not annotations:
            continue
        known = level_tensors(level)
        lost = [a.tensor_name for a in annotations if a.tensor_name not in known]
        if lost:
            kept = [a for a in annotations if a.tensor_name in known]
            proto = onnx.GraphProto()
            proto.CopyFrom(level.envelope.proto)
            del proto.quantization_annotation[:]
            proto.quantization_annotation.extend(kept)
            level.envelope.proto = proto
            gone += lost
    return gone


def check_training(header: onnx.ModelProto, graph: EditGraph) -> None:
    """Refuses an edit that leaves the training information pointing at nothing.

    Raises:
        ModelError: GO-308 naming the tensor.
    """
    if not header.training_info:
        return
    known = level_tensors(graph)
    for info in header.training_info:
        own = {t.name for part in (info.initialization, info.algorithm) for t in part.initializer}
        for binding in [*info.initialization_binding, *info.update_binding]:
            if binding.key not in known and binding.key not in own:
                raise ModelError(
                    "GO-308",
                    "the model's training information refers to a tensor that an edit removed",
                    where=f"tensor {binding.key!r}",
                    hint="remove training_info from the model first",
                )
