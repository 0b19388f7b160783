"""Second moments of what a linear layer sees, gathered in fixed memory.

One Gram matrix of a layer's input serves several methods: choosing which inputs can go (optimal brain surgeon,
Hassibi & Stork 1993; in blocks: Frantar & Alistarh 2022), and refitting the weights of those that stay (He et al.
2017). Positions of a feature map are subsampled: neighbouring patches say nearly the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]

CHUNK = 2048
"""Rows multiplied at once: one row at a time, the sum over a wide Gram matrix would cost more than the products."""


@dataclass(frozen=True)
class Window:
    """A convolution's sliding window; every entry is one number a spatial axis.

    Attributes:
        kernel: kernel sizes.
        strides: steps.
        dilations: gaps between kernel entries.
        pads: zeros before the first entry.
        pads_end: zeros after the last entry.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    pads_end: tuple[int, ...]

    def patches(self, x: Array, positions: Sequence[npt.NDArray[np.int64]]) -> Array:
        """The inputs of chosen output positions.

        Args:
            x: [N, C, *spatial], float32.
            positions: one int64 [P] a spatial axis: output coordinates of P positions.

        Returns:
            [N·P, C·prod(kernel)], columns in the order of a weight [M, C, *kernel] reshaped to [M, -1].
        """
        margins = [(0, 0), (0, 0), *zip(self.pads, self.pads_end, strict=True)]
        wide = np.pad(x, margins) if any(self.pads + self.pads_end) else x
        taps = np.array(list(itertools.product(*(range(k) for k in self.kernel))), np.int64)
        index = [
            positions[d][:, None] * self.strides[d] + taps[None, :, d] * self.dilations[d]
            for d in range(len(self.kernel))
        ]
        where: tuple[Any, ...] = (slice(None), slice(None), *index)
        picked: Array = wide[where]  # [N, C, P, K]
        n, channels, count, size = picked.shape
        return picked.transpose(0, 2, 1, 3).reshape(n * count, channels * size)


def sample_positions(spatial: Sequence[int], limit: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Up to ``limit`` distinct output positions of a feature map; all of them where there are no more.

    Args:
        spatial: sizes of the spatial axes.
        limit: positions wanted, ≥ 1.
        rng: source of the draw.

    Returns:
        One int64 [P] a spatial axis.
    """
    count = math.prod(spatial)
    flat = np.arange(count) if count <= limit else np.sort(rng.choice(count, limit, replace=False))
    return [np.asarray(axis, np.int64) for axis in np.unravel_index(flat, tuple(spatial))]


class Moments:
    """First and second moments of rows (x, t), added up chunk by chunk.

    Rows are collected until a product pays; products are taken in float32 and summed in float64.

    Args:
        inputs: columns of x.
        targets: columns of t; 0 where only x matters.

    Attributes:
        rows: rows added.
        sum_x: Σ x, [inputs].
        sum_t: Σ t, [targets].
        square: Σ t², [targets].
    """

    def __init__(self, inputs: int, targets: int = 0) -> None:
        self.rows = 0
        self.sum_x: Matrix = np.zeros(inputs)
        self.sum_t: Matrix = np.zeros(targets)
        self.square: Matrix = np.zeros(targets)
        self._gram: Matrix = np.zeros((inputs, inputs))
        self._cross: Matrix = np.zeros((inputs, targets))
        self._waiting: list[tuple[Array, Array]] = []
        self._count = 0

    @property
    def gram(self) -> Matrix:
        """Σ x·xᵀ, [inputs, inputs]."""
        self._multiply()
        return self._gram

    @property
    def cross(self) -> Matrix:
        """Σ x·tᵀ, [inputs, targets]."""
        self._multiply()
        return self._cross

    def add(self, x: Array, t: Array | None = None) -> None:
        """Add rows.

        Args:
            x: [rows, inputs], float32.
            t: [rows, targets], float32; needed where there are targets.
        """
        goal = np.zeros((len(x), 0), np.float32) if t is None else t
        self._waiting.append((x, goal))
        self._count += len(x)
        if self._count >= CHUNK:
            self._multiply()
        self.rows += len(x)
        self.sum_x += x.sum(0, dtype=np.float64)
        self.sum_t += goal.sum(0, dtype=np.float64)
        self.square += np.square(goal, dtype=np.float64).sum(0)

    def _multiply(self) -> None:
        if not self._waiting:
            return
        x = np.concatenate([rows for rows, _ in self._waiting])
        t = np.concatenate([goal for _, goal in self._waiting])
        self._waiting.clear()
        self._count = 0
        self._gram += x.T @ x
        self._cross += x.T @ t

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows."""
        both = Moments(len(self.sum_x), len(self.sum_t))
        both.rows = self.rows + other.rows
        both.sum_x, both.sum_t = self.sum_x + other.sum_x, self.sum_t + other.sum_t
        both.square = self.square + other.square
        both._gram, both._cross = self.gram + other.gram, self.cross + other.cross
        return both

    def select(self, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> Moments:
        """The moments of some columns only."""
        part = Moments(0)
        part.rows = self.rows
        part.sum_x, part.sum_t = self.sum_x[inputs], self.sum_t[targets]
        part._gram = self.gram[np.ix_(inputs, inputs)]
        part._cross = self.cross[np.ix_(inputs, targets)]
        part.square = self.square[targets]
        return part

    def variance(self) -> float:
        """Σ ‖t − t̄‖² over all rows."""
        return float((self.square - np.square(self.sum_t) / max(self.rows, 1)).sum())

    def covariance(self) -> Matrix:
        """Σ (x − x̄)(x − x̄)ᵀ, [inputs, inputs]: sums, not means."""
        return self.gram - np.outer(self.sum_x, self.sum_x) / max(self.rows, 1)

    def cross_covariance(self) -> Matrix:
        """Σ (x − x̄)(t − t̄)ᵀ, [inputs, targets]."""
        return self.cross - np.outer(self.sum_x, self.sum_t) / max(self.rows, 1)

    def mean_x(self) -> Matrix:
        """Mean of x, [inputs]."""
        return self.sum_x / max(self.rows, 1)

    def mean_t(self) -> Matrix:
        """Mean of t, [targets]."""
        return self.sum_t / max(self.rows, 1)

    def error(self, weight: Matrix, bias: Matrix) -> float:
        """Σ ‖x·weight + bias − t‖² over all rows, computed from the moments alone.

        Args:
            weight: [inputs, targets].
            bias: [targets].
        """
        quadratic = np.einsum("io,io->", weight, self.gram @ weight)
        linear = -2 * np.einsum("io,io->", weight, self.cross)
        offset = 2 * bias @ (self.sum_x @ weight) - 2 * bias @ self.sum_t + self.rows * bias @ bias
        return float(quadratic + linear + offset + self.square.sum())
