"""``graphopt bench``: time two models against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli.limits import limit_options
from graphopt.cli.options import MODEL, output_options, sample_options, target_options


@click.command("bench")
@click.argument("baseline", type=MODEL)
@click.argument("candidate", type=MODEL)
@sample_options
@click.option("--min-speedup", type=float, help="Fail below this latency ratio baseline / candidate.")
@click.option(
    "--measure-seconds",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    help="Longest measurement.",
)
@target_options
@limit_options
@output_options
def command(baseline: Path, candidate: Path, **words: Any) -> None:
    """Time CANDIDATE against BASELINE in interleaved pairs; exit 1 where --min-speedup is not reached."""
    from graphopt.cli.pair import conditions_of, show
    from graphopt.pairs import bench_pair

    found = bench_pair(
        baseline,
        candidate,
        conditions_of(words),
        min_speedup=words["min_speedup"],
        max_seconds=words["measure_seconds"],
    )
    show(found, as_json=words["as_json"])
