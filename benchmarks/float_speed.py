"""Float models made faster without one sample: graphopt beside its peers; prints two tables.

    python benchmarks/float_speed.py --models DIR [NAME ...] [--variants onnxsim,ort-all,graphopt,...]
    python benchmarks/float_speed.py --generated

DIR holds ``samples.py`` (see ``run_models.py``). Rows of each model:

- ``float``: the user's own file, the baseline of every ratio.
- ``onnxsim``, ``onnxslim``, ``onnxoptimizer``: the newest release, in a virtual environment that this script makes
  (``--peers`` says where); one that cannot be installed, or fails on a model, is a row that says so.
- ``ort-extended``, ``ort-all``: the file that onnxruntime saves after its own optimizations.
- ``graphopt``: ``graphopt run MODEL -o OUT``, no sample, no other setting.

All rows of a model are timed in one process, one thread, on the thread's CPU clock, in rounds that run every row once
on the same feed; a ratio is the median over the rounds of float time / row time, at ORT_ENABLE_ALL. Feeds are the
evaluation samples, which graphopt has not seen. SQNR is that of the worst output against the user's file, in dB: over
all evaluation samples, and of the worst one. The metric is the one of ``samples.py``.

The second table holds graphopt's own figures, from its report: what each rule family brings on top of all others
(time without it / time with it), and whether it was kept.

``--generated`` runs 50 blocks of Conv 3x3 32 -> 32, BatchNormalization and Relu at 56 x 56 whose weights are also
inputs (IR 4): all of them, and all but one.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from peers import PEERS, Ready, default_folder, prepare
from rounds import Feed, Replay, Row, decibel, load_module, open_file, time_rounds
from run_models import NAMES, Run, call

from graphopt.report.build import tool_record
from graphopt.report.schema import Report
from graphopt.testing.formats import listed_weights

VARIANTS = [*(peer.name for peer in PEERS), "graphopt"]
TIMED_FEEDS = {"minilm_l6_v2": 1}
"""How many evaluation feeds are timed, where not 8: of MiniLM the first (64 positions, 28 of them real)."""
FAMILY_PASSES = ("fuse", "depthwise-shift")
BLOCKS, SIZE = 50, 56


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=30.0, help="timing of one model (default 30)")
    parser.add_argument("--keep", type=Path, help="folder for the written models")
    parser.add_argument("--peers", type=Path, default=default_folder(), help="folder of the peers' environments")
    parser.add_argument("--markdown", action="store_true", help="both tables once more, as Markdown")
    parser.add_argument("--generated", action="store_true", help="the generated model instead of real ones")
    parser.add_argument("names", nargs="*", default=NAMES)
    args = parser.parse_args()
    if args.models is None and not args.generated:
        parser.error("give --models DIR, or --generated")
    tool = tool_record()
    print(f"CPU {tool.cpu}; {', '.join(tool.instruction_sets)}; one thread, ORT_ENABLE_ALL")
    print(f"onnxruntime {tool.onnxruntime}, onnx {tool.onnx}, graphopt {tool.graphopt}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        if args.generated:
            generated_table(folder, args.seconds)
        else:
            real_tables(args.names, args.models.resolve(), folder, args)


def real_tables(names: Sequence[str], models: Path, folder: Path, args: argparse.Namespace) -> None:
    """One row a model and variant, then one a model and rule family."""
    variants = args.variants.split(",")
    peers = [prepare(peer, args.peers) for peer in PEERS if peer.name in variants]
    print("\n".join(ready.label for ready in peers) + "\n")
    print_head()
    module = load_module(models / "samples.py")
    reports: dict[str, Report] = {}
    measured: dict[str, list[Row]] = {}
    for name in names:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        samples = module.load(name)
        rows, run = make_rows(samples.model, place, peers, "graphopt" in variants)
        measure(rows, samples, module, samples.eval[: TIMED_FEEDS.get(name, 8)], args.seconds)
        print("\n".join(format_row(name, row) for row in rows), flush=True)
        measured[name] = rows
        if run is not None and run.report is not None:
            reports[name] = run.report
    print(f"\n{'model':<19} {'family':<18} {'ratio':>6} {'interval':<12} finding")
    for name, report in reports.items():
        print("\n".join(family_lines(name, report)), flush=True)
    if args.markdown:
        print("\n" + "\n".join([*markdown_rows(measured), "", *markdown_families(reports)]))


def make_rows(
    source: Path, folder: Path, peers: Sequence[Ready], ours: bool, words: Sequence[str] = ()
) -> tuple[list[Row], Run | None]:
    """Write the files of one model; and graphopt's run, where it is among the variants."""
    rows = [Row("float", source)]
    for ready in peers:
        target = folder / f"{ready.peer.name}.onnx"
        note = ready.optimize(source, target)
        rows.append(Row(ready.peer.name, None if note else target, note))
    if not ours:
        return rows, None
    run = call(source, folder / "graphopt.onnx", words)
    how = run.report.verdict.text if run.report else run.message
    note = f"exit {run.code}, {run.seconds:.0f} s; {how}"
    return [*rows, Row("graphopt", run.output if run.output.exists() else None, note)], run


