"""What this process is at, written where another process can read it: its last word, should it die.

Native code that crashes raises no exception. A process that watches this one sees the signal, and here what it was at.
"""

from __future__ import annotations

import mmap
import struct
from contextlib import ContextDecorator
from typing import Any, ClassVar

_HEAD = struct.Struct("=?idH")
_SIZE = 2048


class BlackBox:
    """A page of memory that stays shared over a fork.

    One process writes, another reads; what is read counts once the writer has ended.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        self._head: tuple[bool, int, float] = (False, 0, 0.0)
        self._trail: list[str] = []

    def enter(self, what: str) -> None:
        """Begin something."""
        self._trail.append(what)
        self._write()

    def leave(self) -> None:
        """End what was begun last."""
        self._trail.pop()
        self._write()

    def expect_end(self, when: float) -> None:
        """Say that this process should have ended by ``when``, in seconds of ``time.monotonic``; 0: no limit."""
        self._head = (*self._head[:2], when)
        self._write()

    def finish(self, code: int) -> None:
        """Say that all work is done, and what the exit code will be."""
        self._head = (True, code, self._head[2])
        self._write()

    @property
    def doing(self) -> str:
        """What the writer was at, the outermost first; empty: nothing that says so."""
        length = _HEAD.unpack_from(self._memory)[3]
        return self._memory[_HEAD.size : _HEAD.size + length].decode(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """The exit code that the writer announced; ``None``: it had not finished."""
        finished, code, _, _ = _HEAD.unpack_from(self._memory)
        return int(code) if finished else None

    @property
    def end(self) -> float:
        """When the writer should have ended, in seconds of ``time.monotonic``; 0: no limit."""
        return float(_HEAD.unpack_from(self._memory)[2])

    def _write(self) -> None:
        text = ", ".join(self._trail).encode(errors="replace")[: _SIZE - _HEAD.size]
        _HEAD.pack_into(self._memory, 0, *self._head, len(text))
        self._memory[_HEAD.size : _HEAD.size + len(text)] = text


class doing(ContextDecorator):  # noqa: N801 - reads as a word, with or without `with`
    """Says what is being done while a block or a function runs.

    Args:
        what: a few words that fit after a comma, e.g. ``opening the model``.

    Class attributes:
        box: where it is written; ``None``: nowhere.
    """

    box: ClassVar[BlackBox | None] = None

    def __init__(self, what: str) -> None:
        self._what = what
        self._box: BlackBox | None = None

    def _recreate_cm(self) -> doing:
        return doing(self._what)

    def __enter__(self) -> doing:
        self._box = doing.box
        if self._box is not None:
            self._box.enter(self._what)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._box is not None:
            self._box.leave()
