"""The one closing table of a run.

The layout is made once, as lines of styled pieces; a terminal shows them in colour, everything else gets the
same lines as plain text without any control code.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from graphopt.report.schema import (
    GateRecord,
    LatencyRecord,
    OutputRecord,
    PassRecord,
    Report,
    ValidationRecord,
)
from graphopt.report.text import (
    ASCII,
    Line,
    Span,
    alike,
    cells,
    change,
    count,
    counted,
    cut,
    decibel,
    fraction,
    milliseconds,
    pad,
    printable,
    seconds,
    significant,
    size,
    takes_escapes,
    wrap,
)

PLAIN_WIDTH = 100
"""Columns where there is no terminal to ask."""
LEAST_WIDTH = 60

_LABEL = 22
_NAME = 25
_FIGURE = 13
_SHOWN_OUTPUTS = 4
_SHOWN_REASONS = 3
_KNOWN = ("nodes_before", "nodes_after")
_STYLES = {"good": "green", "bad": "bold red", "dim": "dim", "bold": "bold", "": ""}
_MARKS = {
    "applied": Span("✔", "good"),
    "unchanged": Span("·", "dim"),
    "skipped": Span("·", "dim"),
    "rolled back": Span("✘", "bad"),
    "failed": Span("✘", "bad"),
}


def print_report(report: Report, *, report_path: str = "", verbose: bool = False, stream: TextIO | None = None) -> None:
    """Write the closing table to standard output: in colour on a terminal, else as plain text.

    Args:
        report: of the run.
        report_path: where the JSON document lies; named in the last line.
        verbose: every place left alone with its reason, every check, every output.
        stream: where to write instead of standard output.
    """
    print_lines(lambda width: render_lines(report, width=width, report_path=report_path, verbose=verbose), stream)


def print_lines(lines_for: Callable[[int], Iterable[Line]], stream: TextIO | None = None) -> None:
    """Write lines, in colour on a terminal, else or with ``NO_COLOR`` as plain text.

    Args:
        lines_for: gives the lines for a number of columns.
        stream: where to write instead of standard output.
    """
    out = stream or sys.stdout
    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if out.isatty() else PLAIN_WIDTH
    lines = list(lines_for(max(width, LEAST_WIDTH)))
    if takes_escapes(out):
        _print_styled(lines, out, width)
    else:
        out.write(encodable(as_text(lines), out.encoding))


def render(report: Report, *, width: int = PLAIN_WIDTH, report_path: str = "", verbose: bool = False) -> str:
    """The closing table as plain text, no line wider than ``width`` columns (at least 60); ends on a newline."""
    return as_text(render_lines(report, width=width, report_path=report_path, verbose=verbose))


def as_text(lines: Iterable[Line]) -> str:
    """Lines without their styles, each ended by a newline."""
    return "".join("".join(span.text for span in line).rstrip() + "\n" for line in lines)


def encodable(text: str, encoding: str | None) -> str:
    """The text with its signs in ASCII where ``encoding`` cannot hold them."""
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return text.translate(ASCII).encode("ascii", "replace").decode("ascii")
    return text


def render_lines(report: Report, *, width: int, report_path: str = "", verbose: bool = False) -> list[Line]:
    """The closing table as styled lines.

    Args:
        report: of the run.
        width: columns to fit into; less than 60 is taken as 60.
        report_path: where the JSON document lies.
        verbose: see ``print_report``.
    """
    room = max(width, LEAST_WIDTH)
    return [
        *_header(report, room),
        (),
        *_passes(report.passes, room, verbose),
        (),
        *_figures(report, room),
        *output_lines(report.validation, room, verbose),
        *gate_lines(report.gates, room),
        *_messages(report, room),
        *_closing(report, report_path, room),
    ]


def _print_styled(lines: Sequence[Line], out: TextIO, width: int) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=out, width=width, highlight=False)
    for line in lines:
        text = Text.assemble(*((encodable(s.text, out.encoding), _STYLES[s.style]) for s in line))
        console.print(text, soft_wrap=True)


def _header(report: Report, width: int) -> Iterator[Line]:
    where = report.output.path if report.output and report.output.path else ""
    what = printable(report.source.path or "model") + (f" → {printable(where)}" if where else "")
    parts = [f"graphopt {report.tool.graphopt}", what]
    if report.recipe.source:
        parts.append(f"recipe {printable(report.recipe.source)}")
    first, *rest = wrap(" · ".join([*parts, f"seed {report.seed}"]), width - 2)
    yield (Span(first, "bold"),)
    for line in rest:
        yield (Span(f"  {line}", "bold"),)


def _passes(records: Sequence[PassRecord], width: int, verbose: bool) -> Iterator[Line]:
    if not records:
        yield (Span("  no pass was run", "dim"),)
        return
    for record in records:
        time = seconds(record.seconds)
        label = Span(pad(cut(record.name, _NAME - 5), _NAME - 4), "bold")
        body = wrap(_what_became(record), width - _NAME - 10)
        yield Span("  "), _MARKS[record.outcome], Span(" "), label, *_ended(body[0], time, width)
        for line in body[1:]:
            yield Span(" " * _NAME), Span(line)
        for text in _details(record, verbose):
            for line in wrap(text, width - _NAME):
                yield Span(" " * _NAME), Span(line, "dim")


def _ended(text: str, time: str, width: int) -> tuple[Span, ...]:
    room = width - _NAME - cells(time)
    return Span(pad(text, room)), Span(time, "dim")


def _what_became(record: PassRecord) -> str:
    if record.outcome == "applied":
        return printable(_changed(record))
    if record.outcome == "unchanged":
        return "nothing to change"
    return printable(f"{record.outcome}: {record.reason}")


def _changed(record: PassRecord) -> str:
    before, after = record.nodes_before, record.nodes_after
    parts = [f"{before} → {after} nodes"] if None not in (before, after) and before != after else []
    if record.headline:
        return "; ".join([record.headline, *parts])
    if record.applied:
        by_rule = counted([site.rule or site.what for site in record.applied], 5)
        places = len(record.applied)
        distinct = len({site.rule or site.what for site in record.applied})
        parts.append(by_rule if distinct <= max(5, places // 2) else f"{places} places")
    figures = [f"{_words(k)} {_value(v)}" for k, v in record.summary.items() if k not in _KNOWN and _is_scalar(v)]
    return "; ".join([*parts, *figures[:6]]) or "changed"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | bool | int | float)


def _value(value: object) -> str:
    if isinstance(value, float):
        return significant(value, 4).rstrip("0").rstrip(".") if value % 1 else f"{value:g}"
    return str(value)


def _details(record: PassRecord, verbose: bool) -> Iterator[str]:
    if record.skipped and not verbose:
        reasons = alike([skip.reason.removeprefix(skip.where).strip() for skip in record.skipped], _SHOWN_REASONS)
        yield printable(f"left alone {len(record.skipped)}: {reasons}")
    if verbose:
        for site in record.applied:
            yield printable(f"changed {site.where}: {site.what}")
        for skip in record.skipped:
            yield printable(f"left alone {skip.where}: {skip.reason}")
        for check in record.checks:
            state = {True: "held", False: "FAILED", None: "not made"}[check.passed]
            yield printable(f"check {check.name}: {state}" + (f", {check.message}" if check.message else ""))
    for note in record.notes:
        yield printable(note)


def _figures(report: Report, width: int) -> Iterator[Line]:
    before, after = report.source, report.result or report.output
    yield (Span(f"{'':{_LABEL}}{'before':<{_FIGURE}}{'after':<{_FIGURE}}", "dim"),)
    if after is not None:
        yield _row("  nodes", count(before.nodes), count(after.nodes), change(before.nodes, after.nodes))
        pair = before.parameters, after.parameters
        yield _row("  parameters", count(pair[0]), count(pair[1]), change(*pair))
        yield _row("  file size", size(before.bytes), size(after.bytes), change(before.bytes, after.bytes))
    yield from latency_lines(report.latency, width)
    yield from score_lines(report.validation)


def _row(label: str, before: str, after: str, note: str = "", style: str = "") -> Line:
    figures = pad(before, _FIGURE) + pad(after, _FIGURE)
    return Span(pad(cut(label, _LABEL - 1), _LABEL)), Span(figures), Span(note, style)


def latency_lines(records: Sequence[LatencyRecord], width: int) -> Iterator[Line]:
    """Median and 95th percentile before and after, with the ratio; the provider is named where there are several."""
    for timed in records:
        yield from _timed(timed, len(records) > 1, width)


def _timed(timed: LatencyRecord, several: bool, width: int) -> Iterator[Line]:
    name = f" {short_provider(timed.provider)}" if several else ""
    style = "good" if timed.low > 1 else "bad" if timed.high < 1 else ""
    ratio = f"{timed.ratio:.2f}x [{timed.low:.2f}, {timed.high:.2f}]"
    if not timed.conclusive:
        ratio += " inconclusive"
    base, new = timed.baseline, timed.candidate
    pair = milliseconds(base.median_ms), milliseconds(new.median_ms)
    yield from _noted(f"  latency p50{name}", *pair, Span(ratio, style), width)
    threads = "threads: runtime's choice" if timed.threads == 0 else f"{timed.threads} thread"
    threads += "s" if timed.threads > 1 else ""
    clock = "CPU time" if timed.clock == "thread-cpu" else "wall time"
    pairs = f"{timed.pairs} pairs" + (f" in {timed.openings} openings" if timed.openings > 1 else "")
    note = f"{short_provider(timed.provider)}, {threads}, {clock}, {pairs}"
    pair = milliseconds(base.p95_ms), milliseconds(new.p95_ms)
    yield from _noted("          p95", *pair, Span(note, "dim"), width)


def _noted(label: str, before: str, after: str, note: Span, width: int) -> Iterator[Line]:
    """A row with its note beside it, or below it where there is no room."""
    if _LABEL + 2 * _FIGURE + cells(note.text) <= width:
        yield _row(label, before, after, note.text, note.style)
        return
    yield _row(label, before, after)
    for line in wrap(note.text, width - _LABEL):
        yield Span(" " * _LABEL), Span(line, note.style)


def score_lines(records: Sequence[ValidationRecord]) -> Iterator[Line]:
    """Top-1, top-5 and the user's metric, before and after."""
    for found in records:
        yield from _scored(found, len(records) > 1)


