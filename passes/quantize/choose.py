"""Writes, compares and times placements, and keeps the fastest that is accurate enough."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from graphopt.data.samples import Array, Samples
from graphopt.errors import RuntimeFailure
from graphopt.model.model import Model
from graphopt.passes.quantize.emit import emit
from graphopt.passes.quantize.plan import Plan
from graphopt.progress import Progress, Silent
from graphopt.runtime.latency import PairedLatency, measure_pair
from graphopt.runtime.openings import measure_openings
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import Target
from graphopt.validation.compare import Comparator

WORTH = 1.02
"""A placement must be this much faster than the float model to be worth its error."""
LONGEST = 3.0
"""Seconds to time one placement, at most."""
HOPELESS_DB = 2.0
"""A placement this far below the target is timed only roughly."""


@dataclass(frozen=True)
class Trial:
    """One placement, written and measured.

    Attributes:
        label: what it is, in a few words.
        plan: the placement.
        sqnr_db: on held-out calibration samples, of the worst output; dB.
        ratio: time of the float model / time of this one.
    """

    label: str
    plan: Plan
    sqnr_db: float
    ratio: float

    def value(self, target_db: float) -> float:
        """Speed less what misses the target, dB: halving the noise's energy there is worth doubling the speed."""
        return 10 * math.log10(self.ratio) + min(self.sqnr_db - target_db, 0.0)


@dataclass
class Bench:
    """Writes and measures placements of one model, until its time is up.

    Attributes:
        model: the float model that placements are written into; never changed.
        reference: what accuracy and speed are compared with.
        template: ranges and the like; placements differ from it in ``integer`` alone.
        held_out: calibration samples that no range was taken from.
        target_db: SQNR that a placement should reach.
        target: where to run.
        seconds: time for all trials together.
        progress: where to report.
        trials: what was measured so far.
    """

    model: Model
    reference: Model
    template: Plan
    held_out: Samples
    target_db: float
    target: Target
    seconds: float
    progress: Progress = field(default_factory=Silent)
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._deadline = time.perf_counter() + self.seconds
        self._float = self._open(self.reference)
        self._exact: list[dict[str, Array]] = []

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._deadline - time.perf_counter()

    def try_out(self, label: str, integer: frozenset[str]) -> Trial | None:
        """Measure a placement; ``None`` if it was tried before, is empty, or does not run."""
        if not integer or any(t.plan.integer == integer for t in self.trials):
            return None
        plan = replace(self.template, integer=integer)
        candidate = self.model.clone()
        emit(candidate, plan)
        try:
            session = self._open(candidate)
            sqnr = self._sqnr(session)
            trial = Trial(label, plan, sqnr, self._ratio(session, rough=sqnr < self.target_db - HOPELESS_DB))
        except RuntimeFailure:
            # A placement that this onnxruntime cannot load or run is no candidate.
            return None
        self.trials.append(trial)
        return trial

    def sqnr_of(self, plan: Plan) -> float:
        """SQNR of a placement on the held-out samples, without timing it; dB. ``-inf`` if it does not run."""
        candidate = self.model.clone()
        emit(candidate, plan)
        try:
            return self._sqnr(self._open(candidate))
        except RuntimeFailure:
            return -math.inf

    def time_again(self, trial: Trial) -> float:
        """Another, careful timing of a placement: time of the float model / its time."""
        candidate = self.model.clone()
        emit(candidate, trial.plan)
        return self._ratio(self._open(candidate), rough=False)

    def side_by_side(self, first: Trial, second: Trial) -> PairedLatency:
        """Two placements timed against each other, over several openings; the first one's time / the second one's."""
        models = self.model.clone(), self.model.clone()
        for model, trial in zip(models, (first, second), strict=True):
            emit(model, trial.plan)
        openers = (lambda: self._open(models[0])), (lambda: self._open(models[1]))
        return measure_openings(openers, self.held_out, max_seconds=2 * LONGEST, half_width=0.01)

    def _open(self, model: Model) -> Session:
        return open_session(
            model,
            provider=self.target.provider,
            threads=self.target.threads,
            custom_op_libraries=self.target.custom_op_libraries,
        )

    def _sqnr(self, session: Session) -> float:
        if not self._exact:
            self._exact = [dict(self._float.run(feed)) for feed in self.held_out]
        comparator = Comparator(self._float.output_names)
        for feed, exact in zip(self.held_out, self._exact, strict=True):
            comparator.update(exact, session.run(feed))
        worst = comparator.result().worst
        return float("inf") if worst is None else worst.fidelity_db

    def _ratio(self, session: Session, *, rough: bool) -> float:
        share = min(LONGEST / 4 if rough else LONGEST, max(self.left / 4, 0.5 if rough else 1.0))
        return measure_pair(self._float, session, self.held_out, max_seconds=share, half_width=0.01).ratio


def decide(trials: Sequence[Trial], target_db: float) -> Trial | None:
    """The placement that pays best for its noise; what lies below the target's noise costs nothing.

    Args:
        trials: what was measured.
        target_db: SQNR that should be reached, dB.

    Returns:
        ``None``: no placement is worth its error; the model stays float.
    """
    worth = [trial for trial in trials if trial.ratio >= WORTH]
    return max(worth, key=lambda trial: trial.value(target_db), default=None)
