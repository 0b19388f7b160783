"""The part of a model around its graph: versions, domains, metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]

from graphopt.model.graph import EditGraph


def _newest(domain: str) -> int:
    versions = [s.since_version for s in onnx.defs.get_all_schemas() if s.domain == domain]
    return max(versions, default=1)


def write_metadata(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Makes ``metadata_props`` say what ``metadata`` says; unchanged entries stay as they are."""
    if {e.key: e.value for e in proto.metadata_props} == metadata:
        return
    kept = [e for e in proto.metadata_props if metadata.get(e.key) == e.value]
    known = {e.key for e in kept}
    entries = [(e.key, e.value) for e in kept] + [(k, v) for k, v in metadata.items() if k not in known]
    del proto.metadata_props[:]
    for key, value in entries:
        proto.metadata_props.add(key=key, value=value)


def unknown_fields(proto: onnx.ModelProto) -> list[str]:
    """A note where the model, its graph or a node holds fields that the installed onnx does not know; they get lost."""
    found = sum(len(UnknownFieldSet(message)) for message in (proto, proto.graph, *proto.graph.node))
    return [f"{found} fields that onnx {onnx.__version__} does not know are left out"] if found else []


def normalise_domains(header: onnx.ModelProto) -> list[str]:
    """``ai.onnx`` is another spelling of the standard domain ``""``; only the latter is understood everywhere."""
    named = [e for e in header.opset_import if e.domain == "ai.onnx"]
    if not named:
        return []
    if any(e.domain == "" for e in header.opset_import):
        kept = [e for e in header.opset_import if e.domain != "ai.onnx"]
        entries = [(e.domain, e.version) for e in kept]
        del header.opset_import[:]
        for domain, version in entries:
            header.opset_import.add(domain=domain, version=version)
    else:
        named[0].domain = ""
    return ["the operator domain 'ai.onnx' is written as '', its canonical spelling"]


def import_domains(proto: onnx.ModelProto, levels: Iterable[EditGraph]) -> None:
    """States a version for every operator domain that a node uses and the model did not state."""
    known = {entry.domain for entry in proto.opset_import}
    for level in levels:
        for node in level.nodes:
            domain = node.domain or ""
            if domain not in known:
                known.add(domain)
                proto.opset_import.add(domain=domain, version=_newest(domain))
