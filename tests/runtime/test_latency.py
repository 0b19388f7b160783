"""Statistics are tested on a clock that the tests turn; nothing here depends on real time."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from graphopt.progress import Progress
from graphopt.runtime.latency import (
    BLOCK_SECONDS,
    LEAST_PAIRS,
    THREAD_CPU,
    WALL,
    Clock,
    clock_for,
    measure_pair,
    median_interval,
)
from graphopt.runtime.session import open_session
from graphopt.testing.builders import mlp

CPU = ("CPUExecutionProvider",)
FEEDS = [{"x": np.zeros(1)}]


@dataclass
class Hands:
    """A clock that stands still until something takes time."""

    ns: int = 0

    def clock(self):
        return Clock("thread-cpu", lambda: self.ns, lambda: self.ns / 1e9)


@dataclass
class Timed:
    """A session whose runs take the milliseconds that ``cost`` says for run number i and the clock's time."""

    name: str
    hands: Hands
    cost: object
    log: list = field(default_factory=list)
    threads: int = 1
    providers: tuple[str, ...] = CPU
    count: int = 0

    def run(self, feed):
        self.log.append((self.name, id(feed)))
        self.hands.ns += round(self.cost(self.count, self.hands.ns) * 1e6)
        self.count += 1


def pair(cost_a, cost_b, **keywords):
    hands, log = Hands(), []
    a, b = Timed("A", hands, cost_a, log), Timed("B", hands, cost_b, log)
    result = measure_pair(a, b, keywords.pop("feeds", FEEDS), clock=hands.clock(), **keywords)
    return result, log


def steady(ms):
    return lambda count, now: ms


def noisy(ms, seed, spread=0.1):
    rng = np.random.default_rng(seed)
    return lambda count, now: ms * math.exp(spread * rng.standard_normal())


def test_the_ratio_of_two_steady_models_is_exact_and_needs_the_fewest_pairs():
    result, _ = pair(steady(6), steady(3), min_pairs=20)
    assert (result.ratio, result.low, result.high) == pytest.approx((2, 2, 2))
    assert result.pairs == 20
    assert result.conclusive
    assert result.faster
    assert not result.slower
    assert (result.baseline.median_ms, result.candidate.p95_ms) == pytest.approx((6, 3))
    assert (result.baseline.runs, len(result.baseline.times_ms)) == (20, 20)


def test_models_alternate_a_b_b_a_on_the_same_feed_and_feeds_take_turns():
    feeds = [{"x": np.zeros(1)}, {"x": np.ones(1)}]
    _, log = pair(steady(5), steady(5), feeds=feeds, min_pairs=8, warmup=1)
    timed = log[4:]  # one untimed run of each model on each feed
    assert "".join(name for name, _ in timed) == "ABBA" * 4
    order = [feed for _, feed in timed]
    one, two = map(id, feeds)
    assert order == [one] * 4 + [two] * 4 + [one] * 4 + [two] * 4


def test_drift_that_slows_both_down_does_not_reach_the_ratio():
    def drifting(ms):
        return lambda count, now: ms * (1 + now / 1e9)

    result, _ = pair(drifting(4), drifting(2), min_pairs=60)
    assert result.baseline.p95_ms > 1.3 * result.baseline.times_ms[0]
    assert result.ratio == pytest.approx(2, rel=0.01)


def test_measuring_goes_on_until_the_interval_is_narrow_enough():
    wide, _ = pair(noisy(5, 1), noisy(5, 2), half_width=0.1)
    narrow, _ = pair(noisy(5, 1), noisy(5, 2), half_width=0.02)
    assert wide.conclusive
    assert narrow.conclusive
    assert narrow.half_width <= 0.02 < wide.half_width
    assert narrow.pairs > wide.pairs


def test_out_of_time_is_inconclusive_but_never_without_an_interval():
    result, _ = pair(noisy(5000, 1, 0.5), noisy(5000, 2, 0.5), max_seconds=1, warmup=1)
    assert result.pairs == LEAST_PAIRS
    assert not result.conclusive
    assert 0 < result.low < result.ratio < result.high < math.inf


