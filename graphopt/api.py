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
from graphopt.data.preprocess import Preprocess
from graphopt.data.readers import read_samples
from graphopt.data.samples import Feed, Samples, split
from graphopt.errors import GraphoptError, SampleError, UsageError
from graphopt.model.interface import Interface
from graphopt.model.model import Model
from graphopt.pipeline.acceptance import Acceptance, Judge, require_runnable
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.manager import Observer, PassManager
from graphopt.pipeline.recipe import (
    PassEntry,
    Recipe,
    Step,
    TargetTable,
    build_steps,
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

DEFAULT_PASSES = ("simplify", "quantize")
"""What runs without a recipe."""
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
    """Everything about a run but the model and the recipe; the keyword arguments of ``optimize``."""

    data: SampleSource | None = None
    calib: SampleSource | None = None
    evaluation: SampleSource | None = None
    preprocess: Preprocess | str | None = None
    metric: MetricFunction | str | None = None
    gates: Gates | Mapping[str, Any] | None = None
    target: Target | None = None
    seed: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    validate: bool = True
    measure: bool = True
    allow_rollback: bool = False
    max_seconds: float = 60.0
    progress: Progress = Silent()
    observers: tuple[Observer, ...] = ()


def optimize(
    model: ModelSource,
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    passes: Sequence[str] = (),
    **settings: Any,
) -> Result:
    """Optimize a model and prove the result.

    Args:
        model: a path, a ``ModelProto`` or a ``Model``; never changed.
        recipe: a ``Recipe`` or the path of one (TOML).
        passes: instead of a recipe: passes in order, as on the command line, e.g. ``"prune-weights:sparsity=0.5"``.
            Without both: simplify, then quantize where there are samples, under the default gates.
        **settings: the fields of ``Settings``:

            * ``data``: samples to split into calibration and held-back evaluation, or ``calib`` and ``evaluation``:
              a path (npz, folder of npz, folder of images), ``module:function``, a sequence of feeds or a callable.
            * ``preprocess``: how pictures become inputs.
            * ``metric``: a function ``(outputs, samples, metadata) -> float`` or ``module:function``.
            * ``gates``: a ``Gates`` or its fields as a mapping.
            * ``target``, ``seed``, ``dims`` and ``shapes`` (of synthetic inputs), ``validate``, ``measure``,
              ``allow_rollback``, ``max_seconds`` (per latency measurement), ``progress``, ``observers``.

    Returns:
        The model and the report; a failed gate is in the report, not an exception.

    Raises:
        GraphoptError: anything that stops the run; its class tells which part of the input it is about.
        TypeError: an unknown setting.
    """
    recipe_name = str(recipe) if isinstance(recipe, str | os.PathLike) else ""
    return _Run(Model.of(model), _recipe_of(recipe, passes), recipe_name, Settings(**settings)).result()


def _recipe_of(recipe: Recipe | str | os.PathLike[str] | None, passes: Sequence[str]) -> Recipe | None:
    if recipe is not None and passes:
        raise UsageError("GO-201", "a recipe and --pass exclude each other", hint="put the pass into the recipe")
    if passes:
        return Recipe.of(parse_pass(text) for text in passes)
    if recipe is None or isinstance(recipe, Recipe):
        return recipe
    return load_recipe(Path(recipe))


class _Run:
    """One run: settles every setting first, so that nothing is computed before all of them are known to be good."""

    def __init__(self, source: Model, recipe: Recipe | None, recipe_name: str, settings: Settings) -> None:
        self.started = time.time()
        self.source = source
        self.recipe_name = recipe_name
        self.settings = settings
        self.named = recipe is not None
        self.recipe = recipe or Recipe.of(PassEntry(name=name) for name in DEFAULT_PASSES)
        self.steps: tuple[Step, ...] = build_steps(self.recipe.passes, Registry.discover(), named=self.named)
        self.seed = next((s for s in (settings.seed, self.recipe.seed) if s is not None), 0)
        self.target = settings.target or _target_of(self.recipe.target)
        for provider in self.target.providers:
            require_available(provider)
        self.gates = _gates_of(settings.gates, self.recipe.gates, floor=not self.named)
        self.metric, self.metric_name = _metric_of(settings.metric)
        self.calibration, self.evaluation = read_both(source.interface, settings, self.seed)
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
            validate=self.settings.validate,
            observers=self.settings.observers,
        )
        stages = manager.run(self.steps)
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
        samples = self.evaluation or self.calibration
        prepared = prepare_feeds(
            self.source,
            samples.first(CHECK_FEEDS) if samples is not None else None,
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
                recipe=self.recipe,
                recipe_name=self.recipe_name,
                named=self.named,
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


def _target_of(table: TargetTable | None) -> Target:
    if table is None:
        return Target()
    return Target(tuple(parse_provider(text) for text in table.providers), table.threads)


def _gates_of(given: Gates | Mapping[str, Any] | None, from_recipe: Gates | None, *, floor: bool) -> Gates:
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


__all__ = ["GraphoptError", "Result", "Settings", "optimize", "read_both"]
