"""``graphopt check``: everything there is to say about a model before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphopt.cli.limits import limit_options
from graphopt.cli.options import MODEL, output_options
from graphopt.errors import ModelError, UsageError

if TYPE_CHECKING:
    from graphopt.model.findings import Finding


@click.command("check")
@click.argument("models", nargs=-1, required=True, type=MODEL)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "sarif"]),
    help="How the findings are printed; --json is short for --format json.  [default: text]",
)
@click.option("--strict", is_flag=True, help="Exit 3 for warnings too.")
@limit_options
@output_options
def command(
    models: tuple[Path, ...], form: str | None, strict: bool, as_json: bool, quiet: bool, verbose: int, debug: bool
) -> None:
    """Print everything that is wrong or odd with MODELS, with codes; exit 3 where an error is found."""
    from graphopt.report.findings import as_json as to_json
    from graphopt.report.findings import as_sarif, text_lines
    from graphopt.validation.lint import lint

    if as_json and form not in (None, "json"):
        raise UsageError("GO-201", f"--json and --format {form} ask for different things")
    found = {path: _shown(lint(path), quiet) for path in models}
    form = "json" if as_json else form or "text"
    if form == "text":
        for line in text_lines(found):
            click.echo(line)
    else:
        click.echo(to_json(found) if form == "json" else as_sarif(found))
    refused = {"error", "warning"} if strict else {"error"}
    if any(finding.severity in refused for findings in found.values() for finding in findings):
        raise click.exceptions.Exit(ModelError.exit_code)


def _shown(findings: tuple[Finding, ...], quiet: bool) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if not (quiet and finding.severity == "note"))
