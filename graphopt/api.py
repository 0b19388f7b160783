"""What is behind ``graphopt run`` and ``graphopt.optimize``: recipe + model + samples → result and report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from graphopt.blackbox import settle
from graphopt.data.callable import load_function
from graphopt.data.check import fed_defaults
from graphopt.data.preprocess import Preprocess
from graphopt.data.readers import read_samples, require_source
from graphopt.data.samples import Feed, Samples, split
from graphopt.errors import SampleError, UsageError
from graphopt.model.interface import Interface
from graphopt.model.model import Model
from graphopt.model.store import WeightStore
from graphopt.pipeline.acceptance import Acceptance, Judge, require_runnable
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.contract import Pass
from graphopt.pipeline.manager import Observer, PassManager
from graphopt.pipeline.plan import Plan, make_plan, require_calibration
from graphopt.pipeline.recipe import Recipe, TargetTable
from graphopt.progress import Progress, Silent
from graphopt.report.assemble import RunFacts, build_report
from graphopt.report.schema import Report
from graphopt.runtime.providers import parse_provider, require_available
from graphopt.runtime.target import Target
from graphopt.validation.compare import MetricFunction
from graphopt.validation.equivalence import prepare_feeds
from graphopt.validation.gates import Gates, require_samples

ModelSource = str | os.PathLike[str] | onnx.ModelProto | Model
SampleSource = str | os.PathLike[str] | Sequence[Feed] | Callable[[], Iterable[Feed]]

CHECK_FEEDS = 4
"""Each pass is checked numerically on at most this many feeds."""


@dataclass(frozen=True)
class Result:
    """What a run hands back.

    Attributes:
        model: the optimized model; the source's own graph where nothing was kept.
        report: the proof.
    """

    model: Model
    report: Report

    @property
    def exit_code(self) -> int:
        """0: the gates hold; 1: a gate the user set fails, or a pass the user named was rolled back."""
        return self.report.verdict.exit_code


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a run but the model and the passes; ``optimize`` documents each."""

    data: SampleSource | None = None
    calib: SampleSource | None = None
    evaluation: SampleSource | None = None
    preprocess: Preprocess | str | None = None
    metric: MetricFunction | str | None = None
    gates: Gates | Mapping[str, object] | None = None
    target: Target | None = None
    seed: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    validate: bool = True
    measure: bool = True
    allow_rollback: bool = False
    max_seconds: float = 60.0
    max_memory: int | None = None
    tune_time: float = 120.0
    progress: Progress = field(default_factory=Silent)
    observers: tuple[Observer, ...] = ()


