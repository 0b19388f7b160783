"""``graphopt run``: optimize a model and prove the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli.limits import limit_options
from graphopt.cli.options import MODEL, output_options, sample_options, target_options


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
    from graphopt.cli.running import run_models

    raise click.exceptions.Exit(run_models(models, output, words))
