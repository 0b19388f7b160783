"""The generated pages are what the tree holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.errors import CODES
from graphopt.pipeline.contract import PassOptions
from graphopt.pipeline.registry import Registry
from graphopt.testing.cards import HEADINGS, pages, render_card, render_errors, sections

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = pages()
TOLD_TO = "run `python -m graphopt.testing.cards`"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name], TOLD_TO


def test_no_card_is_left_of_a_pass_that_is_gone() -> None:
    assert {f"passes/{p.name}" for p in (DOCS / "passes").glob("*.md")} <= set(PAGES)


@pytest.mark.parametrize("name", Registry.discover().names())
def test_a_card_has_every_heading_in_order_and_every_option(name: str) -> None:
    cls = Registry.discover().load(name)
    assert tuple(sections(cls)) == HEADINGS
    card = render_card(cls)
    for option, field in cls.Options.model_fields.items():
        assert f"| `{option}` |" in card
        assert field.description


def test_sections_keep_the_text_below_their_heading() -> None:
    class Small:
        """One line.

        What it does:
            First.

            Second
                indented.

        Safety:
            EXACT.
        """

    found = sections(Small)  # type: ignore[arg-type]
    assert found == {"What it does": "First.\n\nSecond\n    indented.", "Safety": "EXACT."}


def test_a_subclass_does_not_inherit_a_card() -> None:
    class Base:
        """What it does:
        Something.
        """

    class Derived(Base):
        pass

    assert not sections(Derived)  # type: ignore[arg-type]


def test_every_error_code_is_on_the_page() -> None:
    page = render_errors()
    assert all(f"| {code} | {title} |" in page for code, title in CODES.items())


def test_every_pass_option_says_what_it_takes() -> None:
    assert all(field.description for field in PassOptions.model_fields.values())
