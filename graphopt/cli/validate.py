"""``graphopt validate``: compare the outputs of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli.limits import limit_options
from graphopt.cli.options import MODEL, output_options, sample_options, target_options


@click.command("validate")
@click.argument("reference", type=MODEL)
@click.argument("candidate", type=MODEL)
@sample_options
@click.option("--metric", metavar="MODULE:FUNCTION", help="Your own score: (outputs, samples, metadata) -> float.")
@click.option("--max-drop", type=float, help="Fail above this loss, in points of top-1 or of --metric.")
@click.option("--min-sqnr", type=float, help="Fail below this SQNR (dB) on any output.")
@target_options
@limit_options
@output_options
def command(reference: Path, candidate: Path, **words: Any) -> None:
    """Compare the outputs of CANDIDATE with those of REFERENCE on the same samples; exit 1 where a gate fails."""
    from graphopt.cli.pair import conditions_of, show
    from graphopt.pairs import validate_pair

    gates = {name: words[name] for name in ("max_drop", "min_sqnr") if words[name] is not None}
    found = validate_pair(reference, candidate, conditions_of(words), gates=gates, metric=words["metric"])
    show(found, as_json=words["as_json"])
