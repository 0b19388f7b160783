"""The work of ``graphopt run``, once its words are read: what it imports nobody should wait for who mistyped one."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from graphopt.api import Request, Settings
from graphopt.cli.options import parse_dims, parse_shapes
from graphopt.cli.progress import make_progress
from graphopt.cli.target import make_target
from graphopt.cli.write import Destination, plan_outputs, write_result
from graphopt.errors import UsageError
from graphopt.model.load import require_file
from graphopt.model.model import Model
from graphopt.pipeline.outcome import Stage
from graphopt.pipeline.plan import make_plan
from graphopt.report.schema import Report
from graphopt.report.terminal import print_report


def run_models(models: Sequence[Path], output: str, words: dict[str, Any]) -> int:
    """Optimize, write and print each model.

    Args:
        models: their files.
        output: where to; see ``plan_outputs``.
        words: the options of ``graphopt run``, by the names of its parameters.

    Returns:
        The exit code: the largest of theirs.
    """
    request = _request(words)
    for model in models:
        require_file(model)
    if len(models) > 1:
        for model in models:
            Model.open(model)  # a model that cannot be read stops the command before another one is written
    # Only now: nobody should have to allow an overwrite to learn that another word of the command is wrong.
    destinations = plan_outputs(models, output, words["report"], overwrite=words["overwrite"])
    show = _print_line if len(models) > 1 else _print_document
    return max(_run_one(request, model, where, words, show) for model, where in zip(models, destinations, strict=True))


def _request(words: dict[str, Any]) -> Request:
    """The words as a run, refused where they cannot be right for any model."""
    gates = {
        name: words[name] for name in ("min_speedup", "max_drop", "min_sqnr", "max_size") if words[name] is not None
    }
    if words["allow_slower"]:
        gates["never_slower"] = False
    settings = Settings(
        data=words["data"],
        calib=words["calib"],
        evaluation=words["evaluation"],
        preprocess=words["preprocess"],
        metric=words["metric"],
        gates=gates or None,
        target=make_target(words["providers"], words["threads"], words["custom_op_libraries"]),
        seed=words["seed"],
        dims=parse_dims(words["dims"]),
        shapes=parse_shapes(words["shapes"]),
        validate=not words["no_validate"],
        measure=not words["no_measure"],
        allow_rollback=words["allow_rollback"],
        max_seconds=words["measure_seconds"],
        tune_time=words["tune_time"],
        progress=make_progress(words["quiet"]),
        observers=(_print_traceback,) if words["debug"] else (),
    )
    plan = make_plan(
        words["recipe"], words["passes"], freeze=_freezing(words), dequantize=words["dequantize_constants"]
    )
    return Request(plan, settings)


def _run_one(
    request: Request, model: Path, destination: Destination, words: dict[str, Any], show: Callable[[Report], None]
) -> int:
    result = request.run(model)
    report = write_result(result, destination, command=("graphopt", *(click.get_current_context().obj or ())))
    if report.output is None and destination.model.exists() and not words["quiet"]:
        earlier = f"{destination.model} is of an earlier run and was left as it was"
        click.echo(f"warning: {earlier}; {destination.place_of(report)} tells of this run", err=True)
    if words["as_json"]:
        show(report)
    else:
        print_report(report, report_path=str(destination.place_of(report)), verbose=words["verbose"] > 0)
    return result.exit_code


def _print_document(report: Report) -> None:
    click.echo(report.to_json(), nl=False)


def _print_line(report: Report) -> None:
    """One of several reports, each a line (JSON Lines): what was printed stays readable if a later model fails."""
    click.echo(json.dumps(json.loads(report.to_json()), ensure_ascii=False))


def _freezing(words: dict[str, Any]) -> bool | None:
    """What the user said about initializers that are also inputs; ``None``: nothing."""
    if words["freeze_initializers"] and words["keep_overridable"]:
        raise UsageError("GO-201", "--freeze-initializers and --keep-overridable exclude each other")
    return True if words["freeze_initializers"] else False if words["keep_overridable"] else None


def _print_traceback(stage: Stage) -> None:
    """With ``--debug``: where a pass raised, although the run goes on without it."""
    if stage.outcome.error is not None:
        traceback.print_exception(stage.outcome.error)
