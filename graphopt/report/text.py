"""Numbers and names as a person reads them, and lines that fit a terminal."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

ASCII = str.maketrans(
    {"✔": "+", "✘": "x", "→": "->", "≤": "<=", "≥": ">=", "Δ": "d", "·": "|", "…": "...", "²": "^2", "–": "-"}
)
"""For streams that cannot encode the signs."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Span:
    """A piece of a line and how it should look: ``good``, ``bad``, ``dim``, ``bold`` or empty."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


def takes_escapes(stream: TextIO) -> bool:
    """Whether to write escape sequences: it is a terminal, and ``NO_COLOR`` (https://no-color.org) is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def printable(text: str) -> str:
    """Text without control characters: names in a model must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in text)


def cells(text: str) -> int:
    """How many terminal columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def pad(text: str, width: int) -> str:
    """Fill up with spaces to ``width`` columns."""
    return text + " " * max(0, width - cells(text))


def cut(text: str, width: int) -> str:
    """Shorten to ``width`` columns; the end says so."""
    if cells(text) <= width:
        return text
    while text and cells(text) > width - 1:
        text = text[:-1]
    return text + "…"


def wrap(text: str, width: int) -> list[str]:
    """Break at spaces into lines of at most ``width`` columns; words that are longer are broken anywhere."""
    lines: list[str] = []
    current = ""
    for word in text.split():
        for piece in _pieces(word, width):
            longer = f"{current} {piece}" if current else piece
            if cells(longer) <= width:
                current = longer
            else:
                lines.append(current)
                current = piece
    return [*lines, current] if current or not lines else lines


def _pieces(word: str, width: int) -> Iterable[str]:
    start, used = 0, 0
    for index, char in enumerate(word):
        size = cells(char)
        if used + size > width and index > start:
            yield word[start:index]
            start, used = index, 0
        used += size
    yield word[start:]


def size(count: int) -> str:
    """Bytes in decimal units: ``17.0 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.{1 if count < 100 * scale else 0}f} {unit}"
    return f"{count} B"


def count(number: int) -> str:
    """A large number with a unit: ``25.6 M``."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 10 * scale or (number >= scale and unit != "k"):
            return f"{number / scale:.1f} {unit}"
    return f"{number:,}"


def change(before: float, after: float) -> str:
    """Relative change in percent, or an empty text where there is none."""
    if not before or before == after:
        return "" if before == after else "new"
    percent = 100 * (after - before) / before
    return f"{percent:+.1f} %" if abs(percent) < 9.95 else f"{percent:+.0f} %"


def milliseconds(value: float) -> str:
    """Three significant digits: ``21.4 ms``, ``0.0123 ms``."""
    return f"{significant(value, 3)} ms"


def seconds(value: float | None) -> str:
    """A duration: ``0.3 s``, ``2 min 05 s``; empty for ``None``."""
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def decibel(value: float | None) -> str:
    """``20.1 dB``; identical outputs and mismatched NaN in words."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "identical" if value > 0 else "-inf dB"
    return f"{value:.1f} dB"


def significant(value: float, digits: int) -> str:
    """``digits`` significant digits, without an exponent for everyday sizes."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent >= 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def fraction(value: float) -> str:
    """A share as percent, never rounded up to a full 100 %."""
    percent = 100 * value
    if percent < 100 and percent >= 99.95:
        return "> 99.9 %"
    return f"{percent:.1f} %"


def counted(texts: Sequence[str], most: int) -> str:
    """Equal texts counted, the most frequent first: ``9 folded, 2 dropped, 5 others``."""
    tally: dict[str, int] = {}
    for text in texts:
        tally[text] = tally.get(text, 0) + 1
    ordered = sorted(tally.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{number} {text}" for text, number in ordered[:most]]
    rest = sum(number for _, number in ordered[most:])
    return ", ".join([*shown, f"{rest} others"] if rest else shown)


def alike(texts: Sequence[str], most: int) -> str:
    """Sentences that differ in numbers only, told once, the most frequent first, with how many there are.

    Numbers in which they differ become ``…``: ``has … elements, fewer than 1024 (3); the weight is shared (1)``.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for text in texts:
        groups.setdefault(tuple(_NUMBER.split(text)), []).append(text)
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0]))
    shown = [f"{_common(group)} ({len(group)})" for group in ordered[:most]]
    rest = sum(len(group) for group in ordered[most:])
    return "; ".join([*shown, f"other reasons ({rest})"] if rest else shown)


def _common(group: Sequence[str]) -> str:
    """The sentence of all in ``group``; numbers in which they differ as ``…``."""
    numbers = zip(*(_NUMBER.findall(text) for text in group), strict=True)
    kept = [found[0] if len(set(found)) == 1 else "…" for found in numbers]
    words = _NUMBER.split(group[0])
    return "".join(word + number for word, number in zip(words, [*kept, ""], strict=True))
