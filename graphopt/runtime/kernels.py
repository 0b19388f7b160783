"""What each node of the optimized graph costs, from onnxruntime's profiler, beside the session's time without it.

The profiler writes whole microseconds, cut off, and does work of its own inside the time that it writes down:
it spells out the shapes of each node's inputs and outputs. ``profiler_cost`` measures that work on nodes that
have nothing to do. Nothing here is corrected by it.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphopt.data.samples import Feed
from graphopt.errors import RuntimeFailure
from graphopt.progress import Progress, Silent
from graphopt.runtime.latency import THREAD_CPU, ClockName, clock_for, no_collector
from graphopt.runtime.optimized import OptimizedNode, read_optimized
from graphopt.runtime.session import Session, Skeleton, first_line, open_session
from graphopt.runtime.target import Target

WARMUP = 2
BLOCK = 4
"""Runs of one session in a row; the first warms the caches that the other session has taken, and does not count."""
MOST_EVENTS = 60_000
"""The profiler keeps events in memory and writes about half a kilobyte of text for each."""
LEAST_BLOCKS = 3
IDLE_NODES = 100

STEP = 1e-3
"""The profiler's whole microseconds, in milliseconds."""

_EVENT = "_kernel_time"
_HOLD_BODIES = frozenset(("If", "Loop", "Scan"))
FLUSH = "session.set_denormal_as_zero"


@dataclass(frozen=True)
class KernelTime:
    """One node of the optimized graph.

    Attributes:
        node: as onnxruntime runs it.
        milliseconds: wall time of one run of the model, from the profiler.
    """

    node: OptimizedNode
    milliseconds: float


@dataclass(frozen=True)
class Recording:
    """Times of one model.

    Attributes:
        kernels: the top-level nodes that ran, in the order of running; a node with a body contains it.
        session_ms: one run of the session without the profiler; 0 where it was not timed.
        clock: what ``session_ms`` counts.
        profiled_ms: one run of the session with the profiler, by the same clock.
        inner: nodes inside bodies that one run goes through; the nodes that hold the bodies contain their time.
        lost_ms: what one counted run with the profiler lost to other processes: wall less CPU time; 0 where several
            threads or another provider compute.
        runs: runs counted per feed.
    """

    kernels: tuple[KernelTime, ...]
    session_ms: float
    clock: ClockName
    profiled_ms: float
    inner: float
    lost_ms: float
    runs: int

    @property
    def total_ms(self) -> float:
        """All nodes together."""
        return sum(kernel.milliseconds for kernel in self.kernels)


