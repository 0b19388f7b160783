"""The generated pages of the documentation: one card per pass, and the table of error codes.

``python -m graphopt.testing.cards`` writes them; a test compares them with the tree. A card is the docstring
of the pass's class, under fixed headings as in ruff's rule pages, and the table of its options. A pass made of rule
families has the docstrings of its rules there too.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphopt.errors import (
    CODES,
    GraphoptError,
    InternalError,
    LimitError,
    ModelError,
    OutputError,
    PassError,
    RuntimeFailure,
    SampleError,
    UsageError,
)
from graphopt.pipeline.contract import Pass, Safety
from graphopt.pipeline.describe import describe
from graphopt.pipeline.families import Family
from graphopt.pipeline.family_pass import FamilyOptions
from graphopt.pipeline.registry import Registry

HEADINGS = (
    "What it does",
    "When it applies",
    "When it refuses",
    "Safety",
    "Options",
    "Example",
    "Cost",
    "References",
)
"""The headings of a card, in order; each is a line of the docstring, with its text indented below it."""

RULE_HEADINGS = ("Pattern", "Conditions", "Proof", "Effect", "Refuses", "Cost", "Source")
"""What the docstring of a rule says after its first line; each begins a paragraph. The last two may be missing."""

FAMILIES: dict[str, type[GraphoptError]] = {
    "2": UsageError,
    "3": ModelError,
    "4": SampleError,
    "5": OutputError,
    "6": RuntimeFailure,
    "7": LimitError,
    "8": PassError,
    "9": InternalError,
}
"""First digit of an error code → the class that carries it."""

_SAFETY = {
    Safety.EXACT: "exact: outputs stay bit-identical with the runtime's own optimizations off",
    Safety.ROUNDING: "rounding: outputs move by no more than floating-point noise",
    Safety.APPROXIMATE: "approximate: outputs change; the error is measured, reported and gated",
}


def sections(cls: type[Pass[Any]]) -> dict[str, str]:
    """The card in a pass's own docstring: heading → text, in the order they stand there.

    A heading is a line of its own, with or without a colon; its text reaches to the next heading.
    """
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in inspect.cleandoc(cls.__dict__.get("__doc__") or "").splitlines():
        heading = line.removesuffix(":")
        if heading in HEADINGS:
            current = found.setdefault(heading, [])
        else:
            current.append(line)
    return {heading: inspect.cleandoc("\n".join(["", *lines])) for heading, lines in found.items()}


def render_card(cls: type[Pass[Any]]) -> str:
    """A pass's page in Markdown."""
    facts = describe(cls)
    lines = [f"# {cls.name}", "", facts["summary"], "", f"*{_SAFETY[cls.safety]}.*"]
    if cls.after:
        lines += ["", f"Runs after {', '.join(f'`{name}`' for name in cls.after)} where a recipe holds both."]
    if cls.needs_samples:
        lines += ["", "Needs calibration samples."]
    for heading, text in sections(cls).items():
        lines += ["", f"## {heading}", ""]
        lines += [text] if text else []
        if heading == "Options":
            lines += ["", *_table(facts["options"])] if text else _table(facts["options"])
    if issubclass(cls.Options, FamilyOptions):
        lines += ["", "## Families and rules"]
        for family in cls.Options.known():
            lines += _family(family)
    return "\n".join(lines) + "\n"


def rule_sections(doc: str) -> dict[str, str]:
    """What a rule's docstring says: ``""`` → its first paragraph, then heading → text on one line."""
    found: dict[str, list[str]] = {"": []}
    current = found[""]
    for line in inspect.cleandoc(doc).splitlines():
        heading, colon, rest = line.partition(":")
        if colon and heading in RULE_HEADINGS:
            current = found.setdefault(heading, [])
            line = rest
        current.append(line.strip())
    return {heading: " ".join(line for line in lines if line) for heading, lines in found.items()}


def _family(family: Family) -> Iterator[str]:
    yield from ("", f"### {family.name}", "")
    yield f"{family.what[:1].upper()}{family.what[1:].rstrip('.')}."
    if not family.default:
        yield "Kept only where measuring shows that it pays."
    for rule in family.rules:
        told = rule_sections(rule.__doc__ or "")
        yield from ("", f"#### `{rule.name}`", "", told.pop(""), "")
        yield from (f"- **{heading}.** {text}" for heading, text in told.items())


def _table(options: list[dict[str, str]]) -> Iterator[str]:
    yield "| name | type | default | bounds | meaning |"
    yield "|---|---|---|---|---|"
    for option in options:
        cells = [f"`{option['name']}`", option["type"], f"`{option['default']}`", option["bounds"]]
        yield "| " + " | ".join(_cell(text) for text in [*cells, option["description"]]) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def render_errors() -> str:
    """The page of error codes in Markdown."""
    lines = [
        "# Error codes",
        "",
        "Every error that graphopt raises on purpose carries a code. Codes are stable: a pipeline may match",
        "on them. The first digit is the family; the family decides the exit code of a process. `--json`",
        "prints the error as an object with `code`, `title`, `what`, `where`, `why`, `hint` and `exit_code`.",
    ]
    for digit, family in FAMILIES.items():
        title = inspect.cleandoc(family.__doc__ or "").splitlines()[0]
        lines += ["", f"## GO-{digit}xx: `{family.__name__}`, exit code {family.exit_code}", "", title, ""]
        lines += ["| code | meaning |", "|---|---|"]
        lines += [f"| {code} | {meaning} |" for code, meaning in CODES.items() if code[3] == digit]
    return "\n".join(lines) + "\n"


def pages(distribution: str = "graphopt") -> dict[str, str]:
    """Every generated page: path below the documentation folder → text.

    Args:
        distribution: whose passes get a card.
    """
    registry = Registry.discover()
    own = [name for name in registry.names() if registry.source(name) == distribution]
    cards = {f"passes/{name}.md": render_card(registry.load(name)) for name in own}
    return {"errors.md": render_errors(), **cards}


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description="Write the generated pages of the documentation.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"), help="default: docs")
    folder = parser.parse_args().folder
    for name, text in pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