def optimize(
    model: ModelSource,
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    passes: str | Pass[Any] | Sequence[str | Pass[Any]] = (),
    data: SampleSource | None = None,
    calib: SampleSource | None = None,
    evaluation: SampleSource | None = None,
    preprocess: Preprocess | str | None = None,
    metric: MetricFunction | str | None = None,
    gates: Gates | Mapping[str, object] | None = None,
    target: Target | None = None,
    seed: int | None = None,
    freeze_initializers: bool | None = None,
    dequantize_constants: bool = False,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    validate: bool = True,
    measure: bool = True,
    allow_rollback: bool = False,
    max_seconds: float = 60.0,
    max_memory: int | None = None,
    tune_time: float = 120.0,
    progress: Progress | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Optimize a model and prove the result.

    Args:
        model: a path, a ``ModelProto`` or a ``Model``; never changed.
        recipe: a ``Recipe`` or the path of one (TOML).
        passes: instead of a recipe: one pass, or several in order, each as on the command line
            (``"prune-weights:sparsity=0.5"``) or an instance of one. Without both: freeze-initializers (where every
            weight is listed among the inputs), simplify, fuse, quantize where there are samples, then depthwise-shift,
            under the default gates.
        data: samples, split by ``seed`` into calibration and held-back evaluation: a path (npz, folder of npz, folder
            of pictures), ``"module:function"``, a sequence of feeds or a callable.
        calib: instead of ``data``: calibration samples.
        evaluation: instead of ``data``: held-back samples.
        preprocess: how pictures become inputs.
        metric: ``(outputs, samples, metadata) -> float``, higher is better, or ``"module:function"``.
        gates: what the result must hold; those of the recipe are overridden one by one.
        target: providers and threads; default: the recipe's, else the CPU provider with one thread.
        seed: for everything random; default: the recipe's, else 0.
        freeze_initializers: initializers that are also inputs: ``True`` makes them constants, ``False`` leaves them,
            ``None`` decides by whether every weight is listed. For the default run only.
        dequantize_constants: fold weights behind DequantizeLinear to float, which makes the file grow. For the default
            run only.
        dims: values of dynamic dimensions in synthetic inputs.
        shapes: whole shapes of synthetic inputs, by input name.
        validate: ``False``: run approximate passes on a model that cannot be run here.
        measure: ``False``: time nothing; passes keep their defaults, and gates on latency are not judged.
        allow_rollback: a named pass that was rolled back does not make the exit code 1.
        max_seconds: longest single latency measurement, and each pass's time for measuring.
        max_memory: bytes of replaced weights that stay in memory; more goes to a temporary folder (``TMPDIR``) until
            nobody has the model any more. Default: 1 GiB, and at most a quarter of what the process may take.
        tune_time: seconds for finding out which rewrites pay on this model, over the whole run; 0: their defaults.
        progress: where long loops report.
        observers: called after each pass with its outcome and the model as it then stands.

    Returns:
        The model and the report; a failed gate is in the report, not an exception.

    Raises:
        GraphoptError: anything that stops the run; its class tells which part of the input it is about.
    """
    settings = Settings(
        data=data,
        calib=calib,
        evaluation=evaluation,
        preprocess=preprocess,
        metric=metric,
        gates=gates,
        target=target,
        seed=seed,
        dims=dims or {},
        shapes=shapes or {},
        validate=validate,
        measure=measure,
        allow_rollback=allow_rollback,
        max_seconds=max_seconds,
        max_memory=max_memory,
        tune_time=tune_time,
        progress=progress or Silent(),
        observers=tuple(observers),
    )
    chosen = (passes,) if isinstance(passes, str | Pass) else passes
    plan = make_plan(recipe, chosen, freeze=freeze_initializers, dequantize=dequantize_constants)
    return Request(plan, settings).run(model)


class Request:
    """What is wanted of a model, settled: all that can be known to be wrong without opening one has been refused.

    Args:
        plan: the passes.
        settings: everything else.

    Raises:
        UsageError: GO-201, settings that exclude each other or are out of bounds.
        SampleError: GO-401, GO-405 or GO-407, samples that are not there, are missing, or cannot be made.
        RuntimeFailure: GO-601, a provider that is not offered; GO-606, a metric that cannot be imported.
    """

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self.plan = plan
        self.settings = settings
        self.seed = next((s for s in (settings.seed, plan.recipe.seed) if s is not None), 0)
        self.target = settings.target or _target_of(plan.recipe.target)
        for provider in self.target.providers:
            require_available(provider)
        self.gates = _gates_of(settings.gates, plan.recipe.gates, floor=not plan.named)
        if self.gates.min_speedup is not None and not settings.measure:
            raise UsageError("GO-201", "--min-speedup needs the latency, and --no-measure forbids to measure it")
        self.metric, self.metric_name = _metric_of(settings.metric)
        self.preprocess = _settle_samples(settings)
        require_calibration(plan.steps, given=settings.calib is not None or settings.data is not None)
        if settings.evaluation is None and settings.data is None:
            require_samples(self.gates, real_samples=False, scored=False)

    def run(self, model: ModelSource) -> Result:
        """Optimize a model.

        Args:
            model: a path, a ``ModelProto`` or a ``Model``; never changed.

        Raises:
            GraphoptError: anything that stops the run.
        """
        result = _Run(self, model).result()
        settle()
        return result


class _Run:
    """One model of a request."""

    def __init__(self, request: Request, model: ModelSource) -> None:
        self.started = time.time()
        self.plan = request.plan
        self.settings = request.settings
        self.seed, self.target, self.gates = request.seed, request.target, request.gates
        self.metric, self.metric_name = request.metric, request.metric_name
        self.source = Model.of(model, store=_store_of(self.settings.max_memory))
        self.calibration, self.evaluation = _read_both(self.source.interface, request)
        labelled = self.evaluation is not None and self.evaluation.labels is not None
        require_samples(
            self.gates, real_samples=self.evaluation is not None, scored=labelled or self.metric is not None
        )

    def result(self) -> Result:
        grounds = self._grounds()
        require_runnable(grounds, self.gates)
        manager = PassManager(
            source=self.source,
            grounds=grounds,
            samples=self.calibration,
            target=self.target,
            seed=self.seed,
            progress=self.settings.progress,
            time_budget=self.settings.max_seconds if self.settings.measure else 0.0,
            tune_time=self.settings.tune_time,
            validate=self.settings.validate,
            fed=fed_defaults(self.source.interface, self.evaluation),
            observers=self.settings.observers,
        )
        stages = manager.run(self.plan.steps)
        accepted = Judge(
            source=self.source,
            gates=self.gates,
            evaluation=self.evaluation,
            grounds=grounds,
            target=self.target,
            metric=self.metric,
            metric_name=self.metric_name,
            max_seconds=self.settings.max_seconds,
            measure=self.settings.measure,
            progress=self.settings.progress,
        ).accept(stages)
        return Result(accepted.model, self._report(accepted, grounds))

    def _grounds(self) -> Grounds:
        feeds = self.evaluation.first(CHECK_FEEDS) if self.evaluation is not None else None
        if feeds is None and self.calibration is not None:
            # What passes were calibrated on may show that a model runs, not how accurate it is: no labels go along.
            feeds = Samples.of(list(self.calibration.first(CHECK_FEEDS)), source=self.calibration.source)
        prepared = prepare_feeds(
            self.source,
            feeds,
            seed=self.seed,
            dims=self.settings.dims,
            shapes=self.settings.shapes,
            target=self.target,
        )
        return Grounds(prepared.feeds, prepared.reason, self.target, prepared.larger)

    def _report(self, accepted: Acceptance, grounds: Grounds) -> Report:
        return build_report(
            RunFacts(
                source=self.source,
                source_name=str(self.source.path or ""),
                recipe=self.plan.origin,
                named=self.plan.named,
                gates=self.gates,
                target=self.target,
                seed=self.seed,
                calibration=self.calibration,
                evaluation=self.evaluation,
                grounds=grounds,
                accepted=accepted,
                allow_rollback=self.settings.allow_rollback,
                started=self.started,
                seconds=time.time() - self.started,
            )
        )


def _settle_samples(settings: Settings) -> Preprocess | None:
    """Refuse sources of samples that cannot be right, before any is read, and parse how pictures become inputs."""
    if settings.data is not None and (settings.calib is not None or settings.evaluation is not None):
        raise UsageError("GO-201", "--data excludes --calib and --eval", hint="give one source, or one for each part")
    preprocess = settings.preprocess
    if isinstance(preprocess, str):
        preprocess = Preprocess.parse(preprocess)
    for source in (settings.data, settings.calib, settings.evaluation):
        if source is not None:
            require_source(source)
    return preprocess


def _read_both(interface: Interface, request: Request) -> tuple[Samples | None, Samples | None]:
    """Read calibration and held-back evaluation samples.

    Raises:
        SampleError: they cannot be read, do not fit, or are too few to split.
    """
    settings = request.settings

    def read(source: SampleSource | None) -> Samples | None:
        return None if source is None else read_samples(source, interface, preprocess=request.preprocess)

    if settings.data is None:
        return read(settings.calib), read(settings.evaluation)
    whole = read(settings.data)
    assert whole is not None
    if len(whole) < 2:
        raise SampleError(
            "GO-401",
            "one sample cannot be split into calibration and evaluation",
            where=whole.source,
            hint="give at least two, or --calib and --eval",
        )
    return split(whole, request.seed)


def _store_of(max_memory: int | None) -> WeightStore | None:
    return None if max_memory is None else WeightStore(max_memory)


def _target_of(table: TargetTable | None) -> Target:
    if table is None:
        return Target()
    return Target(tuple(parse_provider(text) for text in table.providers), table.threads)


def _gates_of(given: Gates | Mapping[str, object] | None, from_recipe: Gates | None, *, floor: bool) -> Gates:
    """Gates on the command line win, key by key, over those of the recipe; the default run adds its floor."""
    if given is not None and not isinstance(given, Gates):
        given = Gates.of(given)
    merged: dict[str, Any] = {"floor": True} if floor else {}
    for gates in (from_recipe, given):
        if gates is not None:
            merged |= {name: getattr(gates, name) for name in gates.model_fields_set}
    return Gates(**merged)


def _metric_of(metric: MetricFunction | str | None) -> tuple[MetricFunction | None, str]:
    if isinstance(metric, str):
        return load_function(metric), metric.rpartition(":")[2]
    return metric, getattr(metric, "__name__", "metric")