def _scored(found: ValidationRecord, several: bool) -> Iterator[Line]:
    name = f" {short_provider(found.provider)}" if several else ""
    for label, before, after in (
        ("top-1", found.reference_top1, found.candidate_top1),
        ("top-5", found.reference_top5, found.candidate_top5),
        (printable(found.metric), found.reference_metric, found.candidate_metric),
    ):
        if before is None or after is None:
            continue
        points = 100 * (after - before)
        note = f"{points:+.2f} points" if points else "same"
        yield _row(f"  {label}{name}", f"{before:.4f}", f"{after:.4f}", note)


def output_lines(records: Sequence[ValidationRecord], width: int, verbose: bool = False) -> Iterator[Line]:
    """How far the outputs moved; without ``verbose`` the four that moved furthest."""
    for found in records:
        yield from _compared(found, width, verbose)


def _compared(found: ValidationRecord, width: int, verbose: bool) -> Iterator[Line]:
    kind = "synthetic inputs" if found.synthetic else "samples"
    provider = short_provider(found.provider)
    yield (Span(f"  outputs on {found.samples} {kind}, {provider}:"),)
    ordered = list(found.outputs)
    if not verbose and len(ordered) > _SHOWN_OUTPUTS:
        ordered = sorted(ordered, key=_fidelity)[:_SHOWN_OUTPUTS]
    for record in ordered:
        label = pad(cut(f"    {printable(record.name)}", _LABEL - 1), _LABEL)
        for index, line in enumerate(wrap(_output(record), width - _LABEL)):
            yield Span(label if index == 0 else " " * _LABEL), Span(line)
    if len(ordered) < len(found.outputs):
        yield (Span(f"    and {len(found.outputs) - len(ordered)} more, closer to the original", "dim"),)
    if found.threeway:
        for line in wrap(f"three-way check: {found.threeway.message}", width - 4):
            yield (Span(f"    {line}", "dim"),)


