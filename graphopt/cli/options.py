"""Options that several commands share, named alike everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
MODEL = click.Path(path_type=Path)


def _stack(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def output_options(function: F) -> F:
    """``--json``, ``-q``, ``-v`` (how often it is given), ``--debug``."""
    return _stack(
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="Nothing but errors on stderr; inspect and check: no notes."),
        click.option(
            "-v", "--verbose", count=True, help="Tell more: places changed and skipped; inspect: layers, -vv all nodes."
        ),
        click.option("--debug", is_flag=True, help="Show tracebacks."),
    )(function)


def target_options(function: F) -> F:
    """``--provider``, ``--threads``, ``--custom-op-lib``."""
    return _stack(
        click.option(
            "--provider",
            "providers",
            multiple=True,
            metavar="NAME[:KEY=VALUE,...]",
            help="Execution provider, repeatable; the first one is optimized for. Default: cpu.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(0, 1024),
            help="Intra-op threads; 0: onnxruntime chooses.  [default: 1]",
        ),
        click.option(
            "--custom-op-lib",
            "custom_op_libraries",
            multiple=True,
            metavar="FILE",
            help="Shared library with custom ops (native code: only from a source you trust).",
        ),
    )(function)


def sample_options(function: F) -> F:
    """``--data``, ``--preprocess``, ``--shape``, ``--dim``, ``--seed``."""
    return _stack(
        click.option(
            "--data",
            metavar="PATH|MODULE:FUNCTION",
            help="Samples: npz, folder of npz, folder of images, or a function.",
        ),
        click.option(
            "--preprocess",
            metavar="KEY=VALUE,...",
            help="How pictures become inputs; `graphopt run --help` lists the keys.",
        ),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            metavar="INPUT=1x3x224x224",
            help="Shape of a synthetic input.",
        ),
        click.option(
            "--dim",
            "dims",
            multiple=True,
            metavar="NAME=8",
            help="Value of a dynamic dimension in synthetic inputs.",
        ),
        click.option("--seed", type=click.IntRange(min=0), help="For everything random.  [default: 0]"),
    )(function)


def parse_dims(texts: tuple[str, ...]) -> dict[str, int]:
    """``("N=8",)`` → ``{"N": 8}``."""
    found = {}
    for text in texts:
        name, sep, value = text.rpartition("=")
        if not sep or not value.isdigit():
            raise click.BadParameter(f"{text!r} is not NAME=NUMBER", param_hint="--dim")
        found[name] = int(value)
    return found


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``("x=1x3x8x8",)`` → ``{"x": (1, 3, 8, 8)}``."""
    found = {}
    for text in texts:
        name, sep, value = text.rpartition("=")
        parts = value.split("x") if value else []
        if not sep or not all(p.isdigit() for p in parts):
            raise click.BadParameter(f"{text!r} is not INPUT=1x3x224x224", param_hint="--shape")
        found[name] = tuple(int(p) for p in parts)
    return found
