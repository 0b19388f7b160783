"""The one function behind ``graphopt run`` and ``graphopt.optimize``: recipe + model + samples → result and report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from pydantic import ValidationError

from graphopt.data.callable import load_function
from graphopt.data.check import fed_defaults
from graphopt.data.preprocess import Preprocess
from graphopt.data.readers import read_samples
from graphopt.data.samples import Feed, Samples, split
from graphopt.errors import SampleError, UsageError
from graphopt.model.interface import Interface
from graphopt.model.model import Model
from graphopt.model.store import WeightStore
from graphopt.pipeline.acceptance import Acceptance, Judge, require_runnable
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.contract import Pass
from graphopt.pipeline.manager import Observer, PassManager
from graphopt.pipeline.recipe import (
    PassEntry,
    Recipe,
    Step,
    TargetTable,
    build_steps,
    check_order,
    entry_of,
    explain,
    load_recipe,
    parse_pass,
)
from graphopt.pipeline.registry import Registry
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

DEFAULT_PASSES = ("freeze-initializers", "simplify", "fuse", "quantize", "depthwise-shift")
"""What runs without a recipe. Freezing comes first: simplify cannot fold what a caller may override."""
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
    return _Run(
        model,
        _plan(recipe, chosen, freeze_initializers, dequantize_constants),
        settings,
    ).result()


@dataclass(frozen=True)
class _Plan:
    """Which passes run, and the recipe that says so.

    Attributes:
        recipe: as given, made from the passes, or the default.
        name: the recipe's file; empty without one.
        steps: the passes, ready to go.
        named: whether the user chose them.
    """

    recipe: Recipe
    name: str
    steps: tuple[Step, ...]
    named: bool


def _plan(
    recipe: Recipe | str | os.PathLike[str] | None,
    passes: Sequence[str | Pass[Any]],
    freeze: bool | None,
    dequantize: bool,
) -> _Plan:
    if (recipe is not None or passes) and (freeze is not None or dequantize):
        what = "--freeze-initializers, --keep-overridable and --dequantize-constants are about the default run"
        hint = "name the pass freeze-initializers or dequantize-constants, or leave it out"
        raise UsageError("GO-201", what, hint=hint)
    if recipe is not None and passes:
        raise UsageError("GO-201", "a recipe and --pass exclude each other", hint="put the pass into the recipe")
    registry = Registry.discover()
    if passes:
        steps = tuple(_step(one, registry) for one in passes)
        check_order(steps)
        return _Plan(Recipe.of(entry_of(step.rewrite) for step in steps), "", steps, named=True)
    if recipe is None:
        steps = _default_steps(registry, freeze, dequantize)
        return _Plan(Recipe.of(entry_of(step.rewrite) for step in steps), "", steps, named=False)
    name = "" if isinstance(recipe, Recipe) else str(recipe)
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    if not loaded.passes:
        raise UsageError("GO-204", "the recipe names no pass", where=name or None, hint="add a [[pass]] table")
    return _Plan(loaded, name, build_steps(loaded.passes, registry, named=True), named=True)


def _default_steps(registry: Registry, freeze: bool | None, dequantize: bool) -> tuple[Step, ...]:
    """The default run; what the user asked for by a flag counts as named."""
    asked = {"dequantize-constants"} if dequantize else set()
    asked |= {"freeze-initializers"} if freeze else set()
    names = [name for name in DEFAULT_PASSES if name != "freeze-initializers" or freeze is not False]
    if dequantize:
        names.insert(names.index("simplify"), "dequantize-constants")
    # Naming the pass freezes every listed initializer; the default run only where all weights are listed.
    options = {} if freeze else {"freeze-initializers": {"partial": False}}
    return tuple(
        step
        for name in names
        for step in build_steps(
            [PassEntry.model_validate({"name": name, **options.get(name, {})})], registry, named=name in asked
        )
    )


def _step(one: str | Pass[Any], registry: Registry) -> Step:
    if isinstance(one, Pass):
        return Step(one, named=True)
    return build_steps([parse_pass(one)], registry, named=True)[0]


class _Run:
    """One run: settles every setting first, so that nothing is computed before all of them are known to be good."""

    def __init__(self, model: ModelSource, plan: _Plan, settings: Settings) -> None:
        self.started = time.time()
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
        self.source = Model.of(model, store=_store_of(settings.max_memory))
        self.calibration, self.evaluation = read_both(self.source.interface, settings, self.seed)
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
        return Grounds(prepared.feeds, prepared.reason, self.target)

    def _report(self, accepted: Acceptance, grounds: Grounds) -> Report:
        return build_report(
            RunFacts(
                source=self.source,
                source_name=str(self.source.path or ""),
                recipe=self.plan.recipe,
                recipe_name=self.plan.name,
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


def read_both(interface: Interface, settings: Settings, seed: int) -> tuple[Samples | None, Samples | None]:
    """Read calibration and held-back evaluation samples.

    Raises:
        UsageError: GO-201, ``data`` together with ``calib`` or ``evaluation``.
        SampleError: they cannot be read, do not fit, or are too few to split.
    """
    if settings.data is not None and (settings.calib is not None or settings.evaluation is not None):
        raise UsageError("GO-201", "--data excludes --calib and --eval", hint="give one source, or one for each part")
    preprocess = settings.preprocess
    if isinstance(preprocess, str):
        preprocess = Preprocess.parse(preprocess)

    def read(source: SampleSource | None) -> Samples | None:
        return None if source is None else read_samples(source, interface, preprocess=preprocess)

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
    return split(whole, seed)


def _store_of(max_memory: int | None) -> WeightStore | None:
    return None if max_memory is None else WeightStore(max_memory)


def _target_of(table: TargetTable | None) -> Target:
    if table is None:
        return Target()
    return Target(tuple(parse_provider(text) for text in table.providers), table.threads)


def _gates_of(given: Gates | Mapping[str, object] | None, from_recipe: Gates | None, *, floor: bool) -> Gates:
    """Gates on the command line win, key by key, over those of the recipe; the default run adds its floor."""
    if given is not None and not isinstance(given, Gates):
        try:
            given = Gates.model_validate(dict(given))
        except ValidationError as error:
            raise UsageError("GO-201", "bad gates", why=explain(error, Gates)) from error
    merged: dict[str, Any] = {"floor": True} if floor else {}
    for gates in (from_recipe, given):
        if gates is not None:
            merged |= {name: getattr(gates, name) for name in gates.model_fields_set}
    return Gates(**merged)


def _metric_of(metric: MetricFunction | str | None) -> tuple[MetricFunction | None, str]:
    if isinstance(metric, str):
        return load_function(metric), metric.rpartition(":")[2]
    return metric, getattr(metric, "__name__", "metric")
