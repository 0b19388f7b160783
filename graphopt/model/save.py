"""Writing a model: all or nothing.

The bytes are staged beside the target, synced, read back and compared, and only then renamed over it; a data file
comes first and carries a hash of its content in its name, so that the model file is the one point of commitment.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx

from graphopt.errors import OutputError
from graphopt.model.weights import Array, raw_bytes, stored_size, stub

EXTERNAL_LIMIT = int(1.9 * 2**30)
"""Bytes of weights above which they go to a data file: protobuf ends at 2 GiB."""
ALIGNMENT = 4096
_CHUNK = 4 << 20


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses a target that cannot or must not be written.

    Raises:
        OutputError: GO-501 or GO-502.
    """
    if path.is_dir():
        raise OutputError("GO-501", "cannot write the model", where=str(path), why="it is a folder")
    if not path.parent.is_dir():
        raise OutputError("GO-501", "cannot write the model", where=str(path), why=f"there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise OutputError("GO-502", "the output exists", where=str(path), hint="pass --overwrite to replace it")


def save_inline(proto: onnx.ModelProto, path: Path) -> None:
    """Writes a model with its weights inside.

    Raises:
        OutputError: GO-501 if it cannot be written, GO-504 if it does not read back; the old file is untouched then.
    """
    data = proto.SerializeToString(deterministic=True)
    with _staged(path) as (staged, commit):
        _write(staged, [data])
        _verify(staged, hashlib.sha256(data).hexdigest())
        commit(staged, path)


def save_external(skeleton: onnx.ModelProto, arrays: dict[str, Array], path: Path) -> None:
    """Writes a model and, beside it, one data file with the weights of ``arrays``, aligned for memory mapping.

    Args:
        skeleton: the model; its initializers named in ``arrays`` are stubs. Changed in place: they get locations.
        arrays: weights by name.
        path: where the model goes.

    Raises:
        OutputError: GO-501 or GO-504; the old files are untouched then.
    """
    digest = hashlib.sha256()
    for chunk in _data_chunks(list(arrays.values())):
        digest.update(chunk)
    name = f"{path.stem}.{digest.hexdigest()[:16]}.data"
    offset = 0
    for tensor in skeleton.graph.initializer:
        if tensor.name in arrays:
            array = arrays[tensor.name]
            notes = (tensor.doc_string, list(tensor.metadata_props))
            tensor.CopyFrom(stub(tensor.name, array, name, offset))
            if notes[0]:
                tensor.doc_string = notes[0]
            tensor.metadata_props.extend(notes[1])
            offset = _aligned(offset + stored_size(array))
    data = skeleton.SerializeToString(deterministic=True)
    old = _own_data_files(path)
    target = path.parent / name
    with _staged(path) as (staged, commit), _staged(target) as (staged_data, commit_data):
        _write(staged_data, _data_chunks(list(arrays.values())))
        _verify(staged_data, digest.hexdigest())
        _write(staged, [data])
        _verify(staged, hashlib.sha256(data).hexdigest())
        commit_data(staged_data, target)
        commit(staged, path)
    for leftover in old - {target}:
        leftover.unlink(missing_ok=True)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _data_chunks(arrays: list[Array]) -> Iterator[bytes | memoryview]:
    for index, array in enumerate(arrays):
        size = stored_size(array)
        view = memoryview(raw_bytes(array)) if size != array.nbytes else memoryview(array.reshape(-1).view("u1").data)
        for start in range(0, size, _CHUNK):
            yield view[start : start + _CHUNK]
        if index < len(arrays) - 1:
            yield bytes(_aligned(size) - size)


def _own_data_files(path: Path) -> set[Path]:
    pattern = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{16}\.data")
    if not path.exists():
        return set()
    return {p for p in path.parent.iterdir() if pattern.fullmatch(p.name)}


class _Commit:
    """Renames staged files and remembers that they are no longer there to clean up."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, staged: Path, target: Path) -> None:
        with contextlib.suppress(OSError):
            staged.chmod(stat.S_IMODE(target.stat().st_mode))
        try:
            staged.replace(target)
        except OSError as error:
            raise _cannot_write(target, error) from None
        self.done = True
        _sync_folder(target.parent)


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[tuple[Path, _Commit]]:
    staged = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    commit = _Commit()
    try:
        yield staged, commit
    except OSError as error:
        raise _cannot_write(target, error) from None
    finally:
        if not commit.done:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)


def _write(path: Path, chunks: Iterator[bytes | memoryview] | list[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _verify(path: Path, expected: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise OutputError("GO-504", "the written file does not read back as it was written", where=str(path))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(target: Path, error: OSError) -> OutputError:
    return OutputError("GO-501", "cannot write the model", where=str(target), why=error.strerror or str(error))
