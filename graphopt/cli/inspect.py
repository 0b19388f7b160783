"""``graphopt inspect``: what a model is made of."""

from __future__ import annotations

import json
from pathlib import Path

import click

from graphopt.analysis.inventory import inventory
from graphopt.cli.limits import limit_options
from graphopt.cli.options import MODEL, output_options
from graphopt.model.model import Model


@click.command("inspect")
@click.argument("model", type=MODEL)
@limit_options
@output_options
def command(model: Path, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> None:
    """Say what MODEL is made of: interface, op types, weights, multiply-adds; with -v each layer by its name."""
    facts = inventory(Model.open(model))
    if as_json:
        click.echo(json.dumps(facts.as_dict(), indent=2))
        return
    for line in facts.lines(layers=verbose):
        click.echo(line)
