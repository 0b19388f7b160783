"""Latency of two models, compared in interleaved pairs.

Shared machines drift: their clock rate, caches and neighbours change within seconds. Two models timed one
after the other are therefore timed on two machines. Here both run in turn, A B B A, on the same feed, and
only the ratio within a pair counts.

The ratio is the median of the pairs' ratios; its interval is the distribution-free one between two order
statistics (Hahn & Meeker, *Statistical Intervals*, 1991, §5.2): no shape of the noise is assumed, and equal
data give an equal interval. Measuring stops when the interval is narrow enough. Stopping on the width, not on
the verdict, keeps the interval close to its nominal coverage (Chow & Robbins, *Annals of Mathematical
Statistics*, 1965).
"""

from __future__ import annotations

import bisect
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import numpy as np

from graphopt.blackbox import doing
from graphopt.data.samples import Feed
from graphopt.progress import Progress, Silent
from graphopt.runtime.providers import CPU

CONFIDENCE = 0.95
LEAST_PAIRS = 6
"""Fewer pairs bear no distribution-free 95 % interval of a median: 1 - 2 · 0.5^6 = 0.97, with five 0.94."""
BLOCK_SECONDS = 1e-3
"""A timed block lasts at least this long, so that reading the clock (about 1 µs) does not show."""
MOST_FEEDS = 8
WARMUP_SHARE = 0.25

ClockName = Literal["thread-cpu", "wall"]


class Runnable(Protocol):
    """What is timed: a Session, or anything that behaves like one."""

    @property
    def threads(self) -> int:
        """Intra-op threads; 0: the runtime's own choice."""
        ...

    @property
    def providers(self) -> tuple[str, ...]:
        """Active providers."""
        ...

    def run(self, feed: Feed, /) -> object:
        """Run once."""
        ...


@dataclass(frozen=True)
class Clock:
    """A clock to time with.

    Attributes:
        name: what it counts.
        now: its reading, in nanoseconds.
        wall: wall-clock reading in seconds, for the time limit.
    """

    name: ClockName
    now: Callable[[], int]
    wall: Callable[[], float] = time.perf_counter


THREAD_CPU = Clock("thread-cpu", time.thread_time_ns)
"""Time the calling thread spent computing: what other processes take does not count."""
WALL = Clock("wall", time.perf_counter_ns)


@dataclass(frozen=True)
class LatencyStats:
    """Latency of one model.

    Attributes:
        median_ms: median time of one run, in milliseconds.
        p95_ms: 95th percentile, in milliseconds; of block means where a block holds several runs.
        runs: runs timed.
        times_ms: one time a pair, in milliseconds a run, in the order measured.
    """

    median_ms: float
    p95_ms: float
    runs: int
    times_ms: tuple[float, ...]


@dataclass(frozen=True)
class PairedLatency:
    """Two models timed in interleaved pairs.

    Attributes:
        ratio: median over the pairs of baseline time / candidate time; above 1 the candidate is faster.
        low: lower end of the ratio's 95 % interval.
        high: upper end.
        baseline: the baseline's latency.
        candidate: the candidate's latency.
        pairs: pairs measured.
        runs_per_block: runs timed together, where one run is too short for the clock.
        clock: ``thread-cpu``: computing time of the one thread that runs; ``wall``: elapsed time.
        conclusive: the interval is as narrow as was asked for.
        openings: how often both models were opened; from several, the interval is over these, else over the pairs.
    """

    ratio: float
    low: float
    high: float
    baseline: LatencyStats
    candidate: LatencyStats
    pairs: int
    runs_per_block: int
    clock: ClockName
    conclusive: bool
    openings: int = 1

    @property
    def half_width(self) -> float:
        """Half the interval's width, relative to the ratio."""
        return (self.high - self.low) / 2 / self.ratio

    @property
    def slower(self) -> bool:
        """The candidate is slower: the whole interval lies below 1."""
        return self.high < 1

    @property
    def faster(self) -> bool:
        """The candidate is faster: the whole interval lies above 1."""
        return self.low > 1


def clock_for(*sessions: Runnable) -> Clock:
    """Thread CPU time where each session computes in the calling thread alone, else wall-clock time."""
    alone = all(s.threads == 1 and tuple(s.providers) == (CPU,) for s in sessions)
    return THREAD_CPU if alone else WALL


