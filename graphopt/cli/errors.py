"""How an error reaches the user: one paragraph on stderr, its object on stdout with ``--json``."""

from __future__ import annotations

import json
import traceback

import click

from graphopt.errors import MORE_MEMORY, GraphoptError, InternalError, LimitError


def report_error(error: Exception, *, debug: bool, as_json: bool) -> int:
    """Print the error and return the exit code of the process."""
    known = _as_known(error)
    if debug:
        traceback.print_exception(error)
    click.echo(paragraph(known), err=True)
    if as_json:
        click.echo(json.dumps({"errors": [known.as_dict()]}, indent=2))
    return known.exit_code


def paragraph(error: GraphoptError) -> str:
    """``error[GO-nnn]: what (where): why`` and a hint below."""
    text = f"error[{error.code}]: {error}"
    return f"{text}\nhint: {error.hint}" if error.hint else text


def _as_known(error: Exception) -> GraphoptError:
    if isinstance(error, GraphoptError):
        return error
    if isinstance(error, MemoryError):
        return LimitError("GO-701", "out of memory", hint=MORE_MEMORY)
    return InternalError(
        "GO-900",
        "graphopt ran into a bug",
        why=f"{type(error).__name__}: {error}",
        hint="run again with --debug and report the traceback",
    )
