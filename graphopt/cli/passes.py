"""``graphopt passes``: what is installed, and what one pass takes."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.options import output_options
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.pipeline.contract import Pass
    from graphopt.pipeline.registry import Registry


@click.command("passes")
@click.argument("name", required=False)
@output_options
def command(name: str | None, as_json: bool, quiet: bool, verbose: int, debug: bool) -> None:
    """List the installed passes; with NAME, its card and its options."""
    from graphopt.pipeline.describe import describe
    from graphopt.pipeline.registry import Registry

    registry = Registry.discover()
    if name is None:
        _list(registry, as_json, quiet)
        return
    cls = registry.load(name)
    facts = describe(cls, registry.source(name))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_one(cls, facts)


def _list(registry: Registry, as_json: bool, quiet: bool) -> None:
    from graphopt.pipeline.describe import describe

    found, broken = [], []
    for name in registry.names():
        try:
            found.append(describe(registry.load(name), registry.source(name)))
        except UsageError as error:
            broken.append({"name": name, "source": registry.source(name), "error": error.as_dict()})
            if not quiet:
                click.echo(f"warning: {error}", err=True)
    if as_json:
        click.echo(json.dumps([*found, *broken], indent=2))
        return
    width = max((len(str(f["name"])) for f in found), default=0)
    for facts in found:
        click.echo(f"{facts['name']:<{width}}  {facts['safety']:<12}  {facts['summary']}  [{facts['source']}]")


def _print_one(cls: type[Pass[Any]], facts: dict[str, Any]) -> None:
    click.echo(f"{facts['name']}  ({facts['safety']}, from {facts['source']})\n")
    click.echo(inspect.cleandoc(cls.__doc__ or ""))
    click.echo("\nOptions:")
    for option in facts["options"]:
        bounds = f", {option['bounds']}" if option["bounds"] else ""
        click.echo(f"  {option['name']} ({option['type']}{bounds}; default {option['default']})")
        click.echo(f"      {option['description']}")
    if facts["families"]:
        click.echo("\nFamilies:")
    for family in facts["families"]:
        click.echo(f"  {family['name']}: {family['what']}")
        click.echo(f"      rules: {', '.join(family['rules'])}")
