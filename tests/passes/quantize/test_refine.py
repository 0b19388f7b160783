"""Which means of accuracy are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from graphopt.passes.quantize.plan import Plan, RoundedWeight
from graphopt.passes.quantize.refine import Maker, Means, Switch, refined

CODES = RoundedWeight(np.zeros((2, 2), np.int8), np.ones(2, np.float32))
AUTO = Means("auto", "auto", "auto")


class Plain:
    """Statistics that say nothing."""

    def plan(self, *, limit_pairs: bool) -> Plan:
        return Plan(frozenset(), limit_pairs=limit_pairs)


class Fake(Maker):
    """Makes plans that say what went into them; ``smooths``: whether there is anything to smooth."""

    def __init__(self, *, smooths: bool = True) -> None:
        self.__dict__.update(smooths=smooths, statistics=Plain(), integer=frozenset(), limit_pairs=False)

    def smoothed(self, plan: Plan) -> Plan:
        return self._with(plan, smoothing={"x": [1.0]} if self.__dict__["smooths"] else {})

    def rounded(self, plan: Plan) -> Plan:
        return self._with(plan, weights={"layer": CODES})

    def corrected(self, plan: Plan) -> Plan:
        return self._with(plan, channel_mean={"x": [0.0]})

    @staticmethod
    def _with(plan: Plan, **more: Any) -> Plan:
        return Plan(**{**plan.__dict__, **more})


class Judge:
    """SQNR by what a plan holds: the sum of what each part is worth."""

    def __init__(self, plain: float, worth: Mapping[str, float]) -> None:
        self.plain, self.worth = plain, worth
        self.seen: list[Means] = []

    def __call__(self, plan: Plan) -> float:
        means = Means.of(plan)
        self.seen.append(means)
        return self.plain + sum(value for name, value in self.worth.items() if getattr(means, name) == "on")


@pytest.mark.parametrize(
    ("plain", "worth", "used"),
    [
        (15, {"rounding": 1, "smoothing": 6, "correction": 0.5}, ("on", "on", "on")),
        (15, {"rounding": -1, "smoothing": 6, "correction": 0.1}, ("on", "off", "on")),
        (15, {"rounding": 2, "smoothing": 0.9, "correction": 0.2}, ("on", "off", "off")),
        (15, {"rounding": 0.2, "smoothing": -9, "correction": 1}, ("off", "on", "off")),
        (25, {"rounding": 1, "smoothing": 6, "correction": 0}, ("on", "off", "off")),
        (19, {"rounding": 2, "smoothing": 6, "correction": 0}, ("on", "off", "off")),
    ],
)
def test_a_means_is_used_where_held_out_samples_gain(
    plain: float, worth: Mapping[str, float], used: tuple[Switch, Switch, Switch]
) -> None:
    assert Means.of(refined(Fake(), AUTO, Judge(plain, worth), 20.0, has_time=lambda: True)) == Means(*used)


def test_nothing_is_smoothed_where_the_target_is_reached() -> None:
    judge = Judge(21, {})
    refined(Fake(), AUTO, judge, 20.0, has_time=lambda: True)
    assert all(means.smoothing == "off" for means in judge.seen)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_what_is_given_is_not_judged(switch: Switch) -> None:
    given = Means(switch, switch, switch)
    judge = Judge(10, {"rounding": -5, "smoothing": 5, "correction": 5})
    assert Means.of(refined(Fake(), given, judge, 20.0, has_time=lambda: True)) == given
    assert len(judge.seen) == 1


def test_a_model_with_nothing_to_smooth_is_judged_once_less() -> None:
    judge = Judge(10, {"smoothing": 5})
    found = refined(Fake(smooths=False), Means("off", "off", "auto"), judge, 20.0, has_time=lambda: True)
    assert not found.smoothing and len(judge.seen) == 1


def test_without_time_only_what_is_given_is_used() -> None:
    judge = Judge(10, {"rounding": 5, "smoothing": 5, "correction": 0})
    found = refined(Fake(), Means("auto", "off", "auto"), judge, 20.0, has_time=lambda: False)
    assert Means.of(found) == Means("off", "off", "off") and len(judge.seen) == 1
