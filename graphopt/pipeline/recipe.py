"""Recipes: which passes run, in which order, with which options, under which gates.

TOML: ``version = 1``, ordered ``[[pass]]`` tables (``name`` plus the pass's options), ``[gates]`` and ``[target]``.
Unknown keys are errors with a suggestion, and all errors are reported at once. A resolved recipe holds every decision
that measuring made; it prints itself back and re-runs to the same bytes.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graphopt.errors import UsageError
from graphopt.explain import explain
from graphopt.pipeline.contract import Pass, PassOptions
from graphopt.pipeline.registry import Registry
from graphopt.validation.gates import Gates


class PassEntry(BaseModel):
    """One ``[[pass]]`` table: the pass's name, and its options as the user wrote them."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options as written, not yet validated by the pass."""
        return dict(self.model_extra or {})


class TargetTable(BaseModel):
    """The ``[target]`` table: what the result is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    providers: tuple[str, ...] = Field(("cpu",), description='execution providers, e.g. "cpu" or "cuda:device_id=0"')
    threads: int = Field(1, ge=0, le=1024, description="intra-op threads; 0: onnxruntime chooses")


class Recipe(BaseModel):
    """A whole recipe.

    Attributes:
        version: of the format; 1.
        passes: the ``[[pass]]`` tables in order.
        gates: what the result must hold.
        target: what the result is for; ``None``: the command line or the defaults decide.
        seed: for everything random; ``None``: the command line or 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    passes: tuple[PassEntry, ...] = Field((), alias="pass")
    gates: Gates | None = None
    target: TargetTable | None = None
    seed: int | None = Field(None, ge=0)

    @classmethod
    def of(cls, entries: Iterable[PassEntry]) -> Recipe:
        """A recipe of these passes, without gates."""
        return cls.model_validate({"version": 1, "pass": tuple(entries)})

    def to_toml(self) -> str:
        """The recipe as TOML text that parses back to an equal recipe."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
        plain["version"] = self.version
        head: dict[str, Any] = {key: plain[key] for key in ("version", "seed") if key in plain}
        tables = {key: plain[key] for key in ("gates", "target") if plain.get(key)}
        parts = [tomli_w.dumps(head), *(f"[[pass]]\n{tomli_w.dumps(entry)}" for entry in plain.get("pass", ()))]
        return "\n".join([*parts, tomli_w.dumps(tables)] if tables else parts)


@dataclass(frozen=True)
class Step:
    """One pass of a run, ready to go.

    Attributes:
        rewrite: the pass with its validated options.
        named: whether the user asked for it (recipe or command line) rather than the default run.
    """

    rewrite: Pass[Any]
    named: bool

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.rewrite.name


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe.

    Args:
        text: TOML.
        where: the file, for messages.

    Raises:
        UsageError: GO-204, with every problem found.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError("GO-204", "the recipe is not valid TOML", where=where, why=str(error)) from error
    if "version" not in raw:
        raise UsageError("GO-204", "the recipe has no version", where=where, hint="put `version = 1` on its first line")
    try:
        return Recipe.model_validate(_underscored(raw))
    except ValidationError as error:
        raise UsageError("GO-204", "the recipe has errors", where=where, why=explain(error, Recipe)) from error


@dataclass(frozen=True)
class RecipeFile:
    """A recipe and where it comes from.

    Attributes:
        recipe: the recipe.
        name: its file; empty for one that was never in a file.
        made_for: fingerprint of the model whose report it was resolved in; empty for any other recipe.
        made_from: the file of that model, as the report names it.
    """

    recipe: Recipe
    name: str = ""
    made_for: str = ""
    made_from: str = ""


def load_recipe(path: Path) -> RecipeFile:
    """Read a recipe file, or the resolved recipe that a report (JSON) holds.

    Raises:
        UsageError: GO-204, unreadable or invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("GO-204", "cannot read the recipe", where=str(path), why=str(error)) from error
    if path.suffix != ".json":
        return RecipeFile(parse_recipe(text, str(path)), str(path))
    try:
        report = json.loads(text)
        toml, source = str(report["recipe"]["toml"]), dict(report.get("source") or {})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            "GO-204",
            "this JSON file holds no recipe",
            where=str(path),
            hint="give a recipe in TOML, or a report that graphopt run wrote",
        ) from error
    made = str(source.get("sha256") or ""), str(source.get("path") or "")
    return RecipeFile(parse_recipe(toml, str(path)), str(path), *made)


def parse_pass(text: str) -> PassEntry:
    """Parse the command line form ``NAME`` or ``NAME:key=value,key=value``.

    Values are TOML values; what is not one is taken as a string. Commas inside brackets and quotes do not split.

    Raises:
        UsageError: GO-203, a part that is not ``key=value``.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in _split(rest):
        key, sep, value = part.partition("=")
        if not sep or not key.strip():
            raise UsageError(
                "GO-203",
                f"{part!r} is not key=value",
                where=f"--pass {text}",
                hint='e.g. --pass prune-weights:sparsity=0.5; lists as \'fuse:families=["stream", "views"]\'',
            )
        options[key.strip().replace("-", "_")] = _value(value.strip())
    if "name" in options:
        raise UsageError("GO-203", "a pass has no option 'name'", where=f"--pass {text}", hint="write NAME:key=value")
    return PassEntry.model_validate({"name": name.strip(), **options})


def build_steps(entries: Iterable[PassEntry], registry: Registry, *, named: bool) -> tuple[Step, ...]:
    """Load the passes, validate their options and check their order.

    Raises:
        UsageError: GO-202/206 unknown or unusable pass, GO-203 bad options, GO-205 impossible order.
    """
    steps = tuple(Step(_make(registry.load(entry.name), entry), named) for entry in entries)
    check_order(steps)
    return steps


def entry_of(rewrite: Pass[Any]) -> PassEntry:
    """The recipe table that stands for a pass: its name, and the options that are not the defaults."""
    options = rewrite.options.model_dump(mode="json", exclude_defaults=True)
    return PassEntry.model_validate({"name": rewrite.name, **options})


def check_order(steps: Sequence[Step]) -> None:
    """Refuse an order that cannot be right.

    Raises:
        UsageError: GO-205, naming both passes.
    """
    for index, step in enumerate(steps):
        for later in steps[index + 1 :]:
            if later.name in step.rewrite.after and later.name != step.name:
                raise UsageError(
                    "GO-205",
                    f"{step.name} runs before {later.name}, but must come after it",
                    hint=f"move {later.name} up",
                )


def _underscored(value: Any) -> Any:
    """Keys with dashes mean the same as keys with underscores."""
    if isinstance(value, dict):
        return {key.replace("-", "_"): _underscored(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_underscored(inner) for inner in value]
    return value


def _make(cls: type[Pass[Any]], entry: PassEntry) -> Pass[Any]:
    try:
        validated: PassOptions = cls.Options.model_validate(entry.options)
    except ValidationError as error:
        raise UsageError(
            "GO-203",
            f"bad options for {entry.name}",
            why=explain(error, cls.Options),
            hint=f"`graphopt passes {entry.name}` lists them",
        ) from error
    return cls(validated)


def _split(text: str) -> list[str]:
    parts, depth, quote, current = [], 0, "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += (char in "[{") - (char in "]}") if not quote else 0
        if char == "," and not quote and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [p for p in [*parts, current] if p.strip()]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
