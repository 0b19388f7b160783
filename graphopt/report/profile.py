"""Where a model's time goes: the document that ``graphopt profile`` prints, and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from graphopt.report.schema import Count, ModelRecord, Record, SamplesRecord, ToolRecord, plain
from graphopt.report.terminal import short_provider
from graphopt.report.text import (
    Line,
    Span,
    cells,
    counted,
    cut,
    fraction,
    milliseconds,
    pad,
    printable,
    significant,
    wrap,
)

LAYOUT = "layout"
_LABEL = 26
_SHOWN = 15


class SourceRecord(Record):
    """One node of the model."""

    name: str
    op: str


class KernelRecord(Record):
    """One node of the graph as the provider runs it."""

    op: str = Field(description="operator that ran, with its domain")
    where: str = Field(description="node of the model that it is best known by; for a reorder the tensor")
    kind: Literal["source", "layout", "added"] = Field(
        description="source: does work of the model's; layout: a reorder; added: other nodes of the provider's making"
    )
    sources: tuple[SourceRecord, ...] = Field((), description="nodes of the model that it took in, in their order")
    node_ms: float = Field(description="wall time of one run of the model, onnxruntime's profiler")
    share: float = Field(description="of all nodes' time")
    fixed: bool = Field(description="a kernel that no rewrite rule can make faster")
    flushed_ms: float | None = Field(None, description="time with denormals flushed; null: they do not slow it down")


class OpRecord(Record):
    """All nodes of one operator."""

    op: str
    kind: Literal["source", "layout", "added"]
    count: Count
    total_ms: float
    share: float


class AgreementRecord(Record):
    """The sum over the nodes beside the session's own time; neither is adjusted to the other."""

    nodes_ms: float = Field(description="sum over the nodes: wall time, onnxruntime's profiler")
    session_ms: float = Field(description="one run of the session without the profiler")
    clock: Literal["thread-cpu", "wall"] = Field(description="what session_ms counts")
    ratio: float = Field(description="nodes_ms / session_ms")
    profiler_ms: float = Field(
        description="of nodes_ms: about what the profiler's own work takes, as measured on idle nodes"
    )
    profiler_node_ms: float = Field(description="the same for one node that holds no body")
    lost_ms: float = Field(description="what a counted run with the profiler lost to other processes")
    runs: Count = Field(description="runs counted per sample, with the profiler and without")


class DenormalsRecord(Record):
    """Whether numbers near zero slow nodes down."""

    measured: bool
    reason: str = Field("", description="why nothing was measured")
    nodes: tuple[str, ...] = Field((), description="nodes that are slow because of them")
    gain_ms: float = Field(0.0, description="by how much flushing them makes the run faster")


class ProfileReport(Record):
    """Where a model's time goes, on one provider."""

    schema_id: Literal["graphopt/profile"] = "graphopt/profile"
    schema_version: Literal[1] = 1
    tool: ToolRecord
    model: ModelRecord
    samples: SamplesRecord
    provider: str
    threads: Count
    agreement: AgreementRecord
    ops: tuple[OpRecord, ...] = Field((), description="by time, the most first")
    kernels: tuple[KernelRecord, ...] = Field((), description="in the order of running")
    layout_ms: float = Field(description="reorders and transposes that the provider added")
    fixed_ms: float = Field(description="kernels of fixed_ops: no rewrite rule can make them faster")
    fixed_ops: tuple[str, ...] = Field((), description="operators whose kernels count as fixed")
    denormals: DenormalsRecord

    def to_json(self) -> str:
        """Two-space indented, ends on a newline."""
        return json.dumps(plain(self.model_dump(mode="python")), indent=2, allow_nan=False) + "\n"


def profile_lines(report: ProfileReport, width: int, *, top: int = _SHOWN) -> Iterator[Line]:
    """The report as styled lines.

    Args:
        report: of one model.
        width: columns to fit into.
        top: slowest nodes to list.
    """
    yield from _header(report, width)
    yield ()
    yield from _agreement(report, width)
    yield ()
    yield from _operators(report, width)
    yield ()
    yield from _shares(report, width)
    yield ()
    yield from _slowest(report, width, top)


def _header(report: ProfileReport, width: int) -> Iterator[Line]:
    samples = report.samples
    kind = "synthetic input" if samples.synthetic else "sample"
    threads = "threads: runtime's choice" if report.threads == 0 else f"{report.threads} thread"
    parts = [
        printable(report.model.path or "model"),
        f"{short_provider(report.provider)}, {threads}{'s' if report.threads > 1 else ''}",
        f"{report.agreement.runs} runs on {samples.count} {kind}{'s' if samples.count != 1 else ''}",
    ]
    for line in wrap(" · ".join(parts), width):
        yield (Span(line, "bold"),)


