"""Which passes a run is made of, from a recipe, from the user's words, or by default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import SampleError, UsageError
from graphopt.pipeline.contract import Pass
from graphopt.pipeline.recipe import (
    PassEntry,
    Recipe,
    RecipeFile,
    Step,
    build_steps,
    check_order,
    entry_of,
    load_recipe,
    parse_pass,
)
from graphopt.pipeline.registry import Registry

DEFAULT_PASSES = ("freeze-initializers", "simplify", "fuse", "quantize", "depthwise-shift")
"""What runs without a recipe. Freezing comes first: simplify cannot fold what a caller may override."""


@dataclass(frozen=True)
class Plan:
    """Which passes run, and the recipe that says so.

    Attributes:
        origin: the recipe as given, made from the passes, or the default.
        steps: the passes, ready to go.
        named: whether the user chose them.
    """

    origin: RecipeFile
    steps: tuple[Step, ...]
    named: bool

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        return self.origin.recipe


def make_plan(
    recipe: Recipe | str | os.PathLike[str] | None = None,
    passes: Sequence[str | Pass[Any]] = (),
    *,
    freeze: bool | None = None,
    dequantize: bool = False,
) -> Plan:
    """Settle the passes of a run.

    Args:
        recipe: a ``Recipe``, or the file of one.
        passes: instead of a recipe, each as on the command line or an instance of one.
        freeze: initializers that are also inputs: ``True`` makes them constants, ``False`` leaves them, ``None``
            decides by whether every weight is listed. For the default run only.
        dequantize: fold weights behind DequantizeLinear to float. For the default run only.

    Raises:
        UsageError: GO-201, words that exclude each other; GO-202 to GO-206, a recipe, pass or option that cannot be
            used.
    """
    if (recipe is not None or passes) and (freeze is not None or dequantize):
        what = "--freeze-initializers, --keep-overridable and --dequantize-constants are about the default run"
        hint = "name the pass freeze-initializers or dequantize-constants, or leave it out"
        raise UsageError("GO-201", what, hint=hint)
    if recipe is not None and passes:
        raise UsageError("GO-201", "a recipe and --pass exclude each other", hint="put the pass into the recipe")
    registry = Registry.discover()
    if passes:
        steps = tuple(_step(one, registry) for one in passes)
        check_order(steps)
        return _made(steps, named=True)
    if recipe is None:
        return _made(_default_steps(registry, freeze, dequantize), named=False)
    origin = RecipeFile(recipe) if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    entries = origin.recipe.passes
    if not entries:
        raise UsageError("GO-204", "the recipe names no pass", where=origin.name or None, hint="add a [[pass]] table")
    return Plan(origin, build_steps(entries, registry, named=True), named=True)


def require_calibration(steps: Iterable[Step], *, given: bool) -> None:
    """Refuse passes that the user named and that cannot work without calibration samples.

    Args:
        steps: of the run.
        given: there are calibration samples.

    Raises:
        SampleError: GO-405, naming the pass.
    """
    for step in steps:
        if step.named and step.rewrite.needs_samples and not given:
            raise SampleError(
                "GO-405",
                f"{step.name} needs calibration samples",
                hint="give --data PATH, or --calib PATH and --eval PATH; random data is never used unasked",
            )


def _made(steps: tuple[Step, ...], *, named: bool) -> Plan:
    return Plan(RecipeFile(Recipe.of(entry_of(step.rewrite) for step in steps)), steps, named)


def _default_steps(registry: Registry, freeze: bool | None, dequantize: bool) -> tuple[Step, ...]:
    """The default run; what the user asked for by a flag counts as named."""
    asked = {"dequantize-constants"} if dequantize else set()
    asked |= {"freeze-initializers"} if freeze else set()
    names = [name for name in DEFAULT_PASSES if name != "freeze-initializers" or freeze is not False]
    if dequantize:
        names.insert(names.index("simplify"), "dequantize-constants")
    # Naming the pass freezes every listed initializer; the default run only where all weights are listed.
    options = {} if freeze else {"freeze-initializers": {"partial": False}}
    return tuple(
        step
        for name in names
        for step in build_steps(
            [PassEntry.model_validate({"name": name, **options.get(name, {})})], registry, named=name in asked
        )
    )


def _step(one: str | Pass[Any], registry: Registry) -> Step:
    if isinstance(one, Pass):
        return Step(one, named=True)
    return build_steps([parse_pass(one)], registry, named=True)[0]
