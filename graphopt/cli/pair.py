"""What ``validate`` and ``bench`` share."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli.options import parse_dims, parse_shapes
from graphopt.cli.progress import make_progress
from graphopt.cli.target import make_target
from graphopt.pairs import Conditions
from graphopt.report.pair import PairReport, pair_lines
from graphopt.runtime.target import Target


def conditions_of(words: dict[str, Any]) -> Conditions:
    """The command line's words as the conditions that both models run under."""
    return Conditions(
        data=words["data"],
        preprocess=words["preprocess"],
        target=make_target(words["providers"], words["threads"], words["custom_op_libraries"]) or Target(),
        seed=words["seed"] or 0,
        dims=parse_dims(words["dims"]),
        shapes=parse_shapes(words["shapes"]),
        progress=make_progress(words["quiet"]),
    )


def show(found: PairReport, *, as_json: bool) -> None:
    """Print the report and leave with its exit code."""
    click.echo(found.to_json() if as_json else "\n".join(pair_lines(found)), nl=not as_json)
    raise click.exceptions.Exit(found.exit_code)
