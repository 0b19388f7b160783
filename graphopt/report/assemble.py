"""Puts the report of a whole run together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from graphopt.data.samples import Samples
from graphopt.errors import InternalError
from graphopt.model.model import Model
from graphopt.pipeline.acceptance import Acceptance
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.contract import NO_SAMPLES, Safety
from graphopt.pipeline.outcome import OutcomeKind, Stage
from graphopt.pipeline.recipe import Recipe, RecipeFile
from graphopt.report.build import (
    gate_records,
    latency_record,
    model_record,
    pass_record,
    samples_record,
    tool_record,
    validation_record,
)
from graphopt.report.schema import TIMED_WARNING, RecipeRecord, Report, Timings, Verdict, plain
from graphopt.runtime.target import Target
from graphopt.validation.compare import Comparison, OutputComparison
from graphopt.validation.gates import FLOOR_DROP, FLOOR_SQNR_DB, Gates


@dataclass(frozen=True)
class RunFacts:
    """Everything a run knows at its end.

    Attributes:
        source: the user's own model.
        source_name: the file, as the user named it.
        recipe: as it was given, or the default.
        named: whether the user chose the passes.
        gates: with the defaults filled in.
        target: where it was judged.
        seed: for everything random.
        calibration: samples the passes saw.
        evaluation: held-back samples.
        grounds: feeds of the checks.
        accepted: the result.
        allow_rollback: whether a named pass may be rolled back without failing the run.
        started: seconds since the epoch.
        seconds: the whole run took.
    """

    source: Model
    source_name: str
    recipe: RecipeFile
    named: bool
    gates: Gates
    target: Target
    seed: int
    calibration: Samples | None
    evaluation: Samples | None
    grounds: Grounds
    accepted: Acceptance
    allow_rollback: bool
    started: float
    seconds: float


def build_report(facts: RunFacts) -> Report:
    """The report of a run; the output's path is filled in when it is written."""
    accepted = facts.accepted
    verdict = _verdict(facts)
    resolved = resolved_recipe(facts)
    result = model_record(accepted.model)
    return Report(
        tool=tool_record(),
        seed=facts.seed,
        source=model_record(facts.source, facts.source_name),
        output=result if not _user_gate_failed(accepted) else None,
        result=result,
        recipe=RecipeRecord(resolved=_plain_recipe(resolved), toml=resolved.to_toml(), source=facts.recipe.name),
        calibration=samples_record(facts.calibration),
        evaluation=samples_record(facts.evaluation),
        passes=tuple(pass_record(stage.outcome) for stage in accepted.stages),
        validation=tuple(validation_record(provider, found) for provider, found in accepted.comparisons),
        latency=tuple(latency_record(provider, facts.target.threads, found) for provider, found in accepted.latencies),
        gates=gate_records(accepted.verdicts),
        verdict=verdict,
        warnings=_warnings(facts),
        errors=tuple(plain(s.outcome.error.as_dict()) for s in accepted.stages if s.outcome.error and _is_bug(s)),
        timings=Timings(
            started=datetime.fromtimestamp(facts.started, UTC).isoformat(timespec="seconds"),
            total_seconds=facts.seconds,
        ),
    )


def resolved_recipe(facts: RunFacts) -> Recipe:
    """The passes that were kept, with every measured decision written in.

    The never-slower gate is off in it: timing has already decided, and deciding again could give other bytes.
    """
    entries = [{"name": s.outcome.name, **s.outcome.resolved_options} for s in facts.accepted.kept]
    gates = {name: getattr(facts.gates, name) for name in sorted(facts.gates.model_fields_set)}
    target = {"providers": [str(p) for p in facts.target.providers], "threads": facts.target.threads}
    return Recipe.model_validate(
        {
            "version": 1,
            "seed": facts.seed,
            "pass": entries,
            "gates": gates | {"never_slower": False},
            "target": target,
        }
    )


def _plain_recipe(recipe: Recipe) -> dict[str, Any]:
    plain: dict[str, Any] = recipe.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    return plain


def _verdict(facts: RunFacts) -> Verdict:
    accepted = facts.accepted
    validated = facts.grounds.feeds is not None
    failed = [v for v in accepted.verdicts if v.user_set and not v.passed]
    if failed:
        names = ", ".join(v.name for v in failed)
        return Verdict(exit_code=1, text=f"gate failed: {names}; no model was written", validated=validated)
    bug = next((s.outcome for s in accepted.stages if s.outcome.step.named and _is_bug(s)), None)
    if bug is not None and bug.error is not None:
        text = f"bug in {bug.name}: error[{bug.error.code}] {bug.error}; what it did was dropped, the rest was kept"
        return Verdict(exit_code=bug.error.exit_code, text=text, validated=validated)
    lost = [s.outcome.name for s in accepted.stages if s.outcome.step.named and _taken_back(s)]
    if lost and not facts.allow_rollback:
        rest = "the rest was kept" if accepted.kept else "nothing else was left, the result is the source"
        text = f"rolled back: {', '.join(lost)}; {rest} (--allow-rollback makes this exit 0)"
        return Verdict(exit_code=1, text=text, validated=validated)
    if not accepted.kept:
        why = "nothing paid" if any(_taken_back(s) for s in accepted.stages) else "there was nothing to change"
        return Verdict(exit_code=0, text=f"{why}: the result is the source, unchanged", validated=validated)
    kept = ", ".join(s.outcome.name for s in accepted.kept)
    if _accuracy_unjudged(facts):
        kept += "; accuracy NOT judged"
    text = f"kept: {kept}" if validated else f"kept: {kept}; NOT VALIDATED: the source cannot be run"
    return Verdict(exit_code=0, text=text, validated=validated)


