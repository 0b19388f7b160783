"""Nodes that are slow because numbers near zero reach them.

Below 1.2e-38 a float32 is denormal, and many processors take a hundred cycles and more for an operation on one.
onnxruntime can flush them to zero, but sets this once in a process, with its first session, for the thread that opens
it: later sessions and numpy flush as well then. So flushing is measured in a process of its own, which ends
after it; here nothing changes.

A node is named if flushing makes it faster by a factor and by a share of the run that no noise explains, twice in a
row against fresh measurements.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from graphopt.data.samples import Feed
from graphopt.errors import GraphoptError
from graphopt.model.model import Model
from graphopt.runtime.kernels import FLUSH, record
from graphopt.runtime.labels import label
from graphopt.runtime.providers import CPU
from graphopt.runtime.target import ProviderSpec, Target

FACTOR = 1.5
LEAST_SHARE = 0.005
RUNS = 6
SECONDS = 15.0
_TIMEOUT = 600
_ANSWER = "answer.json"


@dataclass(frozen=True)
class FlushedTime:
    """A node that denormals slow down.

    Attributes:
        milliseconds: its time as it is.
        flushed_ms: its time where denormals are taken for zero.
    """

    milliseconds: float
    flushed_ms: float


@dataclass(frozen=True)
class Denormals:
    """What was found.

    Attributes:
        slow: name of a node of the optimized graph of the labelled model → its times.
        reason: why nothing could be measured; empty where it was.
    """

    slow: Mapping[str, FlushedTime]
    reason: str = ""


def find_denormals(model: Model, feeds: Sequence[Feed], *, target: Target) -> Denormals:
    """Find the nodes whose time falls when denormals are flushed; names are those of ``label(model)``.

    Two processes time the model, one that flushes and one that does not; where they differ, two more do.

    Args:
        model: what to run.
        feeds: at least one.
        target: only the CPU provider has denormals to flush.
    """
    if target.provider.name != CPU:
        return Denormals({}, f"{target.provider.name} does not flush denormals on request")
    if any(value.dtype.kind not in "biuf" for feed in feeds for value in map(np.asarray, feed.values())):
        return Denormals({}, "the inputs hold a type that cannot be handed to the measuring process")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as name:
        folder = Path(name)
        try:
            model.save(folder / "model.onnx")
            for number, feed in enumerate(feeds):
                for place, value in enumerate(feed.values()):
                    np.save(folder / f"{number}-{place}.npy", value, allow_pickle=False)
            (folder / "inputs.json").write_text(json.dumps([list(feed) for feed in feeds]))
            first = _compare(folder, target)
            slow = {key: value for key, value in _compare(folder, target).items() if key in first} if first else {}
        except (GraphoptError, _Unmeasured) as error:
            return Denormals({}, str(error))
    return Denormals(slow)


@dataclass(frozen=True)
class _Order:
    """What the measuring process is told."""

    folder: str
    options: dict[str, str]
    threads: int
    libraries: tuple[str, ...]
    flush: bool


class _Unmeasured(Exception):
    """The measuring process failed."""


def _compare(folder: Path, target: Target) -> dict[str, FlushedTime]:
    usual, flushed = (_child(folder, target, flush) for flush in (False, True))
    least = LEAST_SHARE * sum(usual.values())
    return {
        name: FlushedTime(before, flushed[name])
        for name, before in usual.items()
        if name in flushed and before > FACTOR * flushed[name] and before - flushed[name] > least
    }


def _child(folder: Path, target: Target, flush: bool) -> dict[str, float]:
    options, libraries = dict(target.provider.options), target.custom_op_libraries
    order = _Order(str(folder), options, target.threads, libraries, flush)
    # -P: the folder that the command is run in may hold a stranger's modules.
    command = [sys.executable, "-P", "-m", "graphopt.runtime.denormals", json.dumps(asdict(order))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unmeasured(f"the measuring process did not end: {type(error).__name__}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise _Unmeasured(f"the measuring process failed: {last}")
    found: dict[str, float] = json.loads((folder / _ANSWER).read_text())
    return found


def _measure(order: _Order) -> dict[str, float]:
    """In the measuring process: milliseconds by name. The first session decides whether this process flushes."""
    folder = Path(order.folder)
    feeds = []
    for number, names in enumerate(json.loads((folder / "inputs.json").read_text())):
        values = (np.load(folder / f"{number}-{place}.npy", allow_pickle=False) for place in range(len(names)))
        feeds.append(dict(zip(names, values, strict=True)))
    recording = record(
        label(Model.open(folder / "model.onnx")).skeleton,
        feeds,
        target=Target((ProviderSpec(CPU, order.options),), order.threads, tuple(order.libraries)),
        runs=RUNS,
        seconds=SECONDS,
        beside=False,
        config={FLUSH: "1"} if order.flush else None,
    )
    return {kernel.node.name: kernel.milliseconds for kernel in recording.kernels}


if __name__ == "__main__":
    told = _Order(**json.loads(sys.argv[1]))
    (Path(told.folder) / _ANSWER).write_text(json.dumps(_measure(told)))
