"""Latency of two models, over several openings of their sessions.

Where a session's buffers fall is worth some percent for as long as it lives: two sessions of one and the same model are
timed up to 5 % apart, each time with a narrow interval. The pairs of one opening tell how well that opening is known,
not the models. So both models are opened anew, in turn first, and timed in interleaved pairs; each opening gives one
ratio, and the result is their median with its distribution-free interval. Openings are the level at which repeating
pays: Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time" (ISMM 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from graphopt.data.samples import Feed
from graphopt.progress import Progress, Silent
from graphopt.runtime.latency import (
    LEAST_PAIRS,
    WALL,
    Clock,
    LatencyStats,
    PairedLatency,
    Runnable,
    measure_pair,
    median_interval,
    stats_of,
)

LEAST_OPENINGS = LEAST_PAIRS
"""Fewer ratios bear no distribution-free 95 % interval of their median."""
MOST_OPENINGS = 30
PAIRS = 10
"""Pairs of one opening, at least, where time allows."""
LONGEST = 3.0
"""Seconds that one opening is timed, at most: more pairs would not tell more about the models."""

Opener = Callable[[], Runnable]


def measure_openings(
    openers: tuple[Opener, Opener],
    feeds: Sequence[Feed],
    *,
    max_seconds: float = 60.0,
    half_width: float = 0.03,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> PairedLatency:
    """Time two models over several openings, until their ratio is known well enough.

    Models that take too long to be opened so often are opened once; the interval is then that of this opening.

    Args:
        openers: open the baseline and the candidate. Earlier sessions are let go before new ones are opened.
        feeds: at least one; the first few take turns.
        max_seconds: wall-clock limit.
        half_width: stop when half the interval is at most this share of the ratio.
        clock: ``None`` chooses by ``clock_for``.
        progress: where each opening is reported.

    Raises:
        ValueError: no feeds.
        RuntimeFailure: GO-603 or GO-604, a model does not open or run.
    """
    wall = WALL.wall if clock is None else clock.wall
    start = wall()
    sessions = _opened(openers, 0)
    share = max_seconds / LEAST_OPENINGS
    seconds = min(LONGEST, max(0.0, share - (wall() - start)))
    first = measure_pair(*sessions, feeds, max_seconds=seconds, half_width=half_width, min_pairs=PAIRS, clock=clock)
    if (spent := wall() - start) > 1.5 * share:
        left = max(0.0, max_seconds - spent)
        return measure_pair(*sessions, feeds, max_seconds=left, half_width=half_width, clock=clock, progress=progress)
    del sessions
    found = [first]
    wanted = _until_known(found, half_width, lambda: wall() - start >= max_seconds)
    for number in (progress or Silent()).track(wanted, label="timing"):
        sessions = _opened(openers, number)
        found.append(
            measure_pair(*sessions, feeds, max_seconds=seconds, half_width=half_width, min_pairs=PAIRS, clock=clock)
        )
        del sessions
    return _joined(found, half_width)


def _opened(openers: tuple[Opener, Opener], number: int) -> tuple[Runnable, Runnable]:
    """Both sessions; every other time the candidate's is opened first."""
    if number % 2 == 0:
        return openers[0](), openers[1]()
    candidate = openers[1]()
    return openers[0](), candidate


def _until_known(found: Sequence[PairedLatency], half_width: float, late: Callable[[], bool]) -> Iterator[int]:
    """Numbers of the openings still to make."""
    while len(found) < MOST_OPENINGS:
        if len(found) >= LEAST_OPENINGS and (late() or _joined(found, half_width).conclusive):
            return
        yield len(found)


def _joined(found: Sequence[PairedLatency], half_width: float) -> PairedLatency:
    middle, low, high = (math.exp(x) for x in median_interval([math.log(one.ratio) for one in found]))
    return PairedLatency(
        ratio=middle,
        low=low,
        high=high,
        baseline=_all(found, lambda one: one.baseline),
        candidate=_all(found, lambda one: one.candidate),
        pairs=sum(one.pairs for one in found),
        openings=len(found),
        runs_per_block=found[0].runs_per_block,
        clock=found[0].clock,
        conclusive=(high - low) / 2 / middle <= half_width,
    )


def _all(found: Sequence[PairedLatency], side: Callable[[PairedLatency], LatencyStats]) -> LatencyStats:
    times = [ms for one in found for ms in side(one).times_ms]
    return stats_of(times, sum(side(one).runs for one in found))
