"""The measured choice among rule families, with planted timings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from graphopt.errors import ModelError, RuntimeFailure
from graphopt.pipeline.paying import LONGEST_OPENINGS, Candidate, Choice, choose
from graphopt.runtime.latency import LatencyStats, PairedLatency

OWN = "the user's own file"


@dataclass
class Planted:
    """Builds sets of names instead of models; each name has a factor on the running time.

    Attributes:
        factors: family → how many times as long the model runs with it; a family that is not listed changes nothing.
        width: half the interval of each ratio.
        unsound: combinations with which the outputs move too far.
        invalid: combinations that leave no valid model.
        own: running time of the user's file; that of the model without families is 1.
        cost: seconds that one measurement takes.
        asked: seconds offered to each measurement, in order.
        pairs: what was timed against what, in order.
        now: seconds on the clock.
    """

    factors: Mapping[str, float]
    width: float = 0.01
    unsound: Sequence[frozenset[str]] = ()
    invalid: Sequence[frozenset[str]] = ()
    own: float = 1.0
    cost: float = 1.0
    asked: list[float] = field(default_factory=list)
    pairs: list[tuple[object, object]] = field(default_factory=list)
    now: float = 0.0

    def build(self, names: Sequence[str]) -> Candidate:
        fired = tuple(name for name in names if name in self.factors)
        if any(bad <= set(fired) for bad in self.invalid):
            raise ModelError("GO-307", "shapes conflict")
        return Candidate(frozenset(fired), fired)

    def fault(self, candidate: frozenset[str]) -> str:
        bad = any(combination <= candidate for combination in self.unsound)
        return "outputs check: max|Δ|/max|y| 0.2 > 1e-05" if bad else ""

    def compare(self, baseline: frozenset[str], candidate: frozenset[str], seconds: float) -> PairedLatency:
        return self._pair(self._time(baseline), self._time(candidate), seconds, (baseline, candidate))

    def confirm(self, baseline: frozenset[str], candidate: frozenset[str], seconds: float) -> PairedLatency:
        return self.compare(baseline, candidate, seconds)

    def against_own(self, candidate: frozenset[str], seconds: float) -> PairedLatency:
        return self._pair(self.own, self._time(candidate), seconds, (OWN, candidate))

    def choose(self, seconds: float = 1000.0, **defaults: bool) -> Choice:
        names = {name.replace("-", "_"): name for name in self.factors}
        wanted = {name: defaults.get(key, True) for key, name in names.items()}
        return choose(wanted | {"idle": True}, self.build, self, seconds=seconds, clock=lambda: self.now)

    def _time(self, families: frozenset[str]) -> float:
        return math.prod(self.factors[name] for name in families)

    def _pair(self, before: float, after: float, seconds: float, pair: tuple[object, object]) -> PairedLatency:
        self.asked.append(seconds)
        self.pairs.append(pair)
        self.now += self.cost
        ratio, stats = before / after, LatencyStats(1.0, 1.1, 10, (1.0,) * 10)
        ends = ratio - self.width, ratio + self.width
        return PairedLatency(ratio, *ends, stats, stats, 10, 1, "thread-cpu", conclusive=True)


def findings(choice: Choice) -> dict[str, tuple[bool, str]]:
    return {one.name: (one.kept, one.finding) for one in choice.tried}


def test_a_family_that_costs_time_is_taken_back_with_its_figure_and_the_rest_stays() -> None:
    planted = Planted({"folds": 0.8, "slow": 1.25, "swish": 0.9})
    choice = planted.choose()
    assert choice.kept == ("folds", "swish")
    assert findings(choice) == {"folds": (True, "pays"), "slow": (False, "costs time"), "swish": (True, "pays")}
    slow = next(one for one in choice.tried if one.name == "slow")
    assert slow.timed is not None
    assert slow.timed.ratio == pytest.approx(0.8)
    assert choice.own is not None
    assert choice.own.ratio == pytest.approx(1 / 0.72)


def test_after_one_has_left_the_rest_is_timed_again() -> None:
    planted = Planted({"folds": 0.8, "slow": 1.25, "swish": 0.9})
    choice = planted.choose()
    whole, rest = frozenset({"folds", "slow", "swish"}), frozenset({"folds", "swish"})
    assert [pair for pair in planted.pairs if pair[1] == whole] == [
        (frozenset({"slow", "swish"}), whole),
        (rest, whole),
        (rest, whole),  # several openings agree
    ]
    again = [pair[0] for pair in planted.pairs if pair[1] == rest]
    assert again == [frozenset({"folds"}), frozenset({"swish"}), OWN]
    assert choice.kept == ("folds", "swish")


@dataclass
class Unlucky(Planted):
    """Each pair of models is wrong by ``error`` the first time it is timed."""

    error: float = 0.9

    def _pair(self, before: float, after: float, seconds: float, pair: tuple[object, object]) -> PairedLatency:
        wrong = self.error if pair not in self.pairs else 1.0
        return super()._pair(before * wrong, after, seconds, pair)


@pytest.mark.parametrize(("default", "error"), [(True, 0.9), (False, 1.1)])
def test_one_unlucky_pair_of_sessions_overrules_no_default(default: bool, error: float) -> None:
    planted = Unlucky({"views": 1.0}, own=2.0, error=error)
    choice = planted.choose(views=default)
    assert findings(choice) == {"views": (default, "inconclusive")}


@pytest.mark.parametrize("default", [True, False])
def test_where_timing_does_not_tell_the_default_decides(default: bool) -> None:
    choice = Planted({"folds": 0.8, "views": 0.995}, width=0.05).choose(views=default)
    assert findings(choice)["views"] == (default, "inconclusive")
    assert choice.kept == (("folds", "views") if default else ("folds",))


def test_a_family_that_is_off_by_default_is_kept_where_it_pays() -> None:
    assert Planted({"folds": 0.8, "views": 0.7}).choose(views=False).kept == ("folds", "views")


def test_what_is_not_kept_by_default_is_timed_first_and_nothing_is_timed_again_when_it_goes() -> None:
    planted = Planted({"folds": 0.8, "views": 1.0, "swish": 0.9}, width=0.001)
    planted.choose(views=False)
    whole, rest = frozenset({"folds", "views", "swish"}), frozenset({"folds", "swish"})
    assert planted.pairs == [
        (rest, whole),
        (frozenset({"swish"}), rest),
        (frozenset({"folds"}), rest),
        (OWN, rest),
    ]


def test_nothing_is_kept_where_the_users_own_file_is_faster_with_certainty() -> None:
    choice = Planted({"folds": 0.99}, own=0.9, width=0.005).choose()
    assert choice.kept == ()
    assert findings(choice) == {"folds": (False, "pays")}
    assert choice.own is not None
    assert choice.own.slower


def test_where_that_is_not_certain_the_set_is_kept() -> None:
    assert Planted({"folds": 0.99}, own=0.97, width=0.05).choose().kept == ("folds",)


def test_families_that_change_nothing_are_neither_timed_nor_reported() -> None:
    planted = Planted({"folds": 0.8})
    choice = planted.choose()
    assert [one.name for one in choice.tried] == ["folds"]
    assert planted.pairs == [(frozenset(), frozenset({"folds"})), (OWN, frozenset({"folds"}))]
    assert Planted({}).choose().tried == ()


def test_without_time_the_defaults_decide_and_nothing_is_timed() -> None:
    planted = Planted({"folds": 1.5, "views": 0.5})
    choice = planted.choose(seconds=0.0, views=False)
    assert (choice.kept, choice.own, planted.pairs) == (("folds",), None, [])


@pytest.mark.parametrize("seconds", [0.5, 3.0, 10.0, 60.0])
def test_the_time_is_not_exceeded_by_more_than_one_measurement(seconds: float) -> None:
    planted = Planted({f"family{i}": 1.01 for i in range(9)}, cost=1.5)
    choice = planted.choose(seconds=seconds)
    assert planted.now <= seconds + 1.5
    assert choice.seconds == planted.now
    assert all(0 < asked <= LONGEST_OPENINGS for asked in planted.asked)


def test_what_the_time_did_not_reach_is_left_to_its_default() -> None:
    planted = Planted({"a": 1.5, "b": 0.9, "c": 0.9}, cost=5.0)
    choice = planted.choose(seconds=4.0, b=False, c=False)
    assert findings(choice) == {"a": (True, "not timed"), "b": (True, "pays"), "c": (False, "not timed")}
    assert (choice.kept, choice.own) == (("a", "b"), None)


def test_an_unsound_family_is_dropped_alone_and_says_why() -> None:
    planted = Planted({"folds": 0.8, "wrong": 0.1, "swish": 0.9}, unsound=[frozenset({"wrong"})])
    choice = planted.choose()
    assert choice.kept == ("folds", "swish")
    wrong = next(one for one in choice.tried if one.name == "wrong")
    assert (wrong.finding, wrong.kept) == ("unsound", False)
    assert "0.2 > 1e-05" in wrong.fault


def test_a_family_that_leaves_an_invalid_model_is_dropped_alone() -> None:
    planted = Planted({"folds": 0.8, "wrong": 0.1}, invalid=[frozenset({"wrong"})])
    choice = planted.choose(seconds=0.0)
    assert choice.kept == ("folds",)
    assert "shapes conflict" in next(one.fault for one in choice.tried if one.name == "wrong")


def test_of_two_that_do_not_go_together_the_first_stays() -> None:
    choice = Planted({"a": 0.9, "b": 0.9}, unsound=[frozenset({"a", "b"})]).choose()
    assert choice.kept == ("a",)


def test_a_family_the_rest_cannot_stand_without_is_kept() -> None:
    planted = Planted({"raises": 1.2, "needs": 0.5})
    build = planted.build

    def needy(names: Sequence[str]) -> Candidate:
        if "raises" not in names:
            raise RuntimeFailure("GO-603", "does not open")
        return build(names)

    planted.build = needy
    assert planted.choose().kept == ("raises", "needs")
