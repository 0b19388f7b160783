"""``graphopt run`` on real models as a user types it; prints one row a model.

    python benchmarks/run_models.py --models DIR [NAME ...] [-- extra options of graphopt run]

DIR holds ``samples.py`` (``python samples.py NAME OUT`` writes ``calib`` and ``eval`` and prints the model's path).
``--odd`` runs the files of ``DIR/odd`` through ``--pass simplify`` instead, without samples.
Ratios are graphopt's own: interleaved pairs, one thread, against the user's file, both at ORT_ENABLE_ALL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt.report.schema import SCHEMA_ID, Report

HERE = Path(__file__).resolve().parent
NAMES = [
    "mobilenet_v1", "efficientnet_lite0", "cifar10_resnet32", "fmnist_resnet8", "mnist_opset8",
    "orientation", "ppocr_v4_rec", "ppocr_v4_det", "magika", "minilm_l6_v2",
]  # fmt: skip


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="folder for the written models and reports")
    parser.add_argument("--odd", action="store_true", help="DIR/odd/*.onnx through simplify, without samples")
    parser.add_argument("names", nargs="*", default=None)
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args, extra = parser.parse_args(words[:cut]), words[cut + 1 :]
    models = args.models.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        if args.odd:
            odd_table(args.names or sorted(p.stem for p in (models / "odd").glob("*.onnx")), models, folder, extra)
        else:
            table(args.names or NAMES, models, folder, extra)


def table(names: Sequence[str], models: Path, folder: Path, extra: Sequence[str]) -> None:
    """One row a model, with its samples."""
    print(f"{'model':<19} {'exit':>4} {'kept passes':<28} {'ratio':>5} {'interval':<11} {'SQNR dB':>7} {'worst':>6} "
          f"{'before':>7} {'after':>7} {'MB':>6} {'of':>6} {'s':>5}  verdict")  # fmt: skip
    for name in names:
        print(format_row(name, run_graphopt(name, models, folder / name, extra)), flush=True)


def odd_table(names: Sequence[str], models: Path, folder: Path, extra: Sequence[str]) -> None:
    """One row a model: ``--pass simplify``, no samples."""
    print(f"{'model':<21} {'exit':>4} {'nodes':>11} {'s':>5}  verdict")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        run = call(models / "odd" / f"{name}.onnx", folder / f"{name}.onnx", ["--pass", "simplify", *extra])
        nodes, message = "", run.message
        if run.report is not None:
            after = run.report.result or run.report.output
            nodes = f"{run.report.source.nodes} > {after.nodes}" if after else f"{run.report.source.nodes} > -"
            message = run.report.verdict.text
        print(f"{name:<21} {run.code:>4} {nodes:>11} {run.seconds:>5.1f}  {message}", flush=True)


def prepare(name: str, models: Path, target: Path) -> tuple[Path, Path, Path]:
    """Write the samples of one model; its path, calibration and evaluation sources."""
    done = subprocess.run(
        [sys.executable, str(models / "samples.py"), name, str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    model = Path(done.stdout.strip().rsplit("model ", 1)[1])
    parts = [next(p for p in (target / f"{part}.npz", target / part) if p.exists()) for part in ("calib", "eval")]
    return model, parts[0], parts[1]


@dataclass(frozen=True)
class Run:
    """How one ``graphopt run`` ended.

    Attributes:
        code: exit code.
        seconds: wall time, start-up included.
        output: where the model was to be written.
        report: the JSON report; None where there is none.
        message: the end of what was written to standard error.
    """

    code: int
    seconds: float
    output: Path
    report: Report | None
    message: str


def run_graphopt(name: str, models: Path, folder: Path, extra: Sequence[str] = ()) -> Run:
    """``graphopt run`` on one of the models, with its samples."""
    sources = prepare(name, models, folder)
    env, words = dict(os.environ), list(extra)
    if name == "ppocr_v4_rec":
        texts = json.loads((models / name / "labels.json").read_text())[50:]
        labels = folder / "labels.json"
        labels.write_text(json.dumps(texts))
        env |= {"OCR_LABELS": str(labels), "PYTHONPATH": str(HERE)}
        words += ["--metric", "ocr_metric:char_accuracy"]
    return run_with(sources, folder / "out.onnx", words, env)


def run_with(
    sources: tuple[Path, Path, Path], output: Path, words: Sequence[str], env: Mapping[str, str] | None = None
) -> Run:
    """``graphopt run`` on a model with its calibration and evaluation sources, as ``prepare`` gives them."""
    model, calib, evaluation = sources
    return call(model, output, ["--calib", str(calib), "--eval", str(evaluation), *words], env)


def call(model: Path, output: Path, words: Sequence[str], env: Mapping[str, str] | None = None) -> Run:
    """``graphopt run`` in a process of its own."""
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "graphopt", "run", str(model), "-o", str(output), "--overwrite", "--json", "-q"]
    start = time.monotonic()
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=env, check=False)
    report = Report.from_json(done.stdout) if f'"{SCHEMA_ID}"' in done.stdout[:200] else None
    return Run(done.returncode, time.monotonic() - start, output, report, " ".join(done.stderr.split())[-200:])


def format_row(name: str, run: Run) -> str:
    """One line of the table; a score is top-1, or that of ``--metric``."""
    report = run.report
    if report is None:
        return f"{name:<19} {run.code:>4} {run.message}"
    kept = " ".join(p.name for p in report.passes if p.outcome == "applied") or "-"
    ratio, interval = "-", "-"
    if report.latency:
        timed = report.latency[0]
        ratio, interval = f"{timed.ratio:.2f}", f"{timed.low:.2f}-{timed.high:.2f}"
    size = report.output or report.result
    mega = f"{size.bytes / 1e6:.2f}" if size else "-"
    sqnr, worst, before, after = fidelity(report)
    return (
        f"{name:<19} {run.code:>4} {kept:<28} {ratio:>5} {interval:<11} {sqnr:>7} {worst:>6} {before:>7} {after:>7} "
        f"{mega:>6} {report.source.bytes / 1e6:>6.2f} {run.seconds:>5.0f}  {report.verdict.text}"
    )


def fidelity(report: Report) -> tuple[str, str, str, str]:
    """SQNR of the worst output in dB, pooled and of the worst sample; score before and after."""
    if not report.validation:
        return "-", "-", "-", "-"
    seen = report.validation[0]
    pooled = [o.sqnr_db for o in seen.outputs if o.sqnr_db is not None]
    worst = [o.worst_sqnr_db for o in seen.outputs if o.worst_sqnr_db is not None]
    scored = seen.metric != ""
    before = seen.reference_metric if scored else seen.reference_top1
    after = seen.candidate_metric if scored else seen.candidate_top1
    return figure(min(pooled, default=None), 1), figure(min(worst, default=None), 1), figure(before), figure(after)


def figure(value: float | None, digits: int = 4) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
