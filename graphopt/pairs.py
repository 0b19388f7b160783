"""Two models against each other, without optimizing anything: ``graphopt validate`` and ``graphopt bench``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.data.callable import load_function
from graphopt.data.preprocess import Preprocess
from graphopt.data.readers import read_samples
from graphopt.data.samples import Samples
from graphopt.errors import RuntimeFailure
from graphopt.model.model import Model
from graphopt.progress import Progress, Silent
from graphopt.report.build import gate_records, latency_record, model_record, tool_record, validation_record
from graphopt.report.pair import PairReport
from graphopt.runtime.latency import PairedLatency
from graphopt.runtime.openings import measure_openings
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import ProviderSpec, Target
from graphopt.validation.compare import compare
from graphopt.validation.equivalence import prepare_feeds
from graphopt.validation.fit import require_fed, require_fit
from graphopt.validation.gates import Facts, Gates, judge, require_samples

Path = str | os.PathLike[str]
TIMED_FEEDS = 4


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What both models are run on.

    Attributes:
        data: samples; without, seeded synthetic inputs.
        preprocess: how pictures become inputs.
        target: providers and threads.
        seed: of synthetic inputs.
        dims: values of dynamic dimensions in synthetic inputs.
        shapes: shapes of synthetic inputs.
        progress: where to report.
    """

    data: str | None = None
    preprocess: str | None = None
    target: Target = field(default_factory=Target)
    seed: int = 0
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)

    def feeds(self, model: Model) -> Samples:
        """The samples, or synthetic ones on which ``model`` runs.

        Raises:
            SampleError: the samples cannot be used.
            RuntimeFailure: GO-605, no samples, and no synthetic input runs.
        """
        given = None
        if self.data is not None:
            preprocess = Preprocess.parse(self.preprocess) if self.preprocess else None
            given = read_samples(self.data, model.interface, preprocess=preprocess)
        prepared = prepare_feeds(model, given, seed=self.seed, dims=self.dims, shapes=self.shapes, target=self.target)
        if prepared.feeds is None:
            raise RuntimeFailure("GO-605", "the model cannot be run", where=str(model.path), why=prepared.reason)
        return prepared.feeds


def validate_pair(
    reference: Path,
    candidate: Path,
    conditions: Conditions,
    *,
    gates: Mapping[str, Any],
    metric: str | None = None,
) -> PairReport:
    """Compare the outputs of two models on the same samples.

    Args:
        reference: counts as right.
        candidate: is judged.
        conditions: what both run on.
        gates: fields of ``Gates``; only ``max_drop`` and ``min_sqnr`` apply.
        metric: ``module:function``, the user's own score.

    Raises:
        GraphoptError: a gate, a model or the samples cannot be used, or the models do not fit each other.
    """
    wanted = Gates.of({"never_slower": False, **gates})
    models = Model.open(reference), Model.open(candidate)
    require_fit(*models, outputs=True)
    score = load_function(metric) if metric else None
    samples = conditions.feeds(models[0])
    require_fed(*models, samples)
    scored = samples.labels is not None or score is not None
    require_samples(wanted, real_samples=not samples.synthetic, scored=scored)
    found = []
    for provider, sessions in _sessions(models, conditions.target):
        found.append(
            (
                provider,
                compare(
                    *sessions,
                    samples,
                    metric=score,
                    metric_name=metric.rpartition(":")[2] if metric else "metric",
                    reference_metadata=dict(models[0].metadata),
                    candidate_metadata=dict(models[1].metadata),
                    progress=conditions.progress,
                ),
            )
        )
    verdicts = judge(wanted, Facts(models[1].file_size, tuple(found)))
    return PairReport(
        tool=tool_record(),
        reference=model_record(models[0], str(reference)),
        candidate=model_record(models[1], str(candidate)),
        validation=tuple(validation_record(provider, one) for provider, one in found),
        gates=gate_records(verdicts),
        exit_code=int(any(not v.passed for v in verdicts)),
    )


def bench_pair(
    baseline: Path,
    candidate: Path,
    conditions: Conditions,
    *,
    min_speedup: float | None = None,
    max_seconds: float = 60.0,
) -> PairReport:
    """Time two models against each other in interleaved pairs.

    Args:
        baseline: the ratio is its time over the candidate's.
        candidate: the other one.
        conditions: what both run on.
        min_speedup: least ratio, as a gate.
        max_seconds: longest measurement per provider.

    Raises:
        GraphoptError: a gate, a model or the samples cannot be used, or the models do not fit each other.
    """
    wanted = Gates.of({"min_speedup": min_speedup, "never_slower": False})
    models = Model.open(baseline), Model.open(candidate)
    require_fit(*models, outputs=False)
    feeds = conditions.feeds(models[0]).first(TIMED_FEEDS)
    require_fed(*models, feeds)
    found = tuple(
        (str(provider), _timed(models, provider, conditions, feeds, max_seconds))
        for provider in conditions.target.providers
    )
    verdicts = judge(wanted, Facts(models[1].file_size, latencies=found))
    return PairReport(
        tool=tool_record(),
        reference=model_record(models[0], str(baseline)),
        candidate=model_record(models[1], str(candidate)),
        latency=tuple(latency_record(provider, conditions.target.threads, one) for provider, one in found),
        gates=gate_records(verdicts),
        exit_code=int(any(not v.passed for v in verdicts)),
    )


def _timed(
    models: tuple[Model, Model], provider: ProviderSpec, conditions: Conditions, feeds: Samples, max_seconds: float
) -> PairedLatency:
    openers = (
        lambda: _open(models[0], provider, conditions.target, light=False),
        lambda: _open(models[1], provider, conditions.target, light=False),
    )
    return measure_openings(openers, feeds, max_seconds=max_seconds, progress=conditions.progress)


def _sessions(models: tuple[Model, Model], target: Target) -> Iterator[tuple[str, tuple[Session, Session]]]:
    for provider in target.providers:
        first, second = (_open(model, provider, target, light=True) for model in models)
        yield str(provider), (first, second)


def _open(model: Model, provider: ProviderSpec, target: Target, *, light: bool) -> Session:
    return open_session(
        model,
        provider=provider,
        threads=target.threads,
        custom_op_libraries=target.custom_op_libraries,
        light=light,
    )
