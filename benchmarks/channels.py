"""``remove-channels`` on real convolutional networks: what was cut, whether the cut is exact, and what it brings.

    python benchmarks/channels.py --models DIR [NAME ...] [--ratios 0.25,0.5] [--round-to 1,16]

One row for each model, ratio and rounding: ``simplify`` and ``remove-channels`` with the model's calibration samples
(``python DIR/samples.py NAME OUT``), judged on its evaluation samples. ``oracle`` is the largest difference between
the cut model and the masked one of the same weights, relative to the largest output, beside the bound of ROUNDING.
Ratios are graphopt's own: interleaved pairs, one thread, against the user's file, both at ORT_ENABLE_ALL. Rows with
``round_to=1`` run with ``--allow-slower``: they show the removal, not a gain.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path

from run_models import Run, fidelity, prepare, run_with

from graphopt.report.schema import CheckRecord, PassRecord

NAMES = ["mobilenet_v1", "efficientnet_lite0", "cifar10_resnet32", "fmnist_resnet8", "mnist_opset8"]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--ratios", default="0.25,0.5")
    parser.add_argument("--round-to", default="1,16", help="roundings of the kept widths (default 1,16)")
    parser.add_argument("--options", default="", help="further options of remove-channels, KEY=VALUE,...")
    parser.add_argument("--keep", type=Path, help="folder for the written models")
    parser.add_argument("names", nargs="*", default=NAMES)
    args = parser.parse_args()
    print(f"{'model':<19} {'ratio':>5} {'round':>5} {'exit':>4} {'groups':>7} {'removed':>11} {'MACs':>5} "
          f"{'oracle':>8} {'bound':>8} {'speed':>5} {'interval':<11} {'SQNR dB':>7} {'before':>7} {'after':>7} "
          f"{'s':>4}  verdict")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.names:
            folder = (args.keep or Path(scratch)) / name
            sources = prepare(name, args.models.resolve(), folder)
            for ratio, rounding in product(args.ratios.split(","), args.round_to.split(",")):
                options = ",".join(filter(None, [f"ratio={ratio}", f"round_to={rounding}", args.options]))
                words = ["--pass", "simplify", "--pass", f"remove-channels:{options}"]
                words += ["--allow-slower"] if rounding == "1" else []
                run = run_with(sources, folder / f"cut{ratio}_{rounding}.onnx", words)
                print(f"{name:<19} {ratio:>5} {rounding:>5} {format_run(run)}", flush=True)


def format_run(run: Run) -> str:
    """The figures of one run."""
    report = run.report
    if report is None:
        return f"{run.code:>4} {run.message}"
    cut = next(p for p in report.passes if p.name == "remove-channels")
    speed, interval = "-", "-"
    if report.latency:
        timed = report.latency[0]
        speed, interval = f"{timed.ratio:.2f}", f"{timed.low:.2f}-{timed.high:.2f}"
    sqnr, _, before, after = fidelity(report)
    return (
        f"{run.code:>4} {removed(cut)} {oracle(cut)} {speed:>5} {interval:<11} {sqnr:>7} {before:>7} {after:>7} "
        f"{run.seconds:>4.0f}  {report.verdict.text}"
    )


def removed(cut: PassRecord) -> str:
    """Groups, channels and multiply-accumulates left."""
    seen = cut.summary
    if "groups" not in seen:
        return f"{cut.outcome:>25}"
    groups = f"{seen['groups_cut']}/{seen['groups']}"
    channels = f"{seen['channels_removed']}/{seen['channels']}"
    return f"{groups:>7} {channels:>11} {100 * seen.get('macs_left', 1.0):>4.0f}%"


def oracle(cut: PassRecord) -> str:
    """Largest relative difference from the masked model, and its bound."""
    check: CheckRecord | None = next((c for c in cut.checks if c.name == "masked oracle"), None)
    if check is None or "max_relative" not in check.figures:
        return f"{'-':>8} {'-':>8}"
    sign = " " if check.passed else "!"
    return f"{float(check.figures['max_relative']):>8.1e}{sign}{float(check.figures['bound']):>8.1e}"


if __name__ == "__main__":
    main()
