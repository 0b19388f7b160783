"""INT8 by graphopt beside INT8 by onnxruntime's own quantizer, on real models; prints one table.

    python benchmarks/int8_against_onnxruntime.py --models DIR [NAME ...] [--variants ort-int8,graphopt,...]

DIR holds ``samples.py`` (see ``run_models.py``). Rows of each model:

- ``float``: the user's own file, the baseline of every ratio.
- ``ort-int8``: ``quant_pre_process`` + ``quantize_static``: QDQ, uint8 activations, int8 weights per channel, min-max;
  the opset raised to 17 first where it is below 13. Where it crashes, the row says so; where it does not with
  ``QDQDisableWeightAdjustForInt32Bias``, that file is measured.
- ``ort-reduced``: the same with ``reduce_range`` (7-bit weights): onnxruntime's own advice for CPUs without VNNI,
  where the 16-bit pair sums of its u8 x s8 kernels saturate.
- ``ort-u8u8``: the file of ``ort-int8`` under ``session.x64quantprecision=1``: no saturation, slower kernels.
- ``graphopt``: ``graphopt run MODEL --calib --eval``, no other setting.

All rows of a model are timed in one process, one thread, on the thread's CPU clock, in rounds that run every row once
on the same feed; a ratio is the median over the rounds of float time / row time, at ORT_ENABLE_ALL. SQNR compares the
last output with the user's file on all evaluation samples (pooled, and of the worst sample). The metric is the one of
``samples.py``. Needs pillow; symbolic shape inference is left out where sympy is missing.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rounds import Feed, Replay, Row, decibel, load_module, open_file, time_rounds, vnni
from run_models import NAMES, run_graphopt

from graphopt.report.build import tool_record

VARIANTS = ["ort-int8", "ort-reduced", "ort-u8u8", "graphopt"]
LEAST_OPSET = 13
"""Below it DequantizeLinear has no axis: no per-channel weights."""
SETTINGS = {"ort-u8u8": {"session.x64quantprecision": "1"}}
"""Session configuration of variants that need one."""


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=30.0, help="timing of one model (default 30)")
    parser.add_argument("--keep", type=Path, help="folder for the written models")
    parser.add_argument("names", nargs="*", default=NAMES)
    args = parser.parse_args()
    tool = tool_record()
    print(f"CPU {tool.cpu}; {', '.join(tool.instruction_sets)}; VNNI: {vnni(tool.instruction_sets)}")
    print(f"onnxruntime {tool.onnxruntime}, onnx {tool.onnx}, graphopt {tool.graphopt}; one thread, ORT_ENABLE_ALL\n")
    print(f"{'model':<19} {'variant':<12} {'MB':>6} {'ms':>8} {'ratio':>6} {'interval':<12} {'SQNR dB':>8} "
          f"{'worst':>7} {'metric':>7}  note")  # fmt: skip
    samples = load_module(args.models / "samples.py")
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.names:
            folder = (args.keep or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            rows = make_rows(name, args.models.resolve(), folder, args.variants.split(","))
            measure(rows, samples.load(name), samples, args.seconds)
            for row in rows:
                print(format_row(name, row), flush=True)


def make_rows(name: str, models: Path, folder: Path, variants: Sequence[str]) -> list[Row]:
    """Write the files of one model; a quantizer runs in a process of its own, so that its crash is a row."""
    user = load_module(models / "samples.py").load(name).model
    rows, notes = [Row("float", user)], dict[Path, str]()
    for variant in variants:
        if variant == "graphopt":
            rows.append(graphopt_row(name, models, folder))
            continue
        reduced = variant == "ort-reduced"
        path = folder / f"{'reduced' if reduced else 'int8'}.onnx"
        if path not in notes:
            notes[path] = in_process(name, models, path, reduced=reduced)
        rows.append(Row(variant, path if path.exists() else None, notes[path]))
    return rows


def graphopt_row(name: str, models: Path, folder: Path) -> Row:
    """Run graphopt as a user types it."""
    run = run_graphopt(name, models, folder)
    wrote = run.output.exists()
    note = f"exit {run.code}, {run.seconds:.0f} s"
    return Row("graphopt", run.output if wrote else None, note if wrote else f"{note}: {run.message}")


def in_process(name: str, models: Path, path: Path, *, reduced: bool) -> str:
    """Run onnxruntime's quantizer in a process of its own; a note on how it ended."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(quantize_with_onnxruntime, name, models, path, reduced).result()
        except BrokenProcessPool:
            return "crashes: the process died"
        except Exception as error:  # whatever the peer raises is a row of the table
            return f"crashes: {type(error).__name__}: {' '.join(str(error).split())[:90]}"


