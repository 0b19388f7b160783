"""Files mapped read-only into memory, and where in which file the bytes of an array lie."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.model.arrays import Array


class FileMap(mmap.mmap):
    """A whole file, mapped read-only. Made by ``map_file``.

    Attributes:
        path: the file; by now it may be another one.
        stamp: what tells that file from another of its name.
        address: where in memory it begins.
    """

    path: Path
    stamp: tuple[int, ...]
    address: int


@dataclass(frozen=True)
class Place:
    """A range of a mapped file.

    Attributes:
        map: the file.
        offset: first byte.
        length: bytes.
    """

    map: FileMap
    offset: int
    length: int

    @property
    def is_current(self) -> bool:
        """Whether the path still leads to the file that was mapped, and nobody wrote to it since."""
        try:
            return _stamp(self.map.path.stat()) == self.map.stamp
        except OSError:
            return False


def map_file(descriptor: int, path: Path) -> FileMap | None:
    """Maps the file behind ``descriptor``, which may be closed afterwards; ``None`` for an empty one.

    Raises:
        OSError: it cannot be mapped.
    """
    status = os.fstat(descriptor)
    if status.st_size == 0:
        return None
    found = FileMap(descriptor, 0, access=mmap.ACCESS_READ)
    found.path, found.stamp = path, _stamp(status)
    found.address = _address(np.frombuffer(found, np.uint8))
    return found


def place_of(array: Array) -> Place | None:
    """Where in a mapped file the bytes of ``array`` lie; ``None``: nowhere, or not in one piece."""
    owner: object = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, FileMap) or not array.flags.c_contiguous:
        return None
    return Place(owner, _address(array) - owner.address, array.nbytes)


def _address(array: Array) -> int:
    return int(array.ctypes.data)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
