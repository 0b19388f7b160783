"""Replaced weights: kept in memory up to a limit, beyond it in files that are mapped.

The files lie in a folder beneath the system's temporary folder (``TMPDIR`` says where). Each goes with the array that
reads it, the folder with the last of them. A process that is killed leaves its folder behind; the next one removes it:
a folder whose lock nobody holds has no owner.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphopt.errors import LimitError
from graphopt.model.arrays import Array, bytes_of, frozen
from graphopt.model.mapping import Place, map_file, place_of

try:
    import fcntl
    import resource
except ImportError:  # only POSIX has them; elsewhere folders of killed processes stay, and processes have no limits
    fcntl = resource = None  # type: ignore[assignment]

MAX_MEMORY = 1 << 30
"""Most bytes of replaced weights that stay in memory where nobody says otherwise."""
_SHARE = 4
"""Of what the process may take (``--max-memory``), replaced weights get one part in so many."""
SMALL = 1 << 16
"""Bytes below which an array stays in memory whatever the limit: a file of its own would cost as much."""
_PREFIX = "graphopt-weights-"
_TRIES = 8
"""New folders that other processes may remove before this is no chance any more."""


class WeightStore:
    """Holds the arrays that replace weights; one for a model and all its clones.

    Args:
        max_memory: bytes of arrays to keep in memory; what comes beyond it goes to files. Default: 1 GiB, and at most
            a quarter of what the process may take.
    """

    def __init__(self, max_memory: int | None = None) -> None:
        self.max_memory = _share_of_limit() if max_memory is None else max_memory
        self._held = _Tally()
        self._staged: dict[int, Array] = {}
        self._folder: _Folder | None = None

    @property
    def held(self) -> int:
        """Bytes in memory that count towards the limit."""
        return self._held.total

    def keep(self, value: npt.ArrayLike) -> Array:
        """``value`` as a read-only array, in memory or in a mapped file.

        Raises:
            LimitError: GO-701, the limit is reached and the temporary file cannot be written.
        """
        array = frozen(value)
        if not _movable(array) or id(array) in self._held or place_of(array) is not None:
            return array
        if self.held + array.nbytes > self.max_memory:
            return self._filed(array)
        self._held.add(array)
        return array

    def placed(self, array: Array) -> Place | None:
        """A place in a file where another reader of the file finds ``array``, aligned to its elements.

        An array without such a place is copied to a file, once for as long as it lives; ``None`` for a small one, one
        of strings, and where no file can be written.
        """
        place = place_of(array)
        if place is not None and place.offset % array.dtype.itemsize == 0 and place.is_current:
            return place
        if not _movable(array):
            return None
        if id(array) not in self._staged:
            try:
                self._staged[id(array)] = self._filed(array)
            except LimitError:
                return None
            _when_gone(array, self._staged.pop)
        return place_of(self._staged[id(array)])

    def _filed(self, array: Array) -> Array:
        if self._folder is None:
            self._folder = _Folder()
        return self._folder.take(array)


def _share_of_limit() -> int:
    limit = -1 if resource is None else resource.getrlimit(resource.RLIMIT_DATA)[0]
    return MAX_MEMORY if limit < 0 else min(MAX_MEMORY, limit // _SHARE)


def _movable(array: Array) -> bool:
    return array.nbytes >= SMALL and array.dtype != object


class _Tally:
    """What arrays take together that are still in use, counted as they come and go."""

    def __init__(self) -> None:
        self.total = 0
        self._sizes: dict[int, int] = {}

    def __contains__(self, key: int) -> bool:
        return key in self._sizes

    def add(self, array: Array) -> None:
        """Counts ``array`` for as long as somebody has it."""
        self._sizes[id(array)] = array.nbytes
        self.total += array.nbytes
        _when_gone(array, self._drop)

    def _drop(self, key: int) -> None:
        self.total -= self._sizes.pop(key)


def _when_gone(array: Array, forget: Callable[[int], object]) -> None:
    """Forgets an array that nobody has any more; its ``id`` may belong to another one then."""
    weakref.finalize(array, forget, id(array)).atexit = False


class _Folder:
    """A temporary folder of files, one an array; removed when neither a store nor an array refers to it any more."""

    def __init__(self) -> None:
        _remove_stale()
        with _writing():
            self.path, lock = _locked_folder()
        weakref.finalize(self, _remove, self.path, lock, os.getpid())
        self._count = 0

    def take(self, array: Array) -> Array:
        """A copy of ``array`` in a mapped file."""
        self._count += 1
        path = self.path / str(self._count)
        with _writing():
            try:
                with path.open("xb") as file:
                    file.write(bytes_of(array))
                with path.open("rb") as file:
                    mapped = map_file(file.fileno(), path)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        if mapped is None:
            return array
        # The folder lives as long as one of its files is mapped: the callback refers to it.
        weakref.finalize(mapped, _unlink, path, os.getpid(), self).atexit = False
        return np.frombuffer(memoryview(mapped), array.dtype).reshape(array.shape)


def _locked_folder() -> tuple[Path, int]:
    """A new temporary folder, and the descriptor that holds its lock.

    Another process may take it for a stale one before it is locked: it is left to that process then.
    """
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(path / "lock", os.O_CREAT | os.O_WRONLY)
        if _holds(lock, path / "lock"):
            return path, lock
        os.close(lock)
    raise OSError(f"other processes removed {_TRIES} new folders")


def _holds(lock: int, path: Path) -> bool:
    """Locks a file, and says whether it is ours and still the one at ``path``."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody else can hold one either
        return True
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LimitError(
            "GO-701",
            "--max-memory is reached, and the temporary file for more weights cannot be written",
            where=tempfile.gettempdir(),
            why=error.strerror or str(error),
            hint="make room there, point TMPDIR elsewhere, or raise --max-memory",
        ) from None


def _unlink(path: Path, owner: int, _folder: _Folder) -> None:
    if os.getpid() == owner:  # a forked child lets go of its arrays too
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _remove(path: Path, lock: int, owner: int) -> None:
    with contextlib.suppress(OSError):
        os.close(lock)
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)


def _remove_stale() -> None:
    """Removes the folders that killed processes left."""
    if fcntl is None:
        return
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # not ours, or just being made or removed
            lock = os.open(path / "lock", os.O_WRONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