def record(
    model: Skeleton,
    feeds: Sequence[Feed],
    *,
    target: Target,
    runs: int,
    seconds: float = 60.0,
    beside: bool = True,
    config: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Recording:
    """Time each node with the profiler on, and the whole session with it off, in turn.

    Of each session's runs the half counts that lost the least time to other processes (wall less CPU time of the
    calling thread). The figures say where most of those lie (``typical``). Over several feeds they are averaged.

    Args:
        model: what to run, at ORT_ENABLE_ALL.
        feeds: at least one; each is run equally often.
        target: its first provider, threads and custom-op libraries are used.
        runs: blocks of runs per feed.
        seconds: no new block is begun after that long.
        beside: time the session without the profiler too.
        config: further entries of the session's configuration.
        progress: where each block is reported.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the model does not open or run.
    """
    common: dict[str, Any] = {
        "provider": target.provider,
        "threads": target.threads,
        "custom_op_libraries": target.custom_op_libraries,
        "config": config,
    }
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        graph = Path(folder) / "optimized.onnx"
        profiled = open_session(model, profile_prefix=Path(folder) / "profile", optimized_path=graph, **common)
        nodes = read_optimized(graph, bodies=False)
        plain = open_session(model, **common) if beside else None
        blocks, feeds = _affordable(runs, _events_of_a_run(model, nodes, feeds[0], common), feeds)
        runs_of = [_Runs(session, len(feeds)) for session in (profiled, plain) if session is not None]
        _take_turns(runs_of, feeds, blocks, seconds, progress or Silent())
        events = _events(profiled)
    # Beyond a million events the profiler writes nothing more: runs that it did not see the end of do not count.
    whole_runs = sum(event.get("name") == "model_run" for event in events)
    own = runs_of[0].calm(whole_runs)
    if not all(own):
        what = "the model runs through too many nodes for onnxruntime's profiler"
        raise RuntimeFailure("GO-603", what, why="it keeps a million events, and a single run has more")
    kernels = tuple(_per_node(events, nodes, [[run.number for run in runs] for runs in own]))
    return Recording(
        kernels,
        session_ms=_mean(typical(run.own_ms for run in runs) for runs in runs_of[-1].calm()) if plain else 0.0,
        clock=clock_for(profiled).name,
        profiled_ms=_mean(typical(run.own_ms for run in runs) for runs in own),
        inner=max(0.0, sum(map(_is_node, events)) / whole_runs - len(kernels)),
        lost_ms=_mean(typical(run.lost_ms for run in runs) for runs in own),
        runs=len(own[0]),
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def typical(values: Iterable[float], step: float = 0.0) -> float:
    """Where most of the values lie: the mean of the densest third, 0 of no values.

    A run that waits for a processor, or finds its caches cold, takes longer, never shorter. Where this hits every
    other run, a median lies among such runs; the densest third does not before it hits two of three.

    Args:
        values: times, in any order.
        step: what the clock cuts off, in the unit of the values; those this close to the densest third count too, so
            that the mean is finer than the clock.

    Source: the shorth of Andrews et al., *Robust Estimates of Location* (1972), for a third instead of a half.
    """
    ordered = np.sort(np.fromiter(values, np.float64))
    if not len(ordered):
        return 0.0
    third = -(-len(ordered) // 3)
    widths = ordered[third - 1 :] - ordered[: len(ordered) - third + 1]
    narrowest = np.flatnonzero(widths <= widths.min() + 1e-9)
    first = int(narrowest[len(narrowest) // 2])
    low, high = ordered[first] - step, ordered[first + third - 1] + step
    return float(np.mean(ordered[(ordered >= low - 1e-9) & (ordered <= high + 1e-9)]))


@dataclass(frozen=True)
class ProfilerCost:
    """Milliseconds of its own work that the profiler does for each node, on this machine.

    Attributes:
        counted: what of it lies inside the time that it writes down for the node.
        whole: all of it; the time of a node that holds a body has this once for each node in the body.
    """

    counted: float
    whole: float

    def share_of(self, recording: Recording) -> float:
        """About how much of the sum over the nodes this is, in milliseconds."""
        return self.counted * len(recording.kernels) + self.whole * recording.inner


def profiler_cost() -> ProfilerCost:
    """Measure what the profiler costs on a chain of nodes that add two numbers.

    ``counted`` is what it writes down for one, less what one more of them adds to a run without the profiler; ``whole``
    is what one more adds with it, less what it adds without. The rank is that of a picture, since spelling out the
    shapes is the work.
    """
    target = Target()
    feed = {"t0": np.ones((1, 1, 1, 1), np.float32)}
    short, long = (_chain(count) for count in (1, IDLE_NODES + 1))
    one = record(short, [feed], target=target, runs=8)
    many = record(long, [feed], target=target, runs=8)
    plain = (many.session_ms - one.session_ms) / IDLE_NODES
    profiled = (many.profiled_ms - one.profiled_ms) / IDLE_NODES
    return ProfilerCost(max(0.0, many.total_ms / len(many.kernels) - plain), max(0.0, profiled - plain))


def _chain(count: int) -> Skeleton:
    nodes = [helper.make_node("Add", [f"t{i}", "t0"], [f"t{i + 1}"], name=f"n{i}") for i in range(count)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1] * 4) for name in ("t0", f"t{count}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return Skeleton(proto, {})


def _events_of_a_run(model: Skeleton, nodes: Sequence[OptimizedNode], feed: Feed, common: Mapping[str, Any]) -> int:
    """How many nodes one run goes through; where none holds a body, those of the graph."""
    if not any(node.op in _HOLD_BODIES for node in nodes):
        return len(nodes)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        session = open_session(model, profile_prefix=Path(folder) / "profile", **common)
        session.run(feed)
        return sum(map(_is_node, _events(session)))


def _affordable(runs: int, events: int, feeds: Sequence[Feed]) -> tuple[int, Sequence[Feed]]:
    """Blocks of runs, and the feeds, that keep the profiler's events within bounds."""
    block = max(1, events) * BLOCK
    if block * LEAST_BLOCKS * len(feeds) > 5 * MOST_EVENTS:
        return 1, feeds[:1]
    return max(LEAST_BLOCKS, min(runs, MOST_EVENTS // (block * len(feeds)))), feeds


@dataclass(frozen=True)
class _Run:
    """One run: its number among the session's, its own time, and what it lost to other processes."""

    number: int
    own_ms: float
    lost_ms: float


class _Runs:
    """The runs of one session."""

    def __init__(self, session: Session, feeds: int) -> None:
        self._session = session
        self.count = 0
        self._clock = clock_for(session)
        self._kept: list[list[_Run]] = [[] for _ in range(feeds)]

    def warm_up(self, feed: Feed) -> None:
        for _ in range(WARMUP):
            self._once(feed)

    def block(self, index: int, feed: Feed) -> None:
        for run in range(BLOCK):
            found = self._once(feed)
            if run:
                self._kept[index].append(found)

    def calm(self, below: float = math.inf) -> list[list[_Run]]:
        """Per feed, the half that lost the least, of the runs with a number below ``below``."""
        counted = [[run for run in runs if run.number < below] for runs in self._kept]
        return [sorted(runs, key=lambda run: run.lost_ms)[: (len(runs) + 1) // 2] for runs in counted]

    def _once(self, feed: Feed) -> _Run:
        wall, own = time.perf_counter_ns(), self._clock.now()
        self._session.run(feed)
        own, wall = self._clock.now() - own, time.perf_counter_ns() - wall
        self.count += 1
        return _Run(self.count - 1, own / 1e6, max(0.0, (wall - own) / 1e6) if self._clock is THREAD_CPU else 0.0)


def _take_turns(
    sessions: Sequence[_Runs], feeds: Sequence[Feed], blocks: int, seconds: float, progress: Progress
) -> None:
    for session in sessions:
        session.warm_up(feeds[0])
    start = time.perf_counter()
    with no_collector():
        for block in progress.track(range(blocks), label="profiling"):
            if block >= LEAST_BLOCKS and time.perf_counter() - start > seconds:
                break
            for index, feed in enumerate(feeds):
                for session in sessions:
                    session.block(index, feed)


def _events(session: Session) -> list[dict[str, Any]]:
    path = Path(session.raw.end_profiling())
    try:
        loaded: list[dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        what = "onnxruntime's profiler wrote nothing that can be read"
        raise RuntimeFailure("GO-603", what, why=first_line(error)) from error
    return loaded


def _is_node(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith(_EVENT)


def _per_node(
    events: Sequence[Mapping[str, Any]], nodes: Sequence[OptimizedNode], counted: Sequence[Sequence[int]]
) -> Iterable[KernelTime]:
    """One entry for each top-level node that ran; ``counted``: numbers of the runs that count, per feed."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    by_name = {node.name: node for node in nodes if node.name}
    unnamed = {node.op: node for node in nodes if not node.name}
    found: dict[str, OptimizedNode] = {}
    durations: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        name = str(event.get("name", ""))
        if not _is_node(event):
            continue
        name = name.removesuffix(_EVENT)
        op = str(event.get("args", {}).get("op_name", ""))
        node = by_name.get(name) or (unnamed.get(op) if name.startswith(f"{op}_") else None)
        if node is not None:  # else inside a body: its time is part of the node that holds the body
            found.setdefault(name, node)
            durations[name][bisect_right(starts, event["ts"]) - 1] += event["dur"] / 1e3
    for name, node in found.items():
        per_feed = [typical((durations[name].get(run, 0.0) for run in runs), STEP) for runs in counted]
        yield KernelTime(node, float(np.mean(per_feed)))
