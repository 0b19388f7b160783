"""The question that every unknown word is answered with, where a known one is near."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], *, most: int = 1) -> str:
    """``did you mean 'fuse'?``; empty where nothing is near.

    Args:
        word: what was given.
        known: what could have been.
        most: so many are named, the nearest first.
    """
    near = difflib.get_close_matches(word, list(known), n=most)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
