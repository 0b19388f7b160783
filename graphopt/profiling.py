"""Where a model's time goes: ``graphopt profile``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.pairs import TIMED_FEEDS, Conditions, Path
from graphopt.report.build import model_record, samples_record, tool_record
from graphopt.report.profile import (
    AgreementRecord,
    DenormalsRecord,
    KernelRecord,
    OpRecord,
    ProfileReport,
    SourceRecord,
)
from graphopt.report.schema import SamplesRecord
from graphopt.runtime.denormals import Denormals, find_denormals
from graphopt.runtime.fusion import Attribution, attribute, plain_op
from graphopt.runtime.kernels import KernelTime, Recording, profiler_cost, record
from graphopt.runtime.labels import Labelled, label

FIXED = frozenset(
    (
        *("Conv", "ConvInteger", "ConvTranspose", "DeformConv", "FusedConv", "NhwcFusedConv", "QLinearConv"),
        *(
            "DynamicQuantizeMatMul",
            "FusedGemm",
            "FusedMatMul",
            "Gemm",
            "MatMul",
            "MatMulInteger",
            "MatMulIntegerToFloat",
        ),
        *("MatMulNBits", "QGemm", "QLinearMatMul", "DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"),
    )
)
"""Convolutions, matrix products and recurrent layers. A rule can take nodes away around such a kernel and fold them
into its weights; what the kernel itself takes, only another type, fewer channels or another kernel changes."""

RUNS = 40


def profile_model(
    path: Path, conditions: Conditions, *, max_seconds: float = 20.0, denormals: bool = True
) -> ProfileReport:
    """Time every node of a model.

    Args:
        path: the model.
        conditions: what it is run on; of several samples the first four, of several providers the first.
        max_seconds: longest timing, the search for denormals not counted.
        denormals: look for nodes that denormals slow down.

    Raises:
        GraphoptError: the model or the samples cannot be used.
    """
    model = Model.open(path)
    samples = conditions.feeds(model).first(TIMED_FEEDS)
    labelled = label(model)
    recording = record(
        labelled.skeleton,
        list(samples),
        target=conditions.target,
        runs=RUNS,
        seconds=max_seconds,
        progress=conditions.progress,
    )
    found = Denormals({}, "not asked for")
    if denormals:
        found = find_denormals(model, list(samples), target=conditions.target)
    return _report(model, path, labelled, samples, conditions, recording, found)


def _report(
    model: Model,
    path: Path,
    labelled: Labelled,
    samples: Samples,
    conditions: Conditions,
    recording: Recording,
    denormals: Denormals,
) -> ProfileReport:
    kinds = attribute([kernel.node for kernel in recording.kernels], labelled)
    whole = recording.total_ms or 1.0
    kernels = tuple(
        _kernel(kernel, kind, labelled, whole, denormals) for kernel, kind in zip(recording.kernels, kinds, strict=True)
    )
    return ProfileReport(
        tool=tool_record(),
        model=model_record(model, str(path)),
        samples=cast(SamplesRecord, samples_record(samples)),
        provider=str(conditions.target.provider),
        threads=conditions.target.threads,
        agreement=_agreement(recording),
        ops=_by_op(kernels, whole),
        kernels=kernels,
        layout_ms=sum(k.node_ms for k in kernels if k.kind == "layout"),
        fixed_ms=sum(k.node_ms for k in kernels if k.fixed),
        fixed_ops=tuple(sorted(FIXED)),
        denormals=_denormals(kernels, denormals),
    )


def _agreement(recording: Recording) -> AgreementRecord:
    cost = profiler_cost()
    return AgreementRecord(
        nodes_ms=recording.total_ms,
        session_ms=recording.session_ms,
        clock=recording.clock,
        ratio=recording.total_ms / recording.session_ms if recording.session_ms else 0.0,
        profiler_ms=cost.share_of(recording),
        profiler_node_ms=cost.counted,
        lost_ms=recording.lost_ms,
        runs=recording.runs,
    )


def _kernel(
    timed: KernelTime, found: Attribution, labelled: Labelled, whole: float, denormals: Denormals
) -> KernelRecord:
    node = timed.node
    sources = [labelled.nodes[index] for index in found.sources]
    same = [source.name for source in sources if plain_op(source.op) == plain_op(node.op)]
    if sources:
        where = (same or [sources[-1].name])[0]
    else:
        named = [name for name in (*node.outputs, *node.inputs) if labelled.given_name(name) != name]
        where = labelled.given_name(named[0]) if named else node.name
    slow = denormals.slow.get(node.name)
    return KernelRecord(
        op=node.op,
        where=where,
        kind=found.kind,
        sources=tuple(SourceRecord(name=source.name, op=source.op) for source in sources),
        node_ms=timed.milliseconds,
        share=timed.milliseconds / whole,
        fixed=plain_op(node.op) in FIXED,
        flushed_ms=None if slow is None else slow.flushed_ms,
    )


def _by_op(kernels: Sequence[KernelRecord], whole: float) -> tuple[OpRecord, ...]:
    groups: dict[tuple[str, str], list[KernelRecord]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.op, kernel.kind].append(kernel)
    records = []
    for (op, _), members in groups.items():
        total = sum(kernel.node_ms for kernel in members)
        records.append(OpRecord(op=op, kind=members[0].kind, count=len(members), total_ms=total, share=total / whole))
    return tuple(sorted(records, key=lambda one: (-one.total_ms, one.op)))


def _denormals(kernels: Sequence[KernelRecord], found: Denormals) -> DenormalsRecord:
    return DenormalsRecord(
        measured=not found.reason,
        reason=found.reason,
        nodes=tuple(kernel.where for kernel in kernels if kernel.flushed_ms is not None),
        gain_ms=sum(slow.milliseconds - slow.flushed_ms for slow in found.slow.values()),
    )
