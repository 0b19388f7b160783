"""``graphopt inspect``: what a model is made of."""

from __future__ import annotations

import json
from pathlib import Path

import click

from graphopt.cli.limits import limit_options
from graphopt.cli.options import MODEL, output_options


@click.command("inspect")
@click.argument("model", type=MODEL)
@click.option("--no-measure", is_flag=True, help="Do not time what freezing initializers that are inputs would bring.")
@limit_options
@output_options
def command(model: Path, no_measure: bool, as_json: bool, quiet: bool, verbose: int, debug: bool) -> None:
    """Say what MODEL is made of: interface, op types, weights, multiply-adds.

    With -v each layer by its name; with -vv each node by the name that `only` and `skip` take, and what it reads and
    gives.
    """
    from graphopt.analysis.inventory import inventory
    from graphopt.model.model import Model
    from graphopt.pipeline.overridable import describe_gain, inspect_gain

    opened = Model.open(model)
    facts = inventory(opened)
    gain = None if no_measure else inspect_gain(opened)
    if as_json:
        told = {} if gain is None else {"freezing": {"speedup": gain.ratio, "low": gain.low, "high": gain.high}}
        click.echo(json.dumps(facts.as_dict() | told, indent=2))
        return
    lines = facts.lines(layers=verbose > 0, wiring=verbose > 1)
    if not quiet:
        lines += facts.notes(layers=verbose > 0)
    if gain is not None:
        lines.append(f"      {describe_gain(gain, len(facts.overridable))}")
    click.echo("\n".join(lines))
