"""``graphopt profile``: where a model's time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli.limits import limit_options
from graphopt.cli.options import MODEL, output_options, sample_options, target_options


@click.command("profile")
@click.argument("model", type=MODEL)
@sample_options
@click.option("--top", type=click.IntRange(min=0), default=15, show_default=True, help="Slowest nodes to list.")
@click.option(
    "--measure-seconds",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    help="Longest timing, without the search for denormals.",
)
@click.option("--no-denormals", is_flag=True, help="Do not look for nodes that denormals slow down.")
@target_options
@limit_options
@output_options
def command(model: Path, **words: Any) -> None:
    """Say where MODEL's time goes: per operator and per node, with what the provider fused, reordered and added.

    \b
    Node times are wall time from onnxruntime's profiler. The session's own time without the
    profiler stands beside their sum; neither is adjusted to the other.
    """
    from graphopt.cli.pair import conditions_of
    from graphopt.profiling import profile_model
    from graphopt.report.profile import profile_lines
    from graphopt.report.terminal import print_lines

    found = profile_model(
        model,
        conditions_of(words),
        max_seconds=words["measure_seconds"],
        denormals=not words["no_denormals"],
    )
    if words["as_json"]:
        click.echo(found.to_json(), nl=False)
    else:
        top = len(found.kernels) if words["verbose"] else words["top"]
        print_lines(lambda width: profile_lines(found, width, top=top))
