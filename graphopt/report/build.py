"""Turns what the engine measured into the report's records."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.pipeline.outcome import CheckResult, Outcome
from graphopt.report.schema import (
    CheckRecord,
    GateRecord,
    LatencyRecord,
    LatencyStatsRecord,
    ModelRecord,
    OutputRecord,
    PassRecord,
    SamplesRecord,
    SiteRecord,
    SkipRecord,
    ThreeWayRecord,
    ToolRecord,
    ValidationRecord,
    plain,
)
from graphopt.runtime.latency import LatencyStats, PairedLatency
from graphopt.validation.compare import Comparison
from graphopt.validation.gates import GateVerdict
from graphopt.validation.threeway import ThreeWay

_CPU_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_CPU_FIELDS = {"model name": "name", "flags": "flags", "Features": "flags"}


def tool_record() -> ToolRecord:
    """Versions of graphopt and what it stands on, and the machine's processor. Names no user and no host."""
    versions = {
        key: _version(dist)
        for key, dist in (
            ("graphopt", "graphopt"),
            ("onnx", "onnx"),
            ("onnxruntime", "onnxruntime"),
            ("onnx_graphsurgeon", "onnx-graphsurgeon"),
            ("numpy", "numpy"),
        )
    }
    cpu = _cpu()
    flags = cpu.get("flags", "").split()
    return ToolRecord(
        **versions,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=cpu.get("name") or platform.processor() or platform.machine(),
        instruction_sets=tuple(f for f in _CPU_FLAGS if f in flags),
    )


def model_record(model: Model, path: str = "") -> ModelRecord:
    """A model's figures.

    Args:
        model: the model.
        path: its file, as the user named it.
    """
    return ModelRecord(
        path=path,
        sha256=model.fingerprint(),
        bytes=model.file_size,
        nodes=model.node_count,
        parameters=model.parameter_count,
        opset=model.opset,
        ir_version=model.ir_version,
    )


def samples_record(samples: Samples | None, *, fingerprint: bool = True) -> SamplesRecord | None:
    """Where samples came from; ``None`` without samples.

    Args:
        samples: the samples.
        fingerprint: hash their content, which reads them all once.
    """
    if samples is None:
        return None
    return SamplesRecord(
        source=samples.source,
        count=len(samples),
        labelled=samples.labels is not None,
        synthetic=samples.synthetic,
        sha256=samples.fingerprint if fingerprint else "",
        notes=samples.notes,
    )


def pass_record(outcome: Outcome) -> PassRecord:
    """What became of one pass."""
    result = outcome.result
    return PassRecord(
        name=outcome.name,
        outcome=outcome.kind.value,
        reason=outcome.reason,
        named=outcome.step.named,
        headline=result.headline if result else "",
        safety=outcome.step.rewrite.safety.value,
        options=plain(outcome.resolved_options),
        applied=tuple(
            SiteRecord(where=s.where, what=s.what, rule=s.rule, figures=plain(s.figures))
            for s in (result.applied if result else ())
        ),
        skipped=tuple(
            SkipRecord(where=s.where, reason=s.reason, rule=s.rule) for s in (result.skipped if result else ())
        ),
        summary=plain(result.summary) if result else {},
        notes=result.notes if result else (),
        checks=tuple(check_record(c) for c in outcome.checks),
        nodes_before=outcome.nodes[0],
        nodes_after=outcome.nodes[1],
        seconds=outcome.seconds,
        error=plain(outcome.error.as_dict()) if outcome.error else None,
    )


def check_record(check: CheckResult) -> CheckRecord:
    """One check made around a pass."""
    return CheckRecord(name=check.name, passed=check.passed, message=check.message, figures=plain(check.figures))


def validation_record(provider: str, found: Comparison, threeway: ThreeWay | None = None) -> ValidationRecord:
    """The comparison on one provider, and where its error comes from."""
    figures = {key: value for key, value in vars(found).items() if key != "outputs"}
    return ValidationRecord(
        provider=provider,
        outputs=tuple(OutputRecord(**vars(output)) for output in found.outputs),
        threeway=ThreeWayRecord(**asdict(threeway)) if threeway else None,
        **figures,
    )


def latency_record(provider: str, threads: int, found: PairedLatency) -> LatencyRecord:
    """The latency measured on one provider."""
    return LatencyRecord(
        provider=provider,
        threads=threads,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        baseline=_stats(found.baseline),
        candidate=_stats(found.candidate),
        pairs=found.pairs,
        openings=found.openings,
        clock=found.clock,
        conclusive=found.conclusive,
    )


def gate_records(verdicts: Sequence[GateVerdict]) -> tuple[GateRecord, ...]:
    """The gates, in the order judged."""
    return tuple(GateRecord(**asdict(verdict)) for verdict in verdicts)


def _stats(stats: LatencyStats) -> LatencyStatsRecord:
    return LatencyStatsRecord(median_ms=stats.median_ms, p95_ms=stats.p95_ms, runs=stats.runs, times_ms=stats.times_ms)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a distribution"


def _cpu() -> dict[str, str]:
    """The first processor's name and flags from the kernel's table; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        name = _CPU_FIELDS.get(key.strip())
        if name:
            found.setdefault(name, value.strip())
    return found
