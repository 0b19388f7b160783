"""The last word: gates judged on every provider, passes peeled off until the defaults hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.pipeline import acceptance
from graphopt.pipeline.acceptance import Judge
from graphopt.pipeline.outcome import OutcomeKind
from graphopt.runtime.latency import LatencyStats, PairedLatency
from graphopt.runtime.openings import Opener
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import ProviderSpec, Target
from graphopt.validation.gates import Gates

from . import doubles
from .doubles import grounds, manager, step

CPU, FAKE = ProviderSpec(), ProviderSpec("FakeExecutionProvider", {"device_id": "1"})


class HalvesEverything(doubles.Scale):
    """Halves a weight and admits that it is approximate."""

    name, safety, factor = "halves", doubles.Safety.APPROXIMATE, 0.5


def paired(ratio: float, width: float = 0.02) -> PairedLatency:
    stats = LatencyStats(1.0, 1.1, 10, (1.0,) * 10)
    return PairedLatency(ratio, ratio - width, ratio + width, stats, stats, 10, 1, "thread-cpu", conclusive=True)


def judge_of(run: doubles.PassManager, gates: Gates, *, target: Target | None = None, real: bool = False) -> Judge:
    feeds = grounds(run.source).feeds
    assert feeds is not None
    samples = Samples.of(list(feeds), source="test") if real else None
    return Judge(run.source, gates, samples, run.grounds, target or Target(), max_seconds=0.2)


def test_the_fidelity_floor_takes_back_the_last_approximate_pass() -> None:
    run = manager()
    stages = run.run([step(HalvesEverything), step(doubles.Nudge)])
    assert [s.outcome.kind for s in stages] == [OutcomeKind.APPLIED] * 2
    accepted = judge_of(run, Gates(floor=True, never_slower=False), real=True).accept(stages)
    assert [s.outcome.kind for s in accepted.stages] == [OutcomeKind.ROLLED_BACK] * 2
    assert "floor gate" in accepted.stages[0].outcome.reason
    assert accepted.model.fingerprint() == run.source.fingerprint()
    check = accepted.stages[0].outcome.checks[-1]
    measured, bound = check.figures["measured"], check.figures["bound"]
    assert isinstance(measured, float)
    assert isinstance(bound, float)
    assert measured < bound


def test_a_gate_of_the_users_is_judged_and_takes_nothing_back() -> None:
    run = manager()
    stages = run.run([step(HalvesEverything)])
    accepted = judge_of(run, Gates(min_sqnr=60.0, never_slower=False), real=True).accept(stages)
    assert [s.outcome.kind for s in accepted.stages] == [OutcomeKind.APPLIED]
    (verdict,) = accepted.verdicts
    assert (verdict.name, verdict.passed, verdict.user_set) == ("min-sqnr", False, True)


def test_slower_with_certainty_is_peeled_and_inconclusive_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    run = manager()
    stages = run.run([step(doubles.Nudge), step(HalvesEverything)])
    ratios = iter([paired(0.9), paired(0.9), paired(0.99, width=0.05)])
    monkeypatch.setattr(acceptance, "measure_openings", lambda *_a, **_k: next(ratios))
    accepted = judge_of(run, Gates()).accept(stages)
    assert [s.outcome.kind for s in accepted.stages] == [OutcomeKind.APPLIED, OutcomeKind.ROLLED_BACK]
    assert "never-slower gate: 0.90x" in accepted.stages[1].outcome.reason
    assert accepted.model.fingerprint() == stages[0].model.fingerprint()


def test_one_unlucky_opening_takes_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = manager()
    ratios = iter([paired(0.9), paired(1.1)])
    monkeypatch.setattr(acceptance, "measure_openings", lambda *_a, **_k: next(ratios))
    accepted = judge_of(run, Gates()).accept(run.run([step(doubles.Nudge)]))
    assert [s.outcome.kind for s in accepted.stages] == [OutcomeKind.APPLIED]
    assert [found.ratio for _, found in accepted.latencies] == [1.1]


def test_several_openings_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = manager()
    found = replace(paired(0.9), openings=6)
    monkeypatch.setattr(acceptance, "measure_openings", lambda *_a, **_k: found)
    accepted = judge_of(run, Gates()).accept(run.run([step(doubles.Nudge)]))
    assert [s.outcome.kind for s in accepted.stages] == [OutcomeKind.ROLLED_BACK]


def test_every_requested_provider_is_compared_timed_and_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def fake_open(model: Model, *, provider: ProviderSpec, **words: object) -> Session:
        opened.append(str(provider))
        return replace(open_session(model), provider=provider, providers=(provider.name, CPU.name))

    timed: list[str] = []

    def fake_measure(openers: tuple[Opener, Opener], *_a: object, **_k: object) -> PairedLatency:
        baseline, candidate = (opener() for opener in openers)
        assert isinstance(baseline, Session)
        assert isinstance(candidate, Session)
        assert baseline.provider == candidate.provider
        timed.append(str(baseline.provider))
        return paired(1.5 if baseline.provider == CPU else 0.5)

    monkeypatch.setattr(acceptance, "open_session", fake_open)
    monkeypatch.setattr(acceptance, "measure_openings", fake_measure)
    run = manager()
    stages = run.run([step(doubles.Nudge)])
    gates = Gates(min_speedup=1.2, never_slower=False)
    accepted = judge_of(run, gates, target=Target((CPU, FAKE))).accept(stages)
    assert opened == [str(CPU)] * 4 + [str(FAKE)] * 4
    assert timed == [str(CPU), str(FAKE)]
    assert [name for name, _ in accepted.comparisons] == [str(CPU), str(FAKE)]
    assert {(v.provider, v.passed) for v in accepted.verdicts} == {(str(CPU), True), (str(FAKE), False)}
    assert str(FAKE) == "FakeExecutionProvider:device_id=1"


def test_a_slow_second_provider_takes_the_pass_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        acceptance, "open_session", lambda model, *, provider, **_k: replace(open_session(model), provider=provider)
    )
    monkeypatch.setattr(
        acceptance, "measure_openings", lambda openers, *_a, **_k: paired(1.5 if openers[0]().provider == CPU else 0.5)
    )
    run = manager()
    accepted = judge_of(run, Gates(), target=Target((CPU, FAKE))).accept(run.run([step(doubles.Nudge)]))
    assert accepted.kept == ()
    assert "never-slower" in accepted.stages[0].outcome.reason


def test_nothing_kept_measures_nothing_but_a_demanded_speedup() -> None:
    run = manager()
    stages = run.run([step(doubles.Refuses)])
    idle = judge_of(run, Gates()).accept(stages)
    assert idle.latencies == ()
    assert idle.model is run.source
    asked = judge_of(run, Gates(min_speedup=1.5)).accept(stages)
    assert len(asked.latencies) == 1
    assert not next(v for v in asked.verdicts if v.name == "min-speedup").passed


def test_outputs_are_compared_on_the_held_back_samples() -> None:
    run = manager()
    (spec,) = run.source.interface.inputs
    shape = tuple(d if isinstance(d, int) else 1 for d in spec.shape or ())
    held = Samples.of([{spec.name: np.full(shape, i, np.float32)} for i in range(5)], source="held back")
    judge = Judge(run.source, Gates(never_slower=False), held, run.grounds, Target(), measure=False)
    accepted = judge.accept(run.run([step(doubles.Nudge)]))
    ((_, found),) = accepted.comparisons
    assert (found.samples, found.synthetic) == (5, False)
