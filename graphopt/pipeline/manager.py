"""Runs a sequence of passes, each as a transaction.

A pass works on a clone of the model; weight arrays are shared and read-only, so a clone costs the graph only. The clone
becomes the model when every check holds, and is dropped otherwise: a failed pass leaves no trace, and the rest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from graphopt.analysis.cache import Analyses
from graphopt.blackbox import doing, fallen
from graphopt.data.check import fed_defaults
from graphopt.data.samples import Samples
from graphopt.errors import (
    MORE_MEMORY,
    GraphoptError,
    InternalError,
    LimitError,
    ModelError,
    PassError,
    RuntimeFailure,
    SampleError,
    UsageError,
)
from graphopt.model.model import Model
from graphopt.pipeline.checks import Grounds, numeric_checks, structural_checks, training_conflict
from graphopt.pipeline.contract import NO_SAMPLES, PassContext, PassResult, Refusal, Safety
from graphopt.pipeline.outcome import CheckResult, Outcome, OutcomeKind, Stage
from graphopt.pipeline.plan import require_calibration
from graphopt.pipeline.recipe import Step
from graphopt.pipeline.selection import Selection
from graphopt.progress import Progress, Silent
from graphopt.runtime.target import Target

Observer = Callable[[Stage], None]
"""Called after each pass with its outcome and the model as it then stands."""


@dataclass(frozen=True)
class PassManager:
    """What every pass of a run shares.

    Attributes:
        source: the user's own model, never edited.
        grounds: the feeds that checks compare on.
        samples: calibration samples for the passes that want them.
        target: where the result will run.
        seed: for everything random.
        progress: where to report.
        time_budget: seconds each pass may spend on measuring.
        fed: inputs with a default value for which samples that the manager does not see give values.
        tune_time: seconds all passes together may spend on finding out which rule families pay.
        validate: ``False``: run without comparing outputs where the source cannot be run.
        observers: called after each pass.
    """

    source: Model
    grounds: Grounds
    samples: Samples | None = None
    target: Target = Target()
    seed: int = 0
    progress: Progress = Silent()
    time_budget: float = 60.0
    tune_time: float = 120.0
    validate: bool = True
    fed: frozenset[str] = frozenset()
    observers: tuple[Observer, ...] = ()

    def run(self, steps: Sequence[Step]) -> tuple[Stage, ...]:
        """Run the passes in order.

        Returns:
            One stage per pass, in order; the last one holds the result.

        Raises:
            SampleError: GO-405, a pass that the user named needs samples and there are none.
            UsageError: GO-207, an `only` or `skip` matches nothing.
            RuntimeFailure: GO-603, an APPROXIMATE pass on a source that cannot be run, with ``validate`` set.
        """
        require_calibration(steps, given=self.samples is not None)
        stages: list[Stage] = []
        model, analyses = self.source, Analyses(self.source)
        left = self.tune_time
        for place, step in enumerate(self.progress.track(steps, label="passes", total=len(steps)), 1):
            crash = fallen(place)
            if crash is not None:
                stage = _left_out(step, model, crash)
            else:
                with doing(f"pass {step.name}", part=place):
                    stage, analyses = self._transaction(step, model, analyses, max(left, 0.0))
            model = stage.model
            left -= stage.outcome.result.tuning_seconds if stage.outcome.result is not None else 0.0
            stages.append(stage)
            for observe in self.observers:
                observe(stage)
        return tuple(stages)

    @cached_property
    def _all_fed(self) -> frozenset[str]:
        return self.fed | fed_defaults(self.source.interface, self.samples, self.grounds.feeds)

    def _transaction(self, step: Step, model: Model, analyses: Analyses, tune_time: float) -> tuple[Stage, Analyses]:
        started = time.perf_counter()
        candidate = model.clone()
        outcome = self._attempt(step, model, candidate, analyses, tune_time)
        outcome = replace(outcome, seconds=time.perf_counter() - started)
        result = outcome.result
        if outcome.kind is not OutcomeKind.APPLIED or result is None:
            return Stage(replace(outcome, nodes=(model.node_count, model.node_count)), model), analyses
        outcome = replace(outcome, nodes=(model.node_count, candidate.node_count))
        return Stage(outcome, candidate), analyses.carried_over(candidate, result.preserves)

    def _attempt(self, step: Step, model: Model, candidate: Model, analyses: Analyses, tune_time: float) -> Outcome:
        rewrite = step.rewrite
        why_not = self._why_skipped(step, model)
        if why_not:
            return Outcome(step, OutcomeKind.SKIPPED, why_not)
        self._require_validation(step)
        runnable = self.grounds.feeds is not None
        selection = Selection.of(candidate, rewrite.options.only, rewrite.options.skip)
        ctx = PassContext(
            model=candidate,
            source=self.source,
            analyses=Analyses(candidate)
            if analyses.model is not model
            else analyses.carried_over(candidate, frozenset()),
            selection=selection,
            samples=self.samples if runnable else None,
            target=self.target,
            seed=self.seed,
            progress=self.progress,
            time_budget=self.time_budget,
            feeds=self.grounds.feeds,
            compared=self.grounds.compared,
            tune_time=tune_time,
            fed=self._all_fed,
        )
        try:
            rewrite.requires(ctx)
            if rewrite.needs_samples and self.samples is None:
                raise Refusal(NO_SAMPLES)
            result = rewrite.run(ctx)
        except Refusal as refusal:
            where = f" ({refusal.where})" if refusal.where else ""
            return Outcome(step, OutcomeKind.SKIPPED, f"{refusal.reason}{where}")
        except (UsageError, SampleError):
            raise
        except GraphoptError as error:
            # GO-308: the pass is fine, this model cannot hold what it would write.
            kind = OutcomeKind.SKIPPED if error.code == "GO-308" else OutcomeKind.FAILED
            return Outcome(step, kind, str(error), error=error)
        except SystemExit as left:
            return self._failed(step, RuntimeError(f"it would have ended the process (sys.exit({left.code!r}))"))
        except Exception as error:
            return self._failed(step, error)
        return self._judged(step, ctx, model, result)

    def _failed(self, step: Step, error: Exception) -> Outcome:
        """The outcome of an error that nobody meant: the pass's own, unless the model breaks what passes may rely on.

        It does where onnx's inference refuses it and it cannot be run: either alone may be no fault of the model.
        """
        bug, reason = _as_bug(step, error), f"{type(error).__name__}: {error}"
        if bug.code not in ("GO-801", "GO-900") or not self.source.inference_failures or self.grounds.feeds is not None:
            return Outcome(step, OutcomeKind.FAILED, reason, error=bug)
        conflict = ModelError(
            "GO-307",
            f"{step.name} raised {type(error).__name__} on a model whose types or shapes conflict",
            why=self.grounds.why_not,
            hint="export the model again",
        )
        conflict.__cause__ = error
        return Outcome(step, OutcomeKind.SKIPPED, str(conflict), error=conflict)

    def _why_skipped(self, step: Step, model: Model) -> str:
        """Why the pass cannot do anything for this run, before it is asked; empty: it can."""
        rewrite, blind = step.rewrite, self.grounds.feeds is None
        approximate = rewrite.safety is Safety.APPROXIMATE
        if approximate and model.has_training_info:
            return "the model carries training_info, which refers to its weights as they are"
        if blind and not step.named and approximate and self.validate:
            return f"the model cannot be run to check it: {self.grounds.why_not}"
        if rewrite.needs_samples and blind and not (step.named and self.validate):
            return f"it has to run the model: {self.grounds.why_not}"
        return ""

    def _judged(self, step: Step, ctx: PassContext, model: Model, result: PassResult) -> Outcome:
        candidate, rewrite = ctx.model, step.rewrite
        checks: list[CheckResult] = []
        try:
            if not result.modified:
                return self._unchanged(step, model, candidate, result)
            conflict = training_conflict(model, candidate)
            if conflict:
                return Outcome(step, OutcomeKind.SKIPPED, conflict, result)
            for check in self._all_checks(step, ctx, model, result):
                checks.append(check)
                if check.passed is False:
                    reason = f"{check.name} check: {check.message}"
                    return Outcome(step, OutcomeKind.ROLLED_BACK, reason, result, tuple(checks))
        except Exception as error:
            bug = _as_bug(step, error)
            return Outcome(step, OutcomeKind.FAILED, f"{rewrite.name}: {error}", result, tuple(checks), bug)
        return Outcome(step, OutcomeKind.APPLIED, "", result, tuple(checks))

    def _all_checks(self, step: Step, ctx: PassContext, model: Model, result: PassResult) -> Iterator[CheckResult]:
        rewrite = step.rewrite
        return chain(
            structural_checks(model, ctx.model, rewrite, ctx, result),
            numeric_checks(model, ctx.model, rewrite.safety, result.oracle, self.grounds),
        )

    def _unchanged(self, step: Step, model: Model, candidate: Model, result: PassResult) -> Outcome:
        if candidate.fingerprint() == model.fingerprint():
            return Outcome(step, OutcomeKind.UNCHANGED, "", result)
        lie = CheckResult("modified flag", False, "the pass says it changed nothing, but the model's bytes differ")
        return Outcome(step, OutcomeKind.ROLLED_BACK, f"{lie.name} check: {lie.message}", result, (lie,))

    def _require_validation(self, step: Step) -> None:
        if step.rewrite.safety is Safety.APPROXIMATE and self.grounds.feeds is None and self.validate:
            raise RuntimeFailure(
                "GO-605",
                f"{step.name} changes outputs, and this model cannot be run to check them",
                why=self.grounds.why_not,
                hint="--no-validate runs it unchecked; --dim and --data help where only the inputs were the trouble",
            )


def _left_out(step: Step, model: Model, crash: GraphoptError) -> Stage:
    """The stage of a pass that is not run, since native code died in it when all was done before."""
    nodes = (model.node_count, model.node_count)
    return Stage(Outcome(step, OutcomeKind.FAILED, str(crash), error=crash, nodes=nodes), model)


def _as_bug(step: Step, error: Exception) -> GraphoptError:
    if isinstance(error, GraphoptError):
        return error
    bug = _bug(step, error)
    bug.__cause__ = error
    return bug


def _bug(step: Step, error: Exception) -> GraphoptError:
    if isinstance(error, ValueError) and "read-only" in str(error):
        hint = "make a new array and hand it to editor.set_constant"
        return PassError("GO-802", f"{step.name} edited a weight in place", hint=hint)
    if isinstance(error, MemoryError):
        return LimitError("GO-701", f"{step.name} ran out of memory", why=str(error) or None, hint=MORE_MEMORY)
    what, hint = f"{step.name} raised {type(error).__name__}", "--debug shows the traceback"
    if step.rewrite.__class__.__module__.startswith("graphopt.passes"):
        return InternalError("GO-900", what, why=str(error), hint=hint)
    return PassError("GO-801", what, why=str(error), hint=hint)
