"""Which placements are tried: simple rules first, then minimum cuts at a rising price of noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from graphopt.data.samples import Samples
from graphopt.errors import RuntimeFailure
from graphopt.passes.quantize.candidates import default_placement, split_placements, without_stems
from graphopt.passes.quantize.choose import Bench, Trial, decide
from graphopt.passes.quantize.costs import measure_noise, measure_times
from graphopt.passes.quantize.cut import Costs, best_placement, predicted_noise
from graphopt.passes.quantize.units import Units

PRICES = (1e-3, 1e4)
"""Between these, in times of the float model, lies what a relative noise energy of 1 may be worth."""
BISECTIONS = 10
AIMS = 6
"""How many cuts are measured, at most."""
STEP_DB = 2.0
"""Reaching the target by less than this is good aim."""
NOISE_SHARE = 0.5
"""Share of the remaining time that measuring noise may take."""
CAUTION = 1.15
"""Node times come from two profiles, one after the other: a unit must gain this much to be sure of it."""
RIVAL = 0.88
"""An accurate placement that seems this close to the fastest is timed against it directly."""
RIVALS = 3
CLEARLY_FASTER = 1.1
CONFIRMED = ", timed again"
NO_GAIN = 0.98
"""A placement this close to the fastest is as fast."""


def _cautious(costs: Costs) -> Costs:
    return replace(costs, integer_ms={unit: CAUTION * ms for unit, ms in costs.integer_ms.items()})


@dataclass(frozen=True)
class Search:
    """Looks for a placement.

    Attributes:
        bench: where placements are measured.
        units: the model's units.
        possible: names of those that may become integer.
        samples: calibration samples to measure noise on.
        elements: tensor name → elements.
        floating: tensors that something outside of all units reads.
    """

    bench: Bench
    units: Units
    possible: frozenset[str]
    samples: Samples
    elements: Mapping[str, float]
    floating: frozenset[str]

    def run(self) -> Trial | None:
        """The best placement found in the bench's time; ``None``: none is worth its error."""
        bench = self.bench
        whole = default_placement(self.units, self.possible)
        bench.try_out("all", whole)
        if bench.left > 0:
            bench.try_out("all but the first convolution", without_stems(bench.model, self.units, whole))
        costs = self._times() if bench.left > 0 else None
        reached = any(trial.sqnr_db >= bench.target_db for trial in bench.trials)
        if costs is not None and reached:
            bench.try_out("cut by time", self._cut(costs, 0.0))
            bench.try_out("cut by time, cautiously", self._cut(_cautious(costs), 0.0))
        if not self._settled():
            self._by_noise(costs, whole)
        return self._best_side_by_side(self._confirmed())

    def _best_side_by_side(self, best: Trial | None) -> Trial | None:
        """The best trial after timing its rivals against it directly, in interleaved pairs.

        Ratios against the float model were measured at different moments, and on a busy machine differ by 10 % where
        nothing else does. What is as fast and more accurate wins.
        """
        bench = self.bench
        if best is None or best.sqnr_db < bench.target_db:
            return best
        rivals = [
            t
            for t in bench.trials
            if t.plan != best.plan and t.sqnr_db >= bench.target_db and t.ratio >= RIVAL * best.ratio
        ]
        for rival in sorted(rivals, key=lambda t: -t.ratio)[:RIVALS]:
            paired = bench.side_by_side(best, rival)
            as_fast = paired.high >= 1.0 and paired.ratio >= NO_GAIN
            if paired.low > 1.0 or (as_fast and rival.sqnr_db > best.sqnr_db):
                best = rival
        return best

    def _confirmed(self) -> Trial | None:
        """The best trial; one that is hardly faster than float is timed again before it is believed."""
        bench = self.bench
        while True:
            best = decide(bench.trials, bench.target_db)
            if best is None or best.ratio >= CLEARLY_FASTER or best.label.endswith(CONFIRMED):
                return best
            again = replace(best, label=best.label + CONFIRMED, ratio=bench.time_again(best))
            bench.trials[bench.trials.index(best)] = again

    def _settled(self) -> bool:
        """The accurate ones are as fast as any: noise needs no look."""
        best = decide(self.bench.trials, self.bench.target_db)
        if best is None or best.sqnr_db < self.bench.target_db:
            return False
        return best.ratio >= NO_GAIN * max(trial.ratio for trial in self.bench.trials)

    def _times(self) -> Costs | None:
        bench = self.bench
        try:
            return measure_times(
                bench.model,
                self.units,
                bench.template,
                self.possible,
                self.samples[0],
                elements=self.elements,
                target=bench.target,
            )
        except RuntimeFailure:
            # Everything in integers at once does not load: the simple placements must do.
            return None

    def _by_noise(self, costs: Costs | None, whole: frozenset[str]) -> None:
        noisy = self._noise(costs) if costs is not None else None
        if noisy is None:
            for label, integer in split_placements(self.bench.model, self.units, whole):
                if self.bench.left > 0:
                    self.bench.try_out(label, integer)
            return
        self._aim(noisy)

    def _aim(self, costs: Costs) -> None:
        """Choose prices whose cut should just reach the target, and learn from each trial how far off that was."""
        bench = self.bench
        offset = self._offset(costs, bench.trials[-1]) if bench.trials else 0.0
        goal = bench.target_db
        for _ in bench.progress.track(range(AIMS), label="trying placements", total=AIMS):
            if bench.left <= 0:
                return
            price, integer = self._cheapest(costs, goal - offset)
            trial = bench.try_out(f"cut at {price:.2g}", integer)
            if trial is None:
                goal += STEP_DB
                continue
            if bench.target_db <= trial.sqnr_db <= bench.target_db + STEP_DB:
                return
            offset = self._offset(costs, trial)
            goal = bench.target_db + STEP_DB / 2

    def _offset(self, costs: Costs, trial: Trial) -> float:
        """Measured less predicted SQNR of a trial, dB."""
        noise = predicted_noise(self.units, trial.plan.integer, costs)
        return trial.sqnr_db + 10 * math.log10(max(noise, 1e-12))

    def _cheapest(self, costs: Costs, wanted_db: float) -> tuple[float, frozenset[str]]:
        """The lowest price of noise, in times of the float model, whose cut is predicted to reach ``wanted_db``."""
        total = sum(costs.float_ms.values())
        low, high = math.log10(PRICES[0]), math.log10(PRICES[1])
        best = self._cut(costs, PRICES[1] * total)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            integer = self._cut(costs, 10**middle * total)
            if -10 * math.log10(max(predicted_noise(self.units, integer, costs), 1e-12)) >= wanted_db:
                high, best = middle, integer
            else:
                low = middle
        return 10**high, best

    def _noise(self, costs: Costs) -> Costs | None:
        bench = self.bench
        try:
            return measure_noise(
                bench.model,
                self.units,
                bench.template,
                self.possible,
                self.samples,
                costs,
                seconds=bench.left * NOISE_SHARE,
                target_db=bench.target_db,
                target=bench.target,
                progress=bench.progress,
            )
        except RuntimeFailure:
            return None

    def _cut(self, costs: Costs, price: float) -> frozenset[str]:
        return best_placement(self.units, self.possible, costs, price, self.floating)
