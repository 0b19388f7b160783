"""One-pass statistics of one tensor's values in fixed memory.

A value's bin is the top bits of its float32 pattern: sign, exponent and the first mantissa bits. Bins are therefore
the same for every tensor and every batch, need no range in advance and never have to grow, so that counts simply add:
the result does not depend on the order of the batches, on how they were cut, nor on which process counted them. The
relative width of a bin is constant, as in DDSketch (Masson, Rim, Lee 2019); NaN and infinity have bins of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from graphopt.model.model import Array

MANTISSA_BITS = 5
"""Mantissa bits of a bin: its relative width is 2**-5, about 3 %."""
_SHIFT = 23 - MANTISSA_BITS
_BINS = 1 << (32 - _SHIFT)
_SIGN = _BINS >> 1
_FINITE = 255 << MANTISSA_BITS


class TensorStatistics:
    """Least and greatest value, counts and, on request, the histogram of everything seen of one tensor.

    Args:
        histogram: keep the 128 KiB histogram that ``quantile`` needs; min-max alone takes a few bytes.
    """

    def __init__(self, *, histogram: bool = False) -> None:
        self.minimum = math.inf
        self.maximum = -math.inf
        self.count = 0
        self.nonfinite = 0
        self._counts: npt.NDArray[np.int64] | None = np.zeros(_BINS, np.int64) if histogram else None

    @property
    def has_histogram(self) -> bool:
        """Whether ``quantile`` can answer."""
        return self._counts is not None

    def update(self, values: Array) -> None:
        """Count the elements of ``values`` (any shape, any real dtype; read as float32)."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return
        self.count += flat.size
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = flat[np.isfinite(flat)]
            self.nonfinite += flat.size - finite.size
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        if self._counts is not None:
            self._counts += np.bincount(flat.view(np.uint32) >> _SHIFT, minlength=_BINS)

    def merge(self, other: TensorStatistics) -> None:
        """Add what ``other`` has seen, as if this one had seen it too.

        Raises:
            ValueError: only one of the two keeps a histogram.
        """
        if self.has_histogram != other.has_histogram:
            raise ValueError("statistics with and without a histogram cannot be merged")
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.count += other.count
        self.nonfinite += other.nonfinite
        if self._counts is not None and other._counts is not None:
            self._counts += other._counts

    def quantile(self, q: float) -> float:
        """The value below which the fraction ``q`` (0 … 1) of the finite elements lies.

        Returns:
            The outer edge of the bin that holds it (the one further from zero), inside [minimum, maximum]: at most
            one bin, 2**-5 relative, beyond the exact order statistic.

        Raises:
            ValueError: no histogram is kept, or no finite value was seen.
        """
        if self._counts is None:
            raise ValueError("no histogram was kept")
        positive = self._counts[:_FINITE]
        negative = self._counts[_SIGN : _SIGN + _FINITE][::-1]
        total = int(positive.sum() + negative.sum())
        if total == 0:
            raise ValueError("no finite value was seen")
        ascending = np.concatenate([negative, positive]).cumsum()
        at = int(np.searchsorted(ascending, max(1, math.ceil(q * total))))
        edge = -_outer_edge(_FINITE - 1 - at) if at < _FINITE else _outer_edge(at - _FINITE)
        return min(max(edge, self.minimum), self.maximum)

    def interval(self, percentile: float = 100.0) -> tuple[float, float]:
        """The interval that holds the middle ``percentile`` per cent of the values; 100: [minimum, maximum]."""
        if percentile >= 100.0:
            return self.minimum, self.maximum
        tail = (1.0 - percentile / 100.0) / 2.0
        return self.quantile(tail), self.quantile(1.0 - tail)


class ChannelStatistics:
    """Least, greatest, mean and mean squared value of each channel of one tensor.

    Args:
        axis: the tensor's channel axis; may be negative.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.count = 0
        self.minimum: npt.NDArray[np.float64] = np.zeros(0)
        self.maximum: npt.NDArray[np.float64] = np.zeros(0)
        self._sum: npt.NDArray[np.float64] = np.zeros(0)
        self._squares: npt.NDArray[np.float64] = np.zeros(0)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """[channels]."""
        return self._sum / max(self.count, 1)

    @property
    def mean_square(self) -> npt.NDArray[np.float64]:
        """[channels], in the square of the tensor's unit."""
        return self._squares / max(self.count, 1)

    def update(self, values: Array) -> None:
        """Take ``values`` in; every call must bring the same number of channels.

        Raises:
            ValueError: it does not.
        """
        if values.size == 0:
            return
        axes = tuple(i for i in range(values.ndim) if i != self.axis % values.ndim)
        part = ChannelStatistics(self.axis)
        part.count = values.size // values.shape[self.axis]
        part.minimum = values.min(axis=axes).astype(np.float64)
        part.maximum = values.max(axis=axes).astype(np.float64)
        part._sum = values.sum(axis=axes, dtype=np.float64)
        # einsum converts in small pieces: a float64 copy of a feature map costs six times as much.
        runs = values.reshape(math.prod(values.shape[: self.axis % values.ndim]), values.shape[self.axis], -1)
        part._squares = np.einsum("acb,acb->c", runs, runs, dtype=np.float64)
        self.merge(part)

    def merge(self, other: ChannelStatistics) -> None:
        """Add what ``other`` has seen.

        Raises:
            ValueError: the two have different numbers of channels.
        """
        if other.count == 0:
            return
        if self.count == 0:
            self.minimum, self.maximum = other.minimum.copy(), other.maximum.copy()
            self._sum, self._squares = other._sum.copy(), other._squares.copy()
        else:
            self.minimum = np.minimum(self.minimum, other.minimum)
            self.maximum = np.maximum(self.maximum, other.maximum)
            self._sum, self._squares = self._sum + other._sum, self._squares + other._squares
        self.count += other.count


def merge_all(parts: Iterable[TensorStatistics]) -> TensorStatistics:
    """One statistic of everything that ``parts`` have seen; they are left as they are.

    Raises:
        ValueError: ``parts`` is empty, or they disagree about keeping a histogram.
    """
    merged: TensorStatistics | None = None
    for part in parts:
        if merged is None:
            merged = TensorStatistics(histogram=part.has_histogram)
        merged.merge(part)
    if merged is None:
        raise ValueError("nothing to merge")
    return merged


def _outer_edge(bin_index: int) -> float:
    """The magnitude at which the bin ``bin_index`` of non-negative values ends; bin 0 holds zero and denormals."""
    if bin_index == 0:
        return 0.0
    return float(np.uint32((bin_index + 1) << _SHIFT).view(np.float32))