def _fidelity(record: OutputRecord) -> float:
    if record.finite_share == 0.0:
        return -float("inf")
    if record.sqnr_db is not None:
        return record.sqnr_db
    return float("inf") if record.agreement in (None, 1.0) else 0.0


def _discrete(record: OutputRecord) -> str:
    if record.agreement == 1.0 and not record.shape_mismatch:
        return "identical"
    text = f"{fraction(record.agreement or 0.0)} of the elements are equal"
    return text + (f", shape differs on {record.shape_mismatch} samples" if record.shape_mismatch else "")


def _output(record: OutputRecord) -> str:
    if record.empty:
        return "nothing was compared: it holds no element on any sample"
    if record.finite_share == 0.0:
        elsewhere = f", {record.nan_mismatch} of them not so in the other model" if record.nan_mismatch else ""
        return f"nothing was compared: all elements of the original are NaN or infinite{elsewhere}"
    if record.kind == "discrete":
        return _discrete(record)
    if record.sqnr_db == float("inf") and not record.max_abs:
        return "identical"
    parts = [f"SQNR {decibel(record.sqnr_db)} (worst sample {decibel(record.worst_sqnr_db)})"]
    if record.cosine is not None and record.worst_cosine is not None:
        parts.append(f"cosine {_cosine(record.cosine)} (worst {_cosine(record.worst_cosine)})")
    if record.max_abs is not None:
        parts.append(f"max|Δ| {significant(record.max_abs, 3)}")
    if record.agreement is not None:
        parts.append(f"argmax agrees {fraction(record.agreement)}")
    if record.nan_mismatch:
        parts.append(f"NaN or infinite in one model only: {record.nan_mismatch}")
    if record.shape_mismatch:
        parts.append(f"shape differs on {record.shape_mismatch} samples")
    return " · ".join(parts)


