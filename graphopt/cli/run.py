"""``graphopt run``: optimize a model and prove the result."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from graphopt.api import Request, Settings
from graphopt.cli.limits import limit_options
from graphopt.cli.options import (
    MODEL,
    output_options,
    parse_dims,
    parse_shapes,
    sample_options,
    target_options,
)
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


@click.command("run")
@click.argument("models", nargs=-1, required=True, type=MODEL)
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="The model to write; a folder (OUT/) for several models."
)
@click.option("-r", "--recipe", type=MODEL, help="Recipe (TOML), or the report of an earlier run to repeat it.")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="A pass to run, repeatable, in order; instead of a recipe.",
)
@sample_options
@click.option("--calib", metavar="PATH", help="Calibration samples; with --eval, instead of --data.")
@click.option("--eval", "evaluation", metavar="PATH", help="Held-back samples that the result is judged on.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="Your own score: (outputs, samples, metadata) -> float.")
@click.option("--min-speedup", type=float, help="Fail below this latency ratio original / optimized.")
@click.option("--max-drop", type=float, help="Fail above this loss, in points of top-1 or of --metric.")
@click.option("--min-sqnr", type=float, help="Fail below this SQNR (dB) on any output.")
@click.option("--max-size", help="Fail above this file size: bytes, 5MB or 5MiB.")
@click.option("--allow-slower", is_flag=True, help="Keep passes that make the model slower.")
@click.option("--allow-rollback", is_flag=True, help="Exit 0 although a named pass was rolled back.")
@click.option("--no-validate", is_flag=True, help="Run approximate passes on a model that cannot be run here.")
@click.option("--freeze-initializers", is_flag=True, help="Make constants of initializers that are also inputs.")
@click.option("--keep-overridable", is_flag=True, help="Leave initializers that are also inputs as they are.")
@click.option(
    "--dequantize-constants", is_flag=True, help="Fold weights behind DequantizeLinear to float; the file grows."
)
@click.option("--no-measure", is_flag=True, help="Time nothing; passes keep their defaults.")
@click.option(
    "--measure-seconds",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    help="Longest latency measurement.",
)
@click.option(
    "--tune-time",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=120.0,
    show_default=True,
    help="Time for finding out which rewrites pay on this model; 0: their defaults.",
)
@target_options
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option(
    "--report",
    type=MODEL,
    help="Report file.  [default: OUT.graphopt.json; OUT.graphopt.failed.json where no model is written]",
)
@limit_options
@output_options
def command(models: tuple[Path, ...], output: str, **words: Any) -> None:
    """Optimize MODELS with a recipe or passes, and prove the result.

    Without a recipe: simplify, then faster forms of the same arithmetic, timed and kept where they pay; where --data
    gives samples, INT8 too, kept only where it is accurate and not slower.

    \b
    --preprocess keys: resize=256 or WxH, filter=bilinear, crop=224 or WxH, scale=1/127.5,
    mean=1 or r,g,b, std=1 or r,g,b (both after scale), layout=nchw|nhwc, color=rgb|bgr|gray
    """
    request = _request(words)
    for model in models:
        require_file(model)
    # Only now: nobody should have to allow an overwrite to learn that another word of the command is wrong.
    destinations = plan_outputs(models, output, words["report"], overwrite=words["overwrite"])
    if len(models) > 1:
        for model in models:
            Model.open(model)  # a model that cannot be read stops the command before another one is written
    show = _print_line if len(models) > 1 else _print_document
    codes = [_run_one(request, model, where, words, show) for model, where in zip(models, destinations, strict=True)]
    raise click.exceptions.Exit(max(codes))


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