@doing("measuring latency")
def measure_pair(
    baseline: Runnable,
    candidate: Runnable,
    feeds: Sequence[Feed],
    *,
    max_seconds: float = 60.0,
    half_width: float = 0.03,
    min_pairs: int = 20,
    warmup: int = 3,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> PairedLatency:
    """Time two sessions in interleaved pairs until the ratio is known well enough.

    Args:
        baseline: usually the user's own model.
        candidate: the model it is compared with.
        feeds: at least one; the first few take turns, both models always run the same one within a pair.
        max_seconds: wall-clock limit; the fewest pairs that bear an interval (6) are run in any case.
        half_width: stop when half the interval is at most this share of the ratio.
        min_pairs: do not stop on the width before this many pairs.
        warmup: untimed runs of each model, at least one on each feed used, as long as they take no more than a quarter
            of the time.
        clock: ``None`` chooses by ``clock_for``.
        progress: where each pair is reported.

    Raises:
        ValueError: no feeds.
        RuntimeFailure: GO-604, a model fails to run.
    """
    if not len(feeds):
        raise ValueError("latency needs at least one feed")
    timer = clock or clock_for(baseline, candidate)
    start = timer.wall()
    pool = [feeds[i] for i in range(min(len(feeds), MOST_FEEDS))]
    with no_collector():
        enough = start + WARMUP_SHARE * max_seconds
        runs = _warm_up((baseline, candidate), pool, warmup, timer, lambda: timer.wall() >= enough)
        times: tuple[list[float], list[float]] = ([], [])
        wanted = _until_known(times, min_pairs, half_width, lambda: timer.wall() - start >= max_seconds)
        for pair in (progress or Silent()).track(wanted, label="timing"):
            feed = pool[pair // 2 % len(pool)]  # both orders see each feed
            for which in (0, 1) if pair % 2 == 0 else (1, 0):
                times[which].append(_block((baseline, candidate)[which], feed, runs, timer))
    return _result(times, runs, timer.name, half_width)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Median and its distribution-free interval between two order statistics.

    Args:
        values: independent, of one continuous distribution.
        confidence: least coverage of the interval.

    Returns:
        Median, lower end, upper end; with too few values for the coverage the ends are -∞ and ∞.

    Source: Hahn & Meeker, *Statistical Intervals* (1991), §5.2.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    r = _rank(n, confidence)
    if r == 0:
        return float(np.median(ordered)), -math.inf, math.inf
    return float(np.median(ordered)), float(ordered[r - 1]), float(ordered[n - r])


@cache
def _rank(n: int, confidence: float) -> int:
    """The largest r whose r-th smallest and r-th largest of n values enclose the median often enough; 0: none.

    They enclose it with probability 1 - 2 P(Bin(n, 1/2) ≤ r - 1).
    """
    from scipy.special import bdtr  # takes 0.3 s to load: only who measures waits for it

    return bisect.bisect_right(range(n // 2), (1 - confidence) / 2, key=lambda k: bdtr(k, n, 0.5))


def _warm_up(
    sessions: Sequence[Runnable], pool: Sequence[Feed], warmup: int, clock: Clock, late: Callable[[], bool]
) -> int:
    """Run both without counting, once at least; how many runs a timed block needs, so that the quicker one fills it."""
    quickest = math.inf
    for i in range(max(warmup, len(pool), 1)):
        if i and late():
            break
        for session in sessions:
            quickest = min(quickest, _block(session, pool[i % len(pool)], 1, clock))
    return max(1, math.ceil(BLOCK_SECONDS * 1e3 / max(quickest, 1e-3)))


def _block(session: Runnable, feed: Feed, runs: int, clock: Clock) -> float:
    """Milliseconds of one run, over ``runs`` runs timed together."""
    start = clock.now()
    for _ in range(runs):
        session.run(feed)
    return (clock.now() - start) / runs / 1e6


def _log_ratios(times: tuple[list[float], list[float]]) -> list[float]:
    tiny = 1e-9  # a clock that did not advance
    return [math.log(max(a, tiny) / max(b, tiny)) for a, b in zip(*times, strict=True)]


def _relative_half_width(times: tuple[list[float], list[float]]) -> float:
    middle, low, high = median_interval(_log_ratios(times))
    return (math.exp(high) - math.exp(low)) / 2 / math.exp(middle) if high < math.inf else math.inf


def _until_known(
    times: tuple[list[float], list[float]], min_pairs: int, half_width: float, late: Callable[[], bool]
) -> Iterator[int]:
    """Numbers of the pairs still to measure.

    The interval is looked at each time the pairs have grown by a sixteenth: looking costs as much as a short run, and
    every look is another chance to stop on a fluke.
    """
    look = max(min_pairs, LEAST_PAIRS)
    while (pairs := len(times[0])) < LEAST_PAIRS or not late():
        if pairs >= look:
            if _relative_half_width(times) <= half_width:
                return
            look = pairs + max(1, pairs // 16)
        yield pairs


def _result(times: tuple[list[float], list[float]], runs: int, clock: ClockName, half_width: float) -> PairedLatency:
    middle, low, high = (math.exp(x) for x in median_interval(_log_ratios(times)))
    return PairedLatency(
        ratio=middle,
        low=low,
        high=high,
        baseline=stats_of(times[0], len(times[0]) * runs),
        candidate=stats_of(times[1], len(times[1]) * runs),
        pairs=len(times[0]),
        runs_per_block=runs,
        clock=clock,
        conclusive=(high - low) / 2 / middle <= half_width,
    )


def stats_of(times: Sequence[float], runs: int) -> LatencyStats:
    """Figures of one model.

    Args:
        times: milliseconds of one run, one a block.
        runs: in all of them.
    """
    return LatencyStats(
        median_ms=float(np.median(times)),
        p95_ms=float(np.percentile(times, 95)),
        runs=runs,
        times_ms=tuple(times),
    )


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed blocks."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
