"""The last word on a candidate: measured against the user's own file, gated, and peeled back where it does not pay.

A default gate that fails (slower with certainty, below the fidelity floor) takes back the last pass that could be the
cause, and what remains is measured again; in the end nothing may remain, and the user's model is handed back as it was.
A gate that the user set is only judged: what fails it is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphopt.data.samples import Samples
from graphopt.errors import RuntimeFailure
from graphopt.model.model import Model
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.contract import Safety
from graphopt.pipeline.outcome import CheckResult, OutcomeKind, Stage
from graphopt.progress import Progress, Silent
from graphopt.runtime.latency import PairedLatency
from graphopt.runtime.openings import measure_openings
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import ProviderSpec, Target
from graphopt.validation.compare import Comparison, MetricFunction, compare
from graphopt.validation.gates import Facts, Gates, GateVerdict, judge

TIMED_FEEDS = 4
"""Latency rotates over this many feeds."""


@dataclass(frozen=True)
class Judge:
    """How candidates are judged.

    Attributes:
        source: the user's own model.
        gates: the user's gates, with the defaults filled in.
        evaluation: held-back samples; ``None``: fidelity is not gated.
        grounds: real or synthetic feeds for everything else, or why there are none.
        target: providers to judge on, each of them.
        metric: the user's own metric.
        metric_name: what to call it.
        max_seconds: longest measurement of one pair of latencies.
        measure: ``False``: no latency is measured.
        progress: where to report.
    """

    source: Model
    gates: Gates
    evaluation: Samples | None
    grounds: Grounds
    target: Target
    metric: MetricFunction | None = None
    metric_name: str = "metric"
    max_seconds: float = 60.0
    measure: bool = True
    progress: Progress = Silent()

    def accept(self, stages: Sequence[Stage]) -> Acceptance:
        """Measure the last stage and peel passes off until the default gates hold."""
        current = tuple(stages)
        gates = self.gates if self.evaluation is not None else self.gates.model_copy(update={"floor": False})
        while True:
            model = current[-1].model if current else self.source
            comparisons, latencies = self._measure(model)
            verdicts = judge(gates, Facts(model.file_size, comparisons, latencies))
            failed = [v for v in verdicts if not v.passed and (not v.user_set or v.name == "never-slower")]
            culprit = _culprit(current, failed)
            if culprit is None:
                return Acceptance(current, model, comparisons, latencies, verdicts)
            current = _peel(current, culprit, failed[0], self.source)

    def _measure(
        self, model: Model
    ) -> tuple[tuple[tuple[str, Comparison], ...], tuple[tuple[str, PairedLatency], ...]]:
        feeds = self.grounds.feeds
        if feeds is None:
            return (), ()
        comparisons, latencies = [], []
        for provider in self.target.providers:
            timed = self.measure and (model is not self.source or self.gates.min_speedup is not None)
            samples = self.evaluation if self.evaluation is not None else feeds
            comparisons.append((str(provider), self._compared(model, provider, samples, timed=timed)))
            if timed:
                latencies.append((str(provider), self._timed(model, provider, samples)))
        return tuple(comparisons), tuple(latencies)

    def _compared(self, model: Model, provider: ProviderSpec, samples: Samples, *, timed: bool) -> Comparison:
        return compare(
            self._open(self.source, provider, timed=timed),
            self._open(model, provider, timed=timed),
            samples,
            metric=self.metric if self.evaluation is not None else None,
            metric_name=self.metric_name,
            reference_metadata=dict(self.source.metadata),
            candidate_metadata=dict(model.metadata),
            progress=self.progress,
        )

    def _timed(self, model: Model, provider: ProviderSpec, samples: Samples) -> PairedLatency:
        """The latency; nothing is taken back as slower on the word of one opening."""
        found = self._time(model, provider, samples)
        if found.slower and found.openings == 1 and self.gates.never_slower:
            return self._time(model, provider, samples)
        return found

    def _time(self, model: Model, provider: ProviderSpec, samples: Samples) -> PairedLatency:
        return measure_openings(
            (
                lambda: self._open(self.source, provider, timed=True),
                lambda: self._open(model, provider, timed=True),
            ),
            samples.first(TIMED_FEEDS),
            max_seconds=self.max_seconds,
            progress=self.progress,
        )

    def _open(self, model: Model, provider: ProviderSpec, *, timed: bool) -> Session:
        return open_session(
            model,
            provider=provider,
            threads=self.target.threads,
            custom_op_libraries=self.target.custom_op_libraries,
            light=not timed,
        )


@dataclass(frozen=True)
class Acceptance:
    """What stands at the end of a run.

    Attributes:
        stages: one per pass; those taken back are marked rolled back, with the gate and its figures.
        model: the result; the source itself where nothing remained.
        comparisons: provider → the result against the source on held-back or synthetic samples.
        latencies: provider → the source against the result.
        verdicts: of all gates, on the result.
    """

    stages: tuple[Stage, ...]
    model: Model
    comparisons: tuple[tuple[str, Comparison], ...]
    latencies: tuple[tuple[str, PairedLatency], ...]
    verdicts: tuple[GateVerdict, ...]

    @property
    def kept(self) -> tuple[Stage, ...]:
        """The stages whose passes are in the result."""
        return tuple(s for s in self.stages if s.outcome.kind is OutcomeKind.APPLIED)


def _culprit(stages: Sequence[Stage], failed: Sequence[GateVerdict]) -> int | None:
    """Index of the last pass in the result that could have caused the failure."""
    if not failed:
        return None
    applied = [i for i, s in enumerate(stages) if s.outcome.kind is OutcomeKind.APPLIED]
    if failed[0].name != "never-slower":
        inexact = [i for i in applied if stages[i].outcome.step.rewrite.safety is Safety.APPROXIMATE]
        applied = inexact or applied
    return applied[-1] if applied else None


def _peel(stages: Sequence[Stage], index: int, verdict: GateVerdict, source: Model) -> tuple[Stage, ...]:
    """Take back the pass at ``index`` and everything after it that was built on it."""
    base = stages[index - 1].model if index else source
    peeled = list(stages[:index])
    for stage in stages[index:]:
        outcome = stage.outcome
        if outcome.kind is OutcomeKind.APPLIED:
            figures = {"bound": verdict.bound, "measured": verdict.measured}
            check = CheckResult(f"gate {verdict.name}", False, verdict.message, figures)
            reason = f"{verdict.name} gate: {verdict.message}"
            outcome = replace(
                outcome, kind=OutcomeKind.ROLLED_BACK, reason=reason, checks=(*outcome.checks, check),
                nodes=(base.node_count, base.node_count),
            )  # fmt: skip
        peeled.append(Stage(outcome, base))
    return tuple(peeled)


def require_runnable(grounds: Grounds, gates: Gates) -> None:
    """Refuse gates that need a run where the source cannot be run.

    Raises:
        RuntimeFailure: GO-605.
    """
    if grounds.feeds is None and (gates.min_speedup is not None or gates.needs_samples):
        raise RuntimeFailure(
            "GO-605", "the gates cannot be judged: the model cannot be run", why=grounds.why_not,
            hint="drop --min-speedup, --max-drop and --min-sqnr, or give --custom-op-lib, --dim or --data",
        )  # fmt: skip