def measure(rows: list[Row], samples: Any, module: ModuleType, timed: Sequence[Feed], seconds: float) -> None:
    """Open every file, then fill in figures and times."""
    for row in rows:
        if row.path is not None:
            row.session = open_file(row)
    opened = [row for row in rows if row.session is not None]
    compare(opened, samples.eval)
    if samples.labels is not None:
        for row in opened:
            row.metric = module.score(samples, Replay(opened[0].session, first_outputs(row, samples.eval)))
    time_rounds(opened, timed, seconds)


def first_outputs(row: Row, feeds: Sequence[Feed]) -> list[np.ndarray[Any, Any]]:
    """The first output on every feed."""
    assert row.session is not None
    return [row.session.run(None, feed)[0] for feed in feeds]


def compare(rows: list[Row], feeds: Sequence[Feed]) -> None:
    """SQNR of the worst output against the first row: over all feeds, and on the worst one."""
    assert rows[0].session is not None
    names = [output.name for output in rows[0].session.get_outputs()]
    noise = np.zeros((len(rows), len(names), len(feeds)))
    signal = np.zeros((len(names), len(feeds)))
    for n, feed in enumerate(feeds):
        outs = [row.session.run(names, feed) for row in rows if row.session is not None]
        for o in range(len(names)):
            reference = outs[0][o].astype(np.float64)
            signal[o, n] = np.square(reference).sum()
            noise[:, o, n] = [np.square(out[o].astype(np.float64) - reference).sum() for out in outs]
    for r, row in enumerate(rows):
        row.sqnr = min(decibel(signal[o].sum(), noise[r, o].sum()) for o in range(len(names)))
        row.worst = min(decibel(signal[o, n], noise[r, o, n]) for o in range(len(names)) for n in range(len(feeds)))


def print_head() -> None:
    """The head of the first table."""
    print(f"{'model':<19} {'variant':<14} {'MB':>6} {'ms':>8} {'ratio':>6} {'interval':<12} {'SQNR dB':>8} "
          f"{'worst':>7} {'metric':>7}  note")  # fmt: skip


def format_row(name: str, row: Row) -> str:
    """One line of the first table."""
    if row.session is None or row.path is None or row.ratio is None:
        return f"{name:<19} {row.variant:<14} {row.note}"
    ratio, low, high = row.ratio
    metric = "-" if row.metric is None else f"{row.metric:.4f}"
    return (
        f"{name:<19} {row.variant:<14} {row.path.stat().st_size / 1e6:>6.2f} {row.median_ms:>8.3f} {ratio:>6.2f} "
        f"{f'{low:.2f}-{high:.2f}':<12} {row.sqnr:>8.1f} {row.worst:>7.1f} {metric:>7}  {row.note}"
    )


def family_lines(name: str, report: Report) -> Iterator[str]:
    """What each rule family brings on one model, as graphopt measured it on synthetic inputs."""
    families = tried(report)
    if not families:
        yield f"{name:<19} none applies"
    for family, found in families.items():
        kept = "kept" if found["kept"] else "taken back"
        yield f"{name:<19} {family:<18} {_interval(found)} {found['finding']}, {kept}"


def tried(report: Report) -> dict[str, Mapping[str, Any]]:
    """Family → what was found out about it."""
    return {
        family: found
        for record in report.passes
        if record.name in FAMILY_PASSES
        for family, found in record.summary.get("families", {}).items()
    }


