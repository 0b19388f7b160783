"""Everything there is to say about one model file, all at once: what ``graphopt check`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import GraphoptError
from graphopt.model import wellformed
from graphopt.model.arrays import Array
from graphopt.model.external import ExternalFiles
from graphopt.model.findings import Finding
from graphopt.model.interface import TensorSpec
from graphopt.model.limits import DEFAULT_LIMITS, Limits, attribute_graphs
from graphopt.model.load import read_model
from graphopt.model.model import Model
from graphopt.model.schemas import schema_of
from graphopt.model.weights import decode, decode_sparse
from graphopt.runtime.schemas import opens_version, runtime_domains
from graphopt.runtime.session import Backend, open_session

_CHUNK = 1 << 22
"""Elements that are looked at in one go: a mapped weight never takes much memory."""


def lint(path: Path, *, limits: Limits = DEFAULT_LIMITS, backend: Backend | None = None) -> tuple[Finding, ...]:
    """All findings about a model file: errors first, then warnings, then notes.

    A file that cannot be parsed gives one finding. A model with errors is not opened, so what shows only on an opened
    model (shape inference, onnxruntime) is left out then.

    Args:
        path: the file.
        limits: sizes above which it is refused.
        backend: what opens the session; onnxruntime itself when ``None``.
    """
    try:
        file = read_model(path, limits)
    except GraphoptError as error:
        return (Finding.of(error),)
    proto = file.proto
    found = list(wellformed.survey(proto, limits))
    if proto.HasField("graph"):
        found += _tensors(proto, file.files, limits)
    if not any(finding.severity == "error" for finding in found):
        found += _opened(path, limits, backend)
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: rank[finding.severity]))


def _tensors(proto: onnx.ModelProto, files: ExternalFiles, limits: Limits) -> Iterator[Finding]:
    """What is wrong with tensors: unusable data, malformed values, NaN and infinity."""
    for tensor in _all_tensors(proto):
        sparse = isinstance(tensor, onnx.SparseTensorProto)
        name = tensor.values.name if sparse else tensor.name
        try:
            record = decode_sparse(tensor, files, limits) if sparse else decode(tensor, files, limits)
        except UnicodeDecodeError:
            continue  # the survey tells
        except GraphoptError as error:
            yield Finding.of(error)
            continue
        yield from _not_finite(name, record.array)


def _all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto | onnx.SparseTensorProto]:
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        yield from graph.sparse_initializer
        for node in graph.node:
            for attribute in node.attribute:
                graphs += attribute_graphs(attribute)
                if attribute.type == onnx.AttributeProto.TENSOR and not attribute.ref_attr_name:
                    yield attribute.t


def _not_finite(name: str, array: Array) -> Iterator[Finding]:
    if array.dtype == object or array.dtype.kind in "iub":
        return
    flat = array.reshape(-1)
    nans = infinite = 0
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        bad = chunk.size - int(np.isfinite(chunk).sum())
        if bad:
            missing = int(np.isnan(chunk).sum())
            nans, infinite = nans + missing, infinite + bad - missing
    if nans or infinite:
        parts = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinite, "infinite")) if count]
        yield Finding(
            "GO-321",
            # One infinite number is where a maximum or a mask starts from, and harmless.
            "warning" if nans or flat.size > 1 else "note",
            f"{' and '.join(parts)} of {flat.size} values",
            f"tensor {name!r}",
            hint="the checkpoint or its export is broken" if nans else "right in a mask; in a trained weight, broken",
        )


def _opened(path: Path, limits: Limits, backend: Backend | None) -> Iterator[Finding]:
    """What shows on a model that opens."""
    try:
        model = Model.open(path, limits)
    except GraphoptError as error:
        yield Finding.of(error)
        return
    for failure in model.inference_failures:
        what = "strict shape inference fails: types or shapes conflict"
        yield Finding("GO-307", "warning", what, _node_of(failure), failure)
    yield from _operators(model)
    yield from _interface(model)
    yield from _runtime(model, backend)


def _node_of(failure: str) -> str | None:
    found = re.search(r"node name: ([^)]+)\)", failure)
    return f"node {found[1]!r}" if found else None


def _operators(model: Model) -> Iterator[Finding]:
    known = runtime_domains()
    functions = set(model.functions)
    foreign: dict[str, list[str]] = {}
    quantizers = 0
    for node, _ in model.editor.all_nodes():
        domain = node.domain or ""
        quantizers += node.op in ("QuantizeLinear", "DequantizeLinear")
        if (domain, node.op) in functions or schema_of(node.op, model.opsets.get(domain, 1), domain) is not None:
            continue
        if domain not in known:
            foreign.setdefault(domain, []).append(node.name)
    for domain, names in foreign.items():
        yield Finding(
            "GO-322",
            "warning",
            f"{len(names)} operators of the unknown domain {domain!r}: nothing is rewritten across them",
            f"node {names[0]!r}",
            hint="--custom-op-lib of `graphopt run` registers the library that implements them",
        )
    if quantizers:
        what = f"{quantizers} QuantizeLinear and DequantizeLinear nodes: they are kept as they are"
        yield Finding("GO-325", "note", what)


def _interface(model: Model) -> Iterator[Finding]:
    names = [spec.name for spec in model.interface.overridable]
    if names:
        yield Finding(
            "GO-324",
            "note",
            f"{len(names)} initializers are also inputs: the runtime cannot fold them",
            _listed(names),
            hint="`graphopt run` freezes them where every weight is listed, --freeze-initializers always",
        )
    specs: list[TensorSpec] = [*model.interface.inputs, *model.interface.outputs]
    empty = [spec.name for spec in specs if 0 in (spec.shape or ())]
    empty += [tensor.name for tensor in _inner(model) if 0 in (model.shape_of(tensor) or ())]
    if empty:
        what = f"{len(set(empty))} tensors have a dimension of size zero: they hold nothing"
        yield Finding("GO-327", "note", what, _listed(list(dict.fromkeys(empty))))


def _inner(model: Model) -> Iterator[gs.Tensor]:
    """Computed tensors; an empty constant is how an optional operand is left out."""
    for node, _ in model.editor.all_nodes():
        if node.op != "Constant":
            yield from (tensor for tensor in node.outputs if tensor.name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _runtime(model: Model, backend: Backend | None) -> Iterator[Finding]:
    why = opens_version(model.ir_version, model.opset, backend=backend)
    if why:
        what = f"the installed onnxruntime does not take IR version {model.ir_version} with opset {model.opset}"
        yield Finding("GO-323", "warning", what, why=why, hint="upgrade onnxruntime, or export with an older opset")
        return
    try:
        open_session(model, optimization="basic", light=True, backend=backend)
    except GraphoptError as error:
        yield Finding.of(error, "warning")
