"""The smallest of very many scores, found without sorting or gathering them.

Radix selection: the bits of a float that is not negative, read as an integer, order as the float does. Each pass counts
16 bits of the scores whose higher bits are settled (Hoare's selection, 1961, on digits), so that memory does not grow
with their number, and the scores may lie in mapped files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CHUNK = 1 << 20
"""Elements looked at in one go."""
_DIGIT = 16


def in_chunks(array: Array) -> Iterator[Array]:
    """The elements of a contiguous array in order, as views of at most ``CHUNK`` of them."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK]


class Smallest:
    """Which of many scores are the smallest; of equal ones the earlier.

    Equals the first of a stable sort, in linear time.

    Args:
        chunks: gives the scores in pieces, floats of type ``dtype``, each at least +0 and no NaN; the same at each
            call.
        dtype: float16, float32 or float64.
        count: how many, 0 ≤ count ≤ number of scores.
    """

    def __init__(self, chunks: Callable[[], Iterable[Array]], dtype: npt.DTypeLike, count: int) -> None:
        self._dtype = np.dtype(dtype)
        self._threshold: Array | None = None
        self._ties = 0
        if count > 0:
            self._threshold, self._ties = self._search(chunks, count)

    def take(self, chunk: Array) -> Array:
        """Which scores of the next piece are among the smallest; pieces come in the order of ``chunks``.

        Returns:
            bool of the shape of ``chunk``.
        """
        if self._threshold is None:
            return np.zeros(chunk.shape, bool)
        mask: Array = chunk < self._threshold
        if self._ties:
            ties = np.flatnonzero(chunk == self._threshold)[: self._ties]
            mask.reshape(-1)[ties] = True
            self._ties -= ties.size
        return mask

    def _search(self, chunks: Callable[[], Iterable[Array]], count: int) -> tuple[Array, int]:
        """The largest of the smallest scores, and how many equal to it are among them."""
        unsigned = np.dtype(f"u{self._dtype.itemsize}").type
        prefix, left = 0, count
        for shift in range(8 * self._dtype.itemsize - _DIGIT, -1, -_DIGIT):
            seen = np.zeros(1 << _DIGIT, np.int64)
            for chunk in chunks():
                keys = chunk.reshape(-1).view(unsigned) >> unsigned(shift)
                if shift + _DIGIT < 8 * self._dtype.itemsize:
                    keys = keys[keys >> unsigned(_DIGIT) == unsigned(prefix)]
                seen += np.bincount(keys & unsigned((1 << _DIGIT) - 1), minlength=1 << _DIGIT)
            sums = np.cumsum(seen)
            digit = int(np.searchsorted(sums, left))
            left -= int(sums[digit]) - int(seen[digit])
            prefix = prefix << _DIGIT | digit
        return np.array(prefix, unsigned).view(self._dtype), left
