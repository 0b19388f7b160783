"""Writing a model: all or nothing.

The bytes are staged beside the target, synced, read back and compared, and only then renamed over it; a data file
comes first and carries a hash of its content in its name, so that the model file is the one point of commitment.
While it is written, a staged file is locked: one without a lock was left by a process that was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from graphopt.errors import OutputError
from graphopt.model.parts import Layout, Parts

try:
    import fcntl
except ImportError:  # only POSIX has it; elsewhere two writers are not told apart
    fcntl = None  # type: ignore[assignment]

EXTERNAL_LIMIT = int(1.9 * 2**30)
"""Bytes of weights above which they go to a data file: protobuf ends at 2 GiB."""
_CHUNK = 4 << 20


def checked_target(path: Path, *, overwrite: bool) -> Path:
    """Refuses a target that cannot or must not be written; gives the file to write, behind a link what it points to.

    Raises:
        OutputError: GO-501 or GO-502.
    """
    try:
        path = path.resolve() if path.is_symlink() else path
        why = _why_not(path)
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL; a folder that may not be entered
        why, exists = getattr(error, "strerror", None) or str(error), False
    if why:
        raise OutputError("GO-501", "cannot write the model", where=str(path), why=why)
    if exists and not overwrite:
        raise OutputError("GO-502", "the output exists", where=str(path), hint="pass --overwrite to replace it")
    return path


def _why_not(path: Path) -> str:
    if "\0" in str(path):
        return "the name holds a NUL"
    if path.is_dir():
        return "it is a folder"
    return "" if path.parent.is_dir() else f"there is no folder {path.parent}"


def write(parts: Parts, path: Path) -> None:
    """Writes a model and, where weights are external, one data file beside it.

    Args:
        parts: the model; its stubs are changed in place: they get locations.
        path: where the model goes.

    Raises:
        OutputError: GO-501 if it cannot be written, GO-503 if another process is writing it, GO-504 if it does not
            read back; the old files are untouched then.
    """
    layout = Layout(parts.external)
    old = _own_data_files(path)
    with contextlib.ExitStack() as stack:
        data = None
        if parts.external:
            data = path.with_name(f"{path.name}.{layout.digest()[:16]}.data")
            layout.place(parts.proto, data.name)
        staged = stack.enter_context(_Staged(path))
        if data is not None:
            staged_data = stack.enter_context(_Staged(data))
            staged_data.write(layout.chunks())
        staged.write(parts.chunks())
        if data is not None:
            staged_data.commit()
        try:
            staged.commit()
        except OutputError:
            if data is not None and data not in old:
                data.unlink(missing_ok=True)
            raise
    _remove(old - {data})


def _remove(leftovers: Iterable[Path | None]) -> None:
    """Removes data files that no model refers to any more; the model is in place, so failing here is no failure."""
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            if leftover is not None:
                leftover.unlink(missing_ok=True)


def _own_data_files(path: Path) -> set[Path]:
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    return {p for p in _listed(path.parent) if pattern.fullmatch(p.name)}


def _listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing, where it may be written but not read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


class _Staged:
    """A file that is written beside its target and takes its place in one step, or leaves nothing behind.

    Args:
        target: the file to write.

    Raises:
        OutputError: GO-503 when another process is staging the same target.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
        self._lock: int | None = None
        self._digest = hashlib.sha256()

    def __enter__(self) -> _Staged:
        _clear_stale(self._target)
        with self._os_errors():
            self._lock = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: two writers are not told apart
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)

    def write(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Writes, syncs, and reads back what was written."""
        with self._os_errors(), self._path.open("wb") as file:
            for chunk in chunks:
                self._digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        with self._os_errors():
            self._verify()

    def commit(self) -> None:
        """Puts the file in place, with the permissions of the one it replaces."""
        with self._os_errors():
            if self._target.exists():
                self._path.chmod(stat.S_IMODE(self._target.stat().st_mode))
            self._path.replace(self._target)
        _sync_folder(self._target.parent)

    def _verify(self) -> None:
        found = hashlib.sha256()
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
        if found.digest() != self._digest.digest():
            raise OutputError("GO-504", "the written file does not read back as written", where=str(self._target))

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                "GO-501", "cannot write the model", where=str(self._target), why=error.strerror or str(error)
            ) from None


def _clear_stale(target: Path) -> None:
    """Removes what killed processes left of earlier tries; a staged file that is locked belongs to a live one."""
    if fcntl is None:
        return
    # A data file's name holds a hash of its content: what was left of another content is found by the model's name.
    pattern = re.compile(re.escape(f".{target.name}.") + r"([0-9a-f]{16}\.data\.)?[0-9a-f]{12}\.partial")
    for path in [p for p in _listed(target.parent) if pattern.fullmatch(p.name)]:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            raise OutputError("GO-503", "another process is writing this output", where=str(target)) from None
        except OSError:
            continue
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
