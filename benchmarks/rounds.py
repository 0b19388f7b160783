"""What the benchmarks share: rows of one model, opened and timed in the same rounds of one process."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

from graphopt.runtime.latency import median_interval

BLOCK_MS = 2.0
"""A timed block lasts at least about this long."""
LEAST_ROUNDS = 20
"""Fewer bear no interval worth printing, however slow the machine is."""
OPENINGS = 5
"""Every file is opened so often while its row is timed: where a session's buffers fall is worth some percent, for as
long as it lives."""

Feed = dict[str, np.ndarray[Any, Any]]


@dataclass
class Row:
    """One file of one model, and what was measured on it.

    Attributes:
        variant: what made it; ``float``: the user's own file.
        path: the file; None: there is none.
        note: why there is none, or what else there is to say.
        settings: session configuration entries.
        session: the file, opened.
        ratio: float time / this row's time: median, lower and upper end of the 95 % interval.
        median_ms: median time of one run.
        sqnr: against the user's own file, in dB: pooled over the samples.
        worst: the same, of the worst sample.
        metric: the model's own score.
    """

    variant: str
    path: Path | None
    note: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    session: ort.InferenceSession | None = None
    ratio: tuple[float, float, float] | None = None
    median_ms: float = math.nan
    sqnr: float = math.nan
    worst: float = math.nan
    metric: float | None = None


def load_module(path: Path) -> ModuleType:
    """Import a file as ``samples``, the name under which a worker process finds it again."""
    spec = importlib.util.spec_from_file_location("samples", path.resolve())
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["samples"] = module
    spec.loader.exec_module(module)
    return module


def vnni(instruction_sets: Sequence[str]) -> str:
    """Whether the CPU multiplies u8 x s8 without saturating."""
    return "yes" if any("vnni" in s or s == "amx_int8" for s in instruction_sets) else "no"


def open_file(row: Row) -> ort.InferenceSession | None:
    """A session on one thread; None, with a note, where onnxruntime refuses the file."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in row.settings.items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(str(row.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, by status code
        row.note = f"does not open: {type(error).__name__}: {' '.join(str(error).split())[:90]}"
        return None


class Replay:
    """Outputs computed before, for ``samples.score``."""

    def __init__(self, session: ort.InferenceSession, first: list[np.ndarray[Any, Any]]) -> None:
        self._session, self._first = session, iter(first)

    def run(self, names: None, feed: Feed) -> list[np.ndarray[Any, Any]]:
        """The next sample's first output."""
        return [next(self._first)]

    def get_modelmeta(self) -> Any:
        """The model's own metadata."""
        return self._session.get_modelmeta()


def decibel(signal: float, noise: float) -> float:
    """10 log10 of the energies' ratio."""
    return 10 * math.log10(signal / noise) if signal and noise else math.inf if not noise else -math.inf


def time_rounds(rows: list[Row], feeds: Sequence[Feed], seconds: float) -> None:
    """Time all rows in turn, round after round, each time in another order.

    No row runs twice in a row, at the end of a round and the beginning of the next: it would find its weights in the
    caches then, which was worth 2 % to the rows at both ends of an order that turns around. All files are opened anew
    several times, each time beginning with another one.
    """
    times: list[list[float]] = [[] for _ in rows]
    runs = 0
    for opening in range(OPENINGS):
        for i in range(len(rows)):
            row = rows[(i + opening) % len(rows)]
            row.session = open_file(row)
        sessions = [row.session for row in rows if row.session is not None]
        warm = [block(s, f, 1) for _ in range(3) for s in sessions for f in feeds]
        runs = runs or max(1, math.ceil(BLOCK_MS / min(warm)))
        _rounds(sessions, feeds, runs, seconds / OPENINGS, times)
    for row, mine in zip(rows, times, strict=True):
        logs = [math.log(a / b) for a, b in zip(times[0], mine, strict=True)]
        middle, low, high = (math.exp(x) for x in median_interval(logs))
        row.ratio, row.median_ms = (middle, low, high), float(np.median(mine))


def _rounds(
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[Feed],
    runs: int,
    seconds: float,
    times: Sequence[list[float]],
) -> None:
    """Rounds of one opening; adds milliseconds a run to ``times``, a list for each session."""
    rng = np.random.default_rng(0)
    start, count, last = time.perf_counter(), 0, -1
    while count < LEAST_ROUNDS or time.perf_counter() - start < seconds:
        order = rng.permutation(len(sessions)).tolist()
        if order[0] == last:
            order.append(order.pop(0))
        for i in order:
            times[i].append(block(sessions[i], feeds[count % len(feeds)], runs))
        last = order[-1]
        count += 1


def block(session: ort.InferenceSession, feed: Feed, runs: int) -> float:
    """Milliseconds of the thread's CPU time of one run, over ``runs`` runs."""
    start = time.thread_time_ns()
    for _ in range(runs):
        session.run(None, feed)
    return (time.thread_time_ns() - start) / runs / 1e6
