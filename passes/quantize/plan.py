"""What is to be made integer, as frozen data: the choosing and the writing meet here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LEVELS = 255
"""Steps of an unsigned 8-bit grid."""


@dataclass(frozen=True)
class Interval:
    """The values of one tensor that its grid has to cover.

    Attributes:
        low: least value, in the tensor's unit.
        high: greatest value.
    """

    low: float
    high: float

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Grid:
    """An 8-bit unsigned affine grid: ``value = scale · (code - zero)``.

    Attributes:
        scale: width of a step, > 0, exactly representable as float32.
        zero: code of the value 0, in 0 … 255.
    """

    scale: float
    zero: int

    @staticmethod
    def covering(interval: Interval) -> Grid:
        """The finest grid that covers ``interval`` and holds 0 exactly.

        Raises:
            ValueError: the interval holds nothing but 0, or a bound is not finite.
        """
        low, high = min(interval.low, 0.0), max(interval.high, 0.0)
        scale = np.float32((high - low) / LEVELS)
        if not np.isfinite(scale) or scale <= 0:
            raise ValueError(f"no grid covers [{low}, {high}]")
        return Grid(float(scale), int(np.clip(np.rint(-low / float(scale)), 0, LEVELS)))

    def clipping(self, low: float, high: float) -> Grid:
        """This grid, made finer until its ends do the work of ``Clip(low, high)``.

        onnxruntime swallows a Clip before a QuantizeLinear when the grid alone already clips as much:
        ``rint(low / scale) + zero ≤ 0`` and ``rint(high / scale) + zero ≥ 255``, in float32. A Relu is
        ``Clip(0, inf)``.

        Args:
            low: lower bound, ≤ 0; ``-inf``: none.
            high: upper bound, ≥ 0; ``inf``: none.
        """
        zero = 0 if low == 0 else self.zero
        scale = np.float32(self.scale)
        for bound, span in ((high, LEVELS - zero), (-low, zero)):
            if np.isfinite(bound) and span and np.rint(np.float32(bound) / scale) < span:
                scale = np.float32(bound / span)
        return Grid(float(scale), zero)

    def stretched(self, factor: float) -> Grid:
        """The grid of ``factor`` times the tensor: same codes, another scale. ``factor`` > 0."""
        return Grid(float(np.float32(self.scale * factor)), self.zero)


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """A weight in integers, per output channel symmetric.

    Attributes:
        codes: int8, the weight's shape.
        scales: float32 [channels], > 0.
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """A placement: which units compute in integers, and what range each tensor has.

    Attributes:
        integer: names of the units that become integer.
        ranges: tensor name → the interval that its grid covers.
        limit_pairs: keep weights small enough for kernels that saturate (see ``isa``).
        channel_high: tensor name → greatest value of each of its channels, for ``limit_pairs``.
        channel_mean: tensor name → mean of each of its channels; with it, biases make up for the mean error of their
            weights' rounding.
        smoothing: tensor name → what linear layers divide each of its channels by. The quotient that they read has its
            range, channel_high and channel_mean under its ``smoothed_name``.
        weights: unit name → its weight in integers, where that is not rounding to the nearest.
    """

    integer: frozenset[str]
    ranges: Mapping[str, Interval] = field(default_factory=dict)
    limit_pairs: bool = False
    channel_high: Mapping[str, Sequence[float]] = field(default_factory=dict)
    channel_mean: Mapping[str, Sequence[float]] = field(default_factory=dict)
    smoothing: Mapping[str, Sequence[float]] = field(default_factory=dict)
    weights: Mapping[str, RoundedWeight] = field(default_factory=dict)


def smoothed_name(tensor: str) -> str:
    """What a plan calls a tensor divided by its smoothing factors; the model may have another name for it."""
    return f"{tensor}/smoothed"
