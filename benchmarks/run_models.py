"""``graphopt run`` on real models as a user types it; prints one row a model.

    python benchmarks/run_models.py --models DIR [NAME ...] [-- extra options of graphopt run]

DIR holds ``samples.py`` (``python samples.py NAME OUT`` writes ``calib`` and ``eval`` and prints the model's path).
Ratios are graphopt's own: interleaved pairs, one thread, against the user's file, both at ORT_ENABLE_ALL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
    parser.add_argument("names", nargs="*", default=NAMES)
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args, extra = parser.parse_args(words[:cut]), words[cut + 1 :]
    print(f"{'model':<20} {'exit':>4} {'kept passes':<26} {'ratio':>6} {'interval':<14} {'SQNR dB':>8} "
          f"{'worst':>6} {'before':>7} {'after':>7} {'MB':>6} {'of':>6} {'s':>5}")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        for name in args.names:
            print(row(name, args.models.resolve(), folder, extra), flush=True)


def prepare(name: str, models: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Write the samples of one model; its path, calibration and evaluation sources."""
    target = folder / name
    done = subprocess.run(
        [sys.executable, str(models / "samples.py"), name, str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    model = Path(done.stdout.strip().rsplit("model ", 1)[1])
    parts = [next(p for p in (target / f"{part}.npz", target / part) if p.exists()) for part in ("calib", "eval")]
    return model, parts[0], parts[1]


def row(name: str, models: Path, folder: Path, extra: list[str]) -> str:
    """Run one model and format its figures."""
    model, calib, evaluation = prepare(name, models, folder)
    out = folder / name / "out.onnx"
    command = [sys.executable, "-m", "graphopt", "run", str(model), "--calib", str(calib), "--eval", str(evaluation),
               "-o", str(out), "--overwrite", "--json", "-q", *extra]  # fmt: skip
    env = dict(os.environ)
    if name == "ppocr_v4_rec":
        texts = json.loads((models / name / "labels.json").read_text())[50:]
        labels = folder / name / "labels.json"
        labels.write_text(json.dumps(texts))
        env |= {"OCR_LABELS": str(labels), "PYTHONPATH": str(HERE)}
        command += ["--metric", "ocr_metric:char_accuracy"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if not done.stdout.strip().startswith("{"):
        return f"{name:<20} {done.returncode:>4} {done.stderr.strip()[-200:]}"
    return format_row(name, done.returncode, json.loads(done.stdout))


def format_row(name: str, code: int, report: dict[str, Any]) -> str:
    """One line of the table from a report."""
    raise SystemExit("the report's shape is read here")


if __name__ == "__main__":
    main()
