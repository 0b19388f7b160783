"""Arrays as weights: read-only, and what their values take on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from graphopt.model import dtypes

Array = npt.NDArray[Any]


def frozen(value: npt.ArrayLike) -> Array:
    """``value`` as a C-contiguous array that nobody can write to.

    An array that owns its memory is frozen in place, not copied: an edit through the caller's own name raises too.
    A view of writable memory is copied.
    """
    array = np.asarray(value)
    if not array.flags.c_contiguous:
        array = np.array(array, order="C")
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
        if owner.flags.writeable:
            array = np.array(array, order="C")
            break
    if array.flags.writeable:
        array.setflags(write=False)
    return array


def stored_size(array: Array) -> int:
    """Bytes the values take on disk: sub-byte types are packed; strings count their UTF-8 bytes."""
    if array.dtype == object:
        return sum(len(s if isinstance(s, bytes) else str(s).encode()) for s in array.ravel())
    size = dtypes.raw_size(dtypes.onnx_of(array.dtype), array.size)
    return array.nbytes if size is None else size


def bytes_of(array: Array) -> memoryview:
    """The bytes of an array as they lie in memory, without a copy of a contiguous one."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def stored_bytes(array: Array) -> bytes | memoryview:
    """The array as ONNX raw data: little-endian, sub-byte types packed; a view where nothing has to be packed."""
    if (dtypes.bits_of(dtypes.onnx_of(array.dtype)) or 8) < 8:
        packed: bytes = numpy_helper.from_array(array).raw_data
        return packed
    return bytes_of(array)