def _cosine(value: float) -> str:
    return f"{value:.4f}" if value < 0.9999 or value == 1.0 else f"1 - {1 - value:.0e}"


def gate_lines(gates: Sequence[GateRecord], width: int) -> Iterator[Line]:
    """Each gate with its numbers."""
    several = len({gate.provider for gate in gates if gate.provider}) > 1
    for index, gate in enumerate(gates):
        label = pad("  gates" if index == 0 else "", _LABEL)
        mark = Span("✔ ", "good") if gate.passed else Span("✘ ", "bad")
        where = f" ({short_provider(gate.provider)})" if several and gate.provider else ""
        origin = "" if gate.user_set else ", default"
        text = printable(f"{gate.name}{origin}{where}: {gate.message}")
        for row, line in enumerate(wrap(text, width - _LABEL - 2)):
            head = (Span(label), mark) if row == 0 else (Span(" " * (_LABEL + 2)),)
            yield *head, Span(line, "" if gate.passed else "bad")


def _messages(report: Report, width: int) -> Iterator[Line]:
    texts = [("warning", text) for text in report.warnings]
    texts += [("error", f"{error.get('code', '')} {error.get('what', '')}".strip()) for error in report.errors]
    for kind, text in texts:
        for index, line in enumerate(wrap(printable(text), width - 11)):
            yield Span(f"  {kind}: " if index == 0 else " " * 11, "bad" if kind == "error" else "bold"), Span(line)


def _closing(report: Report, report_path: str, width: int) -> Iterator[Line]:
    yield ()
    ok = report.verdict.exit_code == 0
    if report_path:
        for line in wrap(f"report {printable(report_path)}", width):
            yield (Span(line, "dim"),)
    text = f"{'OK' if ok else 'FAILED'}: {report.verdict.text} (exit {report.verdict.exit_code})"
    for line in wrap(printable(text), width):
        yield (Span(line, "good" if ok else "bad"),)


def short_provider(name: str) -> str:
    """``CPUExecutionProvider`` as ``CPU``; options stay."""
    return printable(name.replace("ExecutionProvider", ""))