def _is_bug(stage: Stage) -> bool:
    error = stage.outcome.error
    return error is not None and error.exit_code == InternalError.exit_code


def _taken_back(stage: Stage) -> bool:
    return stage.outcome.kind in (OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED)


def _user_gate_failed(accepted: Acceptance) -> bool:
    return any(v.user_set and not v.passed for v in accepted.verdicts)


def _warnings(facts: RunFacts) -> tuple[str, ...]:
    found = list(_foreign(facts.recipe, facts.source))
    if facts.grounds.feeds is None:
        found.append(f"not validated: {facts.grounds.why_not}")
    elif facts.grounds.feeds.synthetic:
        found.append("checked on seeded synthetic inputs: give --data for real ones")
    if any(s.outcome.reason == NO_SAMPLES for s in facts.accepted.stages):
        found.append("INT8 was left out: samples (--data, a file or a folder) would let it be tried")
    found += _unjudged(facts)
    if left := facts.accepted.model.interface.overridable:
        names = [spec.name for spec in left]
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        found.append(f"{len(names)} initializers are also graph inputs and were left alone: {shown}")
    found += [
        f"{TIMED_WARNING}{p} is inconclusive" for p, found_l in facts.accepted.latencies if not found_l.conclusive
    ]
    found += [
        f"output {output.name} of the source {_blank(output)} on all {comparison.samples} samples: not compared"
        for _, comparison in facts.accepted.comparisons
        for output in comparison.outputs
        if output.finite_share == 0.0
    ]
    found += [text for provider, comparison in facts.accepted.comparisons for text in _ungated(facts.gates, comparison)]
    found += [
        f"{s.outcome.name} was dropped by a bug: {s.outcome.reason}; --debug shows the traceback"
        for s in facts.accepted.stages
        if _is_bug(s)
    ]
    return tuple(found)


def _blank(output: OutputComparison) -> str:
    return "has no element" if output.empty else "is NaN or infinite"


def _unjudged(facts: RunFacts) -> Iterator[str]:
    """Where approximate passes were kept: what stands behind their accuracy without held-back samples."""
    if not _accuracy_unjudged(facts):
        return
    compared = ""
    for _, comparison in facts.accepted.comparisons[:1]:
        kind = "synthetic inputs" if comparison.synthetic else "calibration samples"
        compared = f"outputs were compared on {comparison.samples} {kind}; "
    yield f"{compared}accuracy was not judged, for want of held-back samples: give --data, or --calib and --eval"


def _accuracy_unjudged(facts: RunFacts) -> bool:
    approximate = any(s.outcome.step.rewrite.safety is Safety.APPROXIMATE for s in facts.accepted.kept)
    return approximate and facts.evaluation is None


def _foreign(recipe: RecipeFile, source: Model) -> Iterator[str]:
    """A resolved recipe names nodes of one model, and what was measured on it."""
    this = source.fingerprint()
    if recipe.made_for and recipe.made_for != this:
        prints = f"fingerprint {recipe.made_for[:12]}, this one {this[:12]}"
        yield (
            f"the recipe was resolved for another model, {recipe.made_from or 'of no file'} ({prints}): "
            "nodes that it names and choices that it measured may not fit"
        )


def _ungated(gates: Gates, comparison: Comparison) -> Iterator[str]:
    """What a user would want to know of a result that no gate of accuracy stood in front of."""
    if comparison.synthetic or gates.floor or gates.needs_samples:
        return
    before, after = comparison.reference_top1, comparison.candidate_top1
    worst = comparison.worst
    if before is not None and after is not None:
        lost = 100 * (before - after)
        if lost > FLOOR_DROP:
            yield f"top-1 falls by {lost:.1f} points, and no gate was set on it: --max-drop 1 would refuse this"
    elif worst is not None and worst.fidelity_db < FLOOR_SQNR_DB:
        yield (
            f"output {worst.name} is at {worst.fidelity_db:.1f} dB, and no gate was set on it: "
            f"--min-sqnr {FLOOR_SQNR_DB:g} would refuse this"
        )