def _agreement(report: ProfileReport, width: int) -> Iterator[Line]:
    found = report.agreement
    clock = "CPU time of the calling thread" if found.clock == "thread-cpu" else "wall time"
    yield from _fact("session", milliseconds(found.session_ms), f"{clock}, profiler off", width)
    text = f"{found.ratio:.3f}x the session: wall time of {len(report.kernels)} nodes, onnxruntime's profiler"
    yield from _fact("sum of the nodes", milliseconds(found.nodes_ms), text, width)
    text = f"of that sum: the profiler's own work, {significant(1e3 * found.profiler_node_ms, 2)} µs a node"
    yield from _fact("", f"≈ {milliseconds(found.profiler_ms)}", text, width)
    if found.lost_ms > 0.02 * found.session_ms:
        text = "that a run waits while other processes compute: node times may hold some of it"
        yield from _fact("", milliseconds(found.lost_ms), text, width)


def _fact(label: str, figure: str, note: str, width: int) -> Iterator[Line]:
    head = pad(f"  {label}", _LABEL) + pad(figure, 14)
    for index, line in enumerate(wrap(note, width - cells(head))):
        yield Span(head if index == 0 else " " * cells(head)), Span(line, "dim")


def _operators(report: ProfileReport, width: int) -> Iterator[Line]:
    head = f"  {'operator that ran':<{_LABEL}}{'nodes':>6}{'ms':>10}{'share':>9}  stands for"
    yield (Span(cut(head, width), "dim"),)
    room = width - _LABEL - 29
    for op in report.ops:
        made = [_made_from(k) for k in report.kernels if (k.op, k.kind) == (op.op, op.kind)]
        label = pad(cut(short_op(op.op), _LABEL - 1), _LABEL)
        text = f"  {label}{op.count:>6}{op.total_ms:>10.3f}{fraction(op.share):>9}  "
        style = "" if op.kind == "source" else "dim"
        yield Span(text, style), Span(cut(counted(made, 3), room), "dim")


def _made_from(kernel: KernelRecord) -> str:
    if kernel.kind == LAYOUT:
        return "reorders the provider added"
    if kernel.kind == "added":
        return "nodes the provider added"
    return "+".join(short_op(source.op) for source in kernel.sources)


def _shares(report: ProfileReport, width: int) -> Iterator[Line]:
    whole = report.agreement.nodes_ms or 1.0
    listed = ", ".join(sorted({short_op(k.op) for k in report.kernels if k.fixed}))
    note = f"{fraction(report.fixed_ms / whole)}: the arithmetic kernels themselves ({listed or 'none'})"
    yield from _fact("no rule can touch", milliseconds(report.fixed_ms), note, width)
    reorders = [short_op(k.op) for k in report.kernels if k.kind == LAYOUT]
    note = f"{fraction(report.layout_ms / whole)}: {counted(reorders, 3) or 'none'}"
    yield from _fact("layout reorders", milliseconds(report.layout_ms), note, width)
    fused = [k for k in report.kernels if len(k.sources) > 1]
    took = sum(len(k.sources) for k in fused)
    yield from _fact("fused by the provider", f"{len(fused)} nodes", f"they stand for {took} of the model's", width)
    yield from _denormals(report, width)


def _denormals(report: ProfileReport, width: int) -> Iterator[Line]:
    found = report.denormals
    if not found.measured:
        yield from _fact("denormals", "not measured", found.reason, width)
    elif not found.nodes:
        yield from _fact("denormals", "none", "no node is faster where they are flushed to zero", width)
    else:
        names = ", ".join(printable(name) for name in found.nodes[:4]) + (", …" if len(found.nodes) > 4 else "")
        note = f"on {len(found.nodes)} nodes that are faster where denormals are flushed to zero: {names}"
        yield from _fact("denormals", milliseconds(found.gain_ms), note, width)


def _slowest(report: ProfileReport, width: int, top: int) -> Iterator[Line]:
    ordered = sorted(report.kernels, key=lambda kernel: -kernel.node_ms)[:top]
    yield (Span(f"  {'slowest nodes':<{_LABEL}}{'ms':>9}{'share':>9}  node", "dim"),)
    for kernel in ordered:
        yield from _node(kernel, width)
    if len(ordered) < len(report.kernels):
        yield (Span(f"  and {len(report.kernels) - len(ordered)} more: --top N or --json", "dim"),)


def _node(kernel: KernelRecord, width: int) -> Iterator[Line]:
    """One node; a name that is too long goes on below: what is cut off may be all that tells it from another."""
    figures = f"{kernel.node_ms:>9.3f}{fraction(kernel.share):>9}  "
    head = f"  {pad(cut(short_op(kernel.op), _LABEL - 1), _LABEL)}{figures}"
    note = f"  (flushed {milliseconds(kernel.flushed_ms)})" if kernel.flushed_ms is not None else ""
    first, *rest = wrap(printable(kernel.where), width - cells(head))
    beside = not rest and cells(head + first + note) <= width
    yield Span(head), Span(first, "dim"), Span(note if beside else "", "bad")
    for piece in rest:
        yield Span(" " * cells(head)), Span(piece, "dim")
    if note and not beside:
        yield (Span(" " * _LABEL + note, "bad"),)


def short_op(op: str) -> str:
    """``com.microsoft.nchwc:Conv`` → ``Conv (nchwc)``; operators of the standard domain as they are."""
    domain, _, name = op.rpartition(":")
    return f"{name} ({domain.rpartition('.')[2]})" if domain else name
