"""How numbers become integers: what makes placements more accurate, kept where held-out samples gain by it.

Three means, judged with everything integer on samples that none of them was made from: weights of linear layers whose
rounding errors make up for each other (``rounding``); biases that make up for mean errors (``correction``); and, where
the target is missed, smoothed activations (``smoothing``), which cost a little time in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from graphopt.data.samples import Samples
from graphopt.passes.quantize.calibrate import Statistics, Work
from graphopt.passes.quantize.plan import Plan
from graphopt.passes.quantize.rounding import rounded_layers
from graphopt.passes.quantize.smoothing import find_smoothing, smoothed
from graphopt.progress import Progress
from graphopt.runtime.target import Target

Switch = Literal["auto", "on", "off"]
GAIN_DB = 0.3
"""What costs no time in a run must gain this much."""
SMOOTHING_GAIN_DB = 1.0
"""Smoothing must gain more: its products take time."""


@dataclass(frozen=True)
class Means:
    """Which of the three are used; ``auto``: where held-out samples gain by them."""

    rounding: Switch
    correction: Switch
    smoothing: Switch

    @staticmethod
    def of(plan: Plan) -> Means:
        """Those that went into a plan."""
        rounding, correction, smoothing = (bool(p) for p in (plan.weights, plan.channel_mean, plan.smoothing))
        return Means(_switch(rounding), _switch(correction), _switch(smoothing))


@dataclass(frozen=True)
class Maker:
    """Makes plans of one placement from one set of samples.

    Attributes:
        work: the float model.
        statistics: of the samples.
        samples: the samples.
        integer: names of the units that become integer.
        limit_pairs: keep weights small enough for kernels that saturate.
        target: where to run.
        progress: where to report.
    """

    work: Work
    statistics: Statistics
    samples: Samples
    integer: frozenset[str]
    limit_pairs: bool
    target: Target
    progress: Progress

    def make(self, means: Means) -> Plan:
        """A plan with the means that are on.

        Raises:
            RuntimeFailure: GO-603 or GO-604, the model does not open or run.
        """
        plan = replace(self.statistics.plan(limit_pairs=self.limit_pairs), integer=self.integer)
        if means.smoothing == "on":
            plan = self.smoothed(plan)
        if means.rounding == "on":
            plan = self.rounded(plan)
        return self.corrected(plan) if means.correction == "on" else plan

    def smoothed(self, plan: Plan) -> Plan:
        """The plan with linear layers reading smoothed activations."""
        activations = self.statistics.activations
        return smoothed(plan, find_smoothing(self.work.model, self.work.units, self.integer, activations), activations)

    def rounded(self, plan: Plan) -> Plan:
        """The plan with rounding errors of linear layers that make up for each other.

        Raises:
            RuntimeFailure: GO-603 or GO-604, the model does not open or run.
        """
        work = self.work
        weights = rounded_layers(
            work.model, work.units, plan, self.integer, self.samples, target=self.target, progress=self.progress
        )
        return replace(plan, weights=weights)

    def corrected(self, plan: Plan) -> Plan:
        """The plan with biases that make up for mean errors."""
        return replace(plan, channel_mean=self.statistics.means(plan.smoothing))


def refined(
    maker: Maker, means: Means, judge: Callable[[Plan], float], target_db: float, *, has_time: Callable[[], bool]
) -> Plan:
    """The plan whose numbers do best.

    Args:
        maker: of samples that the judge does not use.
        means: those that are given, and those to be judged.
        judge: SQNR of a plan, dB.
        target_db: SQNR that is enough: from there on, nothing is smoothed.
        has_time: whether another of the means may be tried; those that are given are used whatever they take.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the model does not open or run.
    """
    given = Means(*(_switch(value == "on") for value in (means.rounding, means.correction, means.smoothing)))
    plan = maker.make(given)
    best = plan, judge(plan)
    if means.rounding == "auto" and has_time():
        rounded = maker.rounded(plan)
        best = _better(best, rounded if rounded.weights else None, judge, GAIN_DB)
    if means.smoothing == "auto" and best[1] < target_db and has_time():
        best = _better(best, _smooth(maker, given, means.rounding != "off"), judge, SMOOTHING_GAIN_DB)
    if means.correction == "auto":
        best = _better(best, maker.corrected(best[0]), judge, GAIN_DB)
    return best[0]


def _smooth(maker: Maker, given: Means, round_too: bool) -> Plan | None:
    """A smoothed plan; rounding, too, since padding in step hides what smoothing gains; ``None``: nothing to smooth."""
    smooth = maker.make(replace(given, smoothing="on", rounding="off", correction="off"))
    if not smooth.smoothing:
        return None
    rounded = maker.rounded(smooth) if round_too else smooth
    return maker.corrected(rounded) if given.correction == "on" else rounded


def _better(
    best: tuple[Plan, float], other: Plan | None, judge: Callable[[Plan], float], least: float
) -> tuple[Plan, float]:
    """The better of two plans with its SQNR; ``other``, if there is one, has to gain ``least`` dB."""
    if other is None:
        return best
    reached = judge(other)
    return (other, reached) if reached > best[1] + least else best


def _switch(on: bool) -> Switch:
    return "on" if on else "off"