def quantize_with_onnxruntime(name: str, models: Path, path: Path, reduced: bool) -> str:
    """Write onnxruntime's INT8 file; notes on the way there.

    Args:
        name: the model.
        models: folder with ``samples.py``.
        path: file to write.
        reduced: 7-bit weights.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    logging.disable(logging.WARNING)  # the root logger's, one line a weight
    samples = load_module(models / "samples.py").load(name)
    notes = []
    proto = onnx.load(samples.model)
    if next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")) < LEAST_OPSET:
        proto = onnx.version_converter.convert_version(proto, 17)
        notes.append("opset raised to 17")
    raised, prepared = path.with_suffix(".raised.onnx"), path.with_suffix(".prepared.onnx")
    onnx.save(proto, raised)
    notes += preprocess(raised, prepared)
    settings = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "reduce_range": reduced,
        "calibrate_method": CalibrationMethod.MinMax,
    }
    try:
        quantize_static(str(prepared), str(path), Reader(samples.calib), **settings)
    except ValueError as error:
        # Its correction of small bias scales takes a per-channel scale for a scalar (onnxruntime 1.32).
        settings["extra_options"] = {"QDQDisableWeightAdjustForInt32Bias": True}
        quantize_static(str(prepared), str(path), Reader(samples.calib), **settings)
        notes.append(f"crashes ({type(error).__name__}) unless QDQDisableWeightAdjustForInt32Bias")
    return "; ".join(notes)


def preprocess(source: Path, target: Path) -> list[str]:
    """Prepare as onnxruntime advises; without symbolic shape inference where that fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(source), str(target))
    except Exception:  # raises bare Exceptions, and ImportError without sympy
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        return ["no symbolic shapes"]
    return []


class Reader:
    """Feeds as onnxruntime's calibrator asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next feed, None after the last."""
        return next(self._feeds, None)


def measure(rows: list[Row], samples: Any, module: ModuleType, seconds: float) -> None:
    """Open every file, then fill in figures and times."""
    for row in rows:
        if row.path is not None:
            row.settings = SETTINGS.get(row.variant, {})
            row.session = open_file(row)
    opened = [row for row in rows if row.session is not None]
    compare(opened, samples, module)
    time_rounds(opened, samples.eval[:8], seconds)


def compare(rows: list[Row], samples: Any, module: ModuleType) -> None:
    """SQNR against the first row, and the model's own metric, on all evaluation samples."""
    first: list[list[np.ndarray[Any, Any]]] = [[] for _ in rows]
    noise, signal = np.zeros((len(rows), len(samples.eval))), np.zeros(len(samples.eval))
    for n, feed in enumerate(samples.eval):
        outs = [row.session.run(None, feed) for row in rows if row.session is not None]
        reference = outs[0][-1].astype(np.float64)
        signal[n] = np.square(reference).sum()
        for r, out in enumerate(outs):
            noise[r, n] = np.square(out[-1].astype(np.float64) - reference).sum()
            if samples.labels is not None:
                first[r].append(out[0])
    for r, row in enumerate(rows):
        row.metric = module.score(samples, Replay(row.session, first[r])) if row.session else None
        row.sqnr, row.worst = decibel(signal.sum(), noise[r].sum()), min(map(decibel, signal, noise[r]))


def format_row(name: str, row: Row) -> str:
    """One line of the table."""
    if row.session is None or row.path is None or row.ratio is None:
        return f"{name:<19} {row.variant:<12} {row.note}"
    ratio, low, high = row.ratio
    metric = "-" if row.metric is None else f"{row.metric:.4f}"
    return (
        f"{name:<19} {row.variant:<12} {row.path.stat().st_size / 1e6:>6.2f} {row.median_ms:>8.3f} {ratio:>6.2f} "
        f"{f'{low:.2f}-{high:.2f}':<12} {row.sqnr:>8.1f} {row.worst:>7.1f} {metric:>7}  {row.note}"
    )


if __name__ == "__main__":
    main()
