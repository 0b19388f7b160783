"""Progress bars on a terminal; silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sized
from typing import TypeVar

from graphopt.progress import Progress, Silent
from graphopt.report.text import takes_escapes

T = TypeVar("T")


class Bars(Progress):
    """Draws each loop on stderr with rich; bars of nested loops stand below each other and go when they are done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Display

        self._display = Display(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._depth = 0

    def track(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterable[T]:
        """Yield ``items``, drawing a bar."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if self._depth == 0:
            self._display.start()
        self._depth += 1
        task = self._display.add_task(label, total=total)
        try:
            for item in items:
                yield item
                self._display.advance(task)
        finally:
            self._display.remove_task(task)
            self._depth -= 1
            if self._depth == 0:
                self._display.stop()


def make_progress(quiet: bool) -> Progress:
    """Bars where stderr is a terminal that takes escape sequences, and the user did not ask for quiet."""
    return Bars() if takes_escapes(sys.stderr) and not quiet else Silent()