def markdown_rows(measured: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """The first table with one line a model: ratio [interval], SQNR of the worst output in dB, metric."""
    variants = [row.variant for row in next(iter(measured.values()))[1:]]
    yield from _markdown_head(["model", "float: ms, metric", *variants])
    for name, rows in measured.items():
        own = f"{rows[0].median_ms:.2f}, {_metric(rows[0])}"
        yield f"| {' | '.join([name, own, *(_cell(row) for row in rows[1:])])} |"


def markdown_families(reports: Mapping[str, Report]) -> Iterator[str]:
    """The second table with one column a family; what was taken back stands in brackets."""
    names = list(dict.fromkeys(family for report in reports.values() for family in tried(report)))
    yield from _markdown_head(["model", *names])
    for name, report in reports.items():
        found = tried(report)
        yield f"| {' | '.join([name, *(_family_cell(found.get(family)) for family in names)])} |"


def _markdown_head(names: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"


def _cell(row: Row) -> str:
    if row.ratio is None:
        return row.note or "-"
    ratio, low, high = row.ratio
    fidelity = "identical" if row.sqnr == math.inf else f"{row.sqnr:.0f} dB"
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}], {fidelity}, {_metric(row)}"


def _metric(row: Row) -> str:
    return "-" if row.metric is None else f"{row.metric:.3f}"


def _family_cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    text = f"{found['speedup']:.2f}" if "speedup" in found else str(found["finding"])
    return text if found["kept"] else f"({text})"


def _interval(found: Mapping[str, Any]) -> str:
    ratio = found.get("speedup", math.nan)
    if math.isnan(ratio):
        return f"{'-':>6} {'-':<12}"
    low, high = found["low_speedup"], found["high_speedup"]
    return f"{ratio:>6.2f} {f'{low:.2f}-{high:.2f}':<12}"


class Generated:
    """Feeds of the generated model, in the form of ``samples.py``."""

    labels = None

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.eval = [{"input": rng.standard_normal((1, 32, SIZE, SIZE)).astype(np.float32)} for _ in range(4)]


def generated_table(folder: Path, seconds: float) -> None:
    """The model whose weights are also inputs: what becomes of them, and of its speed."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = [("every", 0, ()), ("every", 0, ("--keep-overridable",)), ("all but one", 1, ()),
             ("all but one", 1, ("--freeze-initializers",))]  # fmt: skip
    print(f"\n{'listed':<12} {'flag':<22} {'frozen':>6} {'kept':>5} {'gain of freezing':<18} {'ratio':>6} "
          f"{'interval':<12} {'SQNR dB':>8}  verdict")  # fmt: skip
    for listed, left_out, words in cases:
        source = folder / f"without_{left_out}.onnx"
        onnx.save(listed_weights(blocks=BLOCKS, size=SIZE, left_out=left_out), source)
        rows, run = make_rows(source, folder, (), ours=True, words=words)
        measure(rows, samples := Generated(), ModuleType("none"), samples.eval, seconds)
        print(generated_line(listed, " ".join(words), rows[-1], run), flush=True)


def generated_line(listed: str, flag: str, row: Row, run: Run | None) -> str:
    """One line of the generated model's table."""
    head = f"{listed:<12} {flag or '-':<22}"
    if run is None or run.report is None or row.ratio is None:
        return f"{head} {row.note}"
    summary: dict[str, Any] = next((p.summary for p in run.report.passes if p.name == "freeze-initializers"), {})
    gain = "-"
    if "freezing_speedup" in summary:
        low, high = summary["freezing_low_speedup"], summary["freezing_high_speedup"]
        gain = f"{summary['freezing_speedup']:.2f} [{low:.2f}, {high:.2f}]"
    ratio, low, high = row.ratio
    return (
        f"{head} {summary.get('inputs_frozen', 0):>6} {summary.get('inputs_kept', '-'):>5} {gain:<18} {ratio:>6.2f} "
        f"{f'{low:.2f}-{high:.2f}':<12} {row.sqnr:>8.1f}  {run.report.verdict.text}"
    )


if __name__ == "__main__":
    main()