def test_a_slower_candidate_is_told_from_an_equal_one():
    slower, _ = pair(noisy(5, 1), noisy(6, 2))
    equal, _ = pair(noisy(5, 3), noisy(5, 4))
    assert slower.slower
    assert not equal.slower
    assert equal.low <= 1 <= equal.high


def test_short_models_are_timed_several_runs_at_once():
    result, _ = pair(steady(0.02), steady(0.01))
    assert result.runs_per_block == round(BLOCK_SECONDS * 1e3 / 0.01)
    assert result.ratio == pytest.approx(2)
    assert result.candidate.median_ms == pytest.approx(0.01)
    assert result.candidate.runs == result.pairs * result.runs_per_block


def test_a_clock_that_stands_still_gives_no_error():
    result, _ = pair(steady(0), steady(0), min_pairs=6)
    assert result.ratio == 1


def test_one_outlier_moves_nothing():
    result, _ = pair(lambda count, now: 500 if count == 12 else 5, steady(5))
    assert result.ratio == pytest.approx(1)
    assert result.high == pytest.approx(1)


def test_every_pair_is_reported():
    seen = []

    class Recorder(Progress):
        def track(self, items, *, label, total=None):
            for item in items:
                yield item
                seen.append(item)

    result, _ = pair(steady(5), steady(5), progress=Recorder())
    assert seen == list(range(result.pairs))


def test_equal_data_give_an_equal_result():
    assert pair(noisy(5, 1), noisy(4, 2))[0] == pair(noisy(5, 1), noisy(4, 2))[0]


def test_the_garbage_collector_is_off_while_timing_and_on_again_after():
    states = []

    def cost(count, now):
        states.append(gc.isenabled())
        return 5

    assert gc.isenabled()
    pair(cost, steady(5))
    assert gc.isenabled()
    assert not any(states)


def test_no_feeds_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError):
        pair(steady(5), steady(5), feeds=[])


@pytest.mark.parametrize(
    ("threads", "providers", "clock"),
    [
        (1, CPU, THREAD_CPU),
        (2, CPU, WALL),
        (0, CPU, WALL),
        (1, ("CUDAExecutionProvider", *CPU), WALL),
    ],
)
def test_thread_time_only_where_the_thread_computes_alone(threads, providers, clock):
    one = Timed("A", Hands(), steady(1))
    other = Timed("B", Hands(), steady(1), threads=threads, providers=providers)
    assert clock_for(one, other) is clock


@pytest.mark.parametrize("n", [6, 7, 20, 35, 100])
def test_the_interval_covers_the_median_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    trials = 2000
    # Log-normal: skewed, as latencies are; its median is 1.
    hits = 0
    for values in np.exp(rng.standard_normal((trials, n))):
        _, low, high = median_interval(values)
        hits += low <= 1 <= high
    assert hits / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_the_interval_is_the_textbooks():
    # Hahn & Meeker (1991): n = 20, the 6th and 15th values enclose the median with 95.9 %.
    assert median_interval(range(1, 21)) == (10.5, 6, 15)


@pytest.mark.parametrize("n", range(1, 6))
def test_too_few_values_bear_no_interval(n):
    assert median_interval(range(n))[1:] == (-math.inf, math.inf)


def test_a_real_session_is_timed_by_thread_time():
    session = open_session(mlp(0).SerializeToString())
    feeds = [{"input": np.zeros((4, 16), np.float32)}]
    result = measure_pair(session, session, feeds, max_seconds=0, min_pairs=6)
    assert result.clock == "thread-cpu"
    assert result.pairs >= LEAST_PAIRS
    assert result.baseline.median_ms > 0


def test_slow_models_are_not_warmed_up_for_longer_than_they_are_timed():
    feeds = [{"x": np.zeros(1)} for _ in range(8)]
    result, log = pair(steady(2000), steady(2000), feeds=feeds, max_seconds=6.0)
    assert result.pairs == LEAST_PAIRS
    assert len(log) == 2 * (1 + LEAST_PAIRS)
