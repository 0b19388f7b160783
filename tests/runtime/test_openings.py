"""Sessions whose speed depends on where their buffers fall, on a clock that the tests turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest

from graphopt.progress import Progress
from graphopt.runtime.latency import Clock, PairedLatency
from graphopt.runtime.openings import LEAST_OPENINGS, MOST_OPENINGS, measure_openings
from graphopt.runtime.session import open_session
from graphopt.testing.builders import mlp

T = TypeVar("T")
FEEDS = [{"x": np.zeros(1)}]


@dataclass
class House:
    """Opens sessions of two models, each session with a luck of its own, on a clock of its own."""

    luck: tuple[float, ...]
    luck_of_b: tuple[float, ...] = ()
    open_ms: float = 5.0
    now_ms: float = 0.0
    opened: list[str] = field(default_factory=list)

    def opener(self, name: str, ms: float, luck: tuple[float, ...]) -> Callable[[], Lucky]:
        lucks = itertools.cycle(luck)

        def open_one() -> Lucky:
            self.opened.append(name)
            self.now_ms += self.open_ms
            return Lucky(self, ms * next(lucks))

        return open_one

    def clock(self) -> Clock:
        return Clock("thread-cpu", lambda: round(self.now_ms * 1e6), lambda: self.now_ms / 1e3)


@dataclass
class Lucky:
    """A session whose runs always take the same time."""

    house: House
    ms: float
    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    def run(self, feed: object) -> None:
        self.house.now_ms += self.ms


def measured(house: House, a: float = 1.0, b: float = 1.0, **keywords: Any) -> PairedLatency:
    openers = house.opener("A", a, house.luck), house.opener("B", b, house.luck_of_b or house.luck)
    return measure_openings(openers, FEEDS, clock=house.clock(), **keywords)


def test_equal_sessions_give_an_equal_interval() -> None:
    found = measured(House((1.0,)), 3.0, 1.5)
    assert (found.ratio, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.openings == LEAST_OPENINGS
    assert found.conclusive
    assert found.pairs == found.baseline.runs == len(found.candidate.times_ms)


def test_luck_of_single_sessions_does_not_become_certainty() -> None:
    """Each opening alone gives an interval of no width, beside 1."""
    found = measured(House((1.0, 1.02, 0.98, 1.03, 0.99, 1.0, 1.01), (0.98, 1.01, 1.0, 1.02, 0.99)))
    assert found.low < 1 < found.high
    assert not found.faster
    assert not found.slower


def test_openings_go_on_until_the_interval_is_narrow() -> None:
    found = measured(House((1.0, 1.0, 1.0), (1.0, 1.2, 1.0, 1.0, 1.0)), half_width=0.01)
    assert LEAST_OPENINGS < found.openings < MOST_OPENINGS
    assert found.conclusive


def test_each_is_opened_first_in_turn() -> None:
    house = House((1.0,))
    measured(house)
    assert "".join(house.opened) == "ABBAABBAABBA"


def test_time_is_bounded() -> None:
    house = House((1.0, 1.2, 1.4), (1.0, 1.4), open_ms=100)
    found = measured(house, half_width=0.001, max_seconds=3.0)
    assert not found.conclusive
    assert house.now_ms < 4000


def test_what_takes_long_to_open_is_opened_once() -> None:
    house = House((1.0,), open_ms=20_000)
    found = measured(house, 2.0, 1.0, max_seconds=60)
    assert found.openings == 1
    assert "".join(house.opened) == "AB"
    assert (found.ratio, found.conclusive) == (pytest.approx(2.0), True)


def test_openings_are_reported() -> None:
    seen: list[str] = []

    class Noted(Progress):
        def track(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterable[T]:
            for item in items:
                seen.append(label)
                yield item

    measured(House((1.0,)), progress=Noted())
    assert seen == ["timing"] * (LEAST_OPENINGS - 1)


def test_real_sessions() -> None:
    data = mlp(0).SerializeToString()
    feeds = [{"input": np.zeros((4, 16), np.float32)}]
    found = measure_openings((lambda: open_session(data), lambda: open_session(data)), feeds, max_seconds=6.0)
    assert found.openings >= LEAST_OPENINGS
    assert found.clock == "thread-cpu"
    assert 0 < found.low <= found.ratio <= found.high
