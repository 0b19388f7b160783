"""Where long work reports how far it is; the command line draws a bar, everyone else sees nothing."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


class Progress(abc.ABC):
    """Receives the progress of long loops."""

    @abc.abstractmethod
    def track(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterable[T]:
        """Yield ``items`` one by one, reporting each as done.

        Args:
            items: what the loop runs over.
            label: what is being done, e.g. ``calibrating``.
            total: how many there are; ``None``: unknown.
        """


class Silent(Progress):
    """Reports nothing."""

    def track(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterable[T]:
        """Yield ``items``."""
        return items
