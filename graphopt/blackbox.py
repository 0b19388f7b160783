"""What this process is at, written where another process can read it: its last word, should it die.

Native code that crashes raises no exception. A process that watches this one sees the signal, and here what it was at.
Where that is a part of the work that can be left out, the other may have the work done over without it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from contextlib import ContextDecorator
from types import MappingProxyType
from typing import Any, ClassVar

from graphopt.errors import GraphoptError

_HEAD = struct.Struct("=?id?HH")
_SIZE = 2048
_NOTHING: Mapping[int, GraphoptError] = MappingProxyType({})


class BlackBox:
    """A page of memory that stays shared over a fork.

    One process writes, another reads; what is read counts once the writer has ended.

    Args:
        fallen: what earlier processes, at the same work, died of: the number of the part that they were at → error.
    """

    def __init__(self, fallen: Mapping[int, GraphoptError] = _NOTHING) -> None:
        self.fallen = fallen
        self._memory = mmap.mmap(-1, _SIZE)
        self._code: int | None = None
        self._end = 0.0
        self._settled = False
        self._trail: list[tuple[str, int]] = []

    def enter(self, what: str, part: int = 0) -> None:
        """Begin something; ``part``: the number that it can be left out by, 0: it cannot."""
        self._trail.append((what, part))
        self._write()

    def leave(self) -> None:
        """End what was begun last."""
        self._trail.pop()
        self._write()

    def expect_end(self, when: float) -> None:
        """Say that this process should have ended by ``when``, in seconds of ``time.monotonic``; 0: no limit."""
        self._end = when
        self._write()

    def settle(self) -> None:
        """Say that the work has a result, which may be used at once: from here on it is not to be done over."""
        self._settled, self.fallen = True, _NOTHING
        self._write()

    def finish(self, code: int) -> None:
        """Say that all work is done, and what the exit code will be."""
        self._code = code
        self._write()

    @property
    def doing(self) -> str:
        """What the writer was at, the outermost first; empty: nothing that says so."""
        length = _HEAD.unpack_from(self._memory)[5]
        return self._memory[_HEAD.size : _HEAD.size + length].decode(errors="replace")

    @property
    def part(self) -> int:
        """The number of the part that the writer was at; 0: none that can be left out."""
        return int(_HEAD.unpack_from(self._memory)[4])

    @property
    def settled(self) -> bool:
        """Whether the work has a result."""
        return bool(_HEAD.unpack_from(self._memory)[3])

    @property
    def exit_code(self) -> int | None:
        """The exit code that the writer announced; ``None``: it had not finished."""
        finished, code, *_ = _HEAD.unpack_from(self._memory)
        return int(code) if finished else None

    @property
    def end(self) -> float:
        """When the writer should have ended, in seconds of ``time.monotonic``; 0: no limit."""
        return float(_HEAD.unpack_from(self._memory)[2])

    def _write(self) -> None:
        text = ", ".join(what for what, _ in self._trail).encode(errors="replace")[: _SIZE - _HEAD.size]
        part = next((part for _, part in self._trail if part), 0)
        finished, code = self._code is not None, self._code or 0
        _HEAD.pack_into(self._memory, 0, finished, code, self._end, self._settled, part, len(text))
        self._memory[_HEAD.size : _HEAD.size + len(text)] = text


class doing(ContextDecorator):  # noqa: N801 - reads as a word, with or without `with`
    """Says what is being done while a block or a function runs.

    Args:
        what: a few words that fit after a comma, e.g. ``opening the model``.
        part: the number, from 1, that this can be left out by when all is done over; 0: it cannot be.

    Class attributes:
        box: where it is written; ``None``: nowhere.
    """

    box: ClassVar[BlackBox | None] = None

    def __init__(self, what: str, part: int = 0) -> None:
        self._what = what
        self._part = part
        self._box: BlackBox | None = None

    def _recreate_cm(self) -> doing:
        return doing(self._what, self._part)

    def __enter__(self) -> doing:
        self._box = doing.box
        if self._box is not None:
            self._box.enter(self._what, self._part)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._box is not None:
            self._box.leave()


def fallen(part: int) -> GraphoptError | None:
    """What an earlier process, at the same work, died of in this part of it; ``None``: it did not."""
    return None if doing.box is None else doing.box.fallen.get(part)


def settle() -> None:
    """Say that the work has a result, which may be used at once; see ``BlackBox.settle``."""
    if doing.box is not None:
        doing.box.settle()
