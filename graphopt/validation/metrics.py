"""How far two sets of outputs lie apart, in fixed memory.

Each accumulator takes one sample at a time and keeps a handful of sums: the figures of a thousand samples
cost no more memory than those of one. All sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_LABEL_MAX_RANK = 3
"""Above it the last axis is a picture's width, not classes: an argmax over it tells nothing."""


def is_float(array: Array) -> bool:
    """Whether the elements are compared as numbers (float16/32/64, bfloat16, fp8) instead of by equality."""
    if array.dtype.kind in "fc":
        return True
    # ml_dtypes' extension types have kind "V"; all of them but the integers are floating point.
    return array.dtype.kind == "V" and "int" not in array.dtype.name


def as_array(value: object) -> Array:
    """One output of onnxruntime as one array, whatever its type.

    Args:
        value: a tensor (array), a sequence (list of arrays), a sequence of maps (list of dicts of numbers,
            as the classifiers of ai.onnx.ml return), or ``None`` for an absent optional.

    Returns:
        The array itself; a sequence's elements, flattened and joined; the maps' values in key order.
    """
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        return np.empty(0, np.float32)
    if isinstance(value, Mapping):
        return np.asarray([value[key] for key in sorted(value)])
    if isinstance(value, list):
        parts = [as_array(item).ravel() for item in value]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)
    return np.asarray(value)


def decibel(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` in dB; ``inf`` without noise, ``-inf`` for noise over a zero signal.

    Args:
        signal: energy of the reference, ≥ 0.
        noise: energy of the difference, ≥ 0.
    """
    if noise == 0.0:
        return math.inf
    if signal == 0.0:
        return -math.inf
    return 10.0 * (math.log10(signal) - math.log10(noise))


def sqnr_db(reference: Array, output: Array) -> float:
    """Signal to quantization noise ratio of one pair of arrays, in dB.

    Args:
        reference: any shape, floating point.
        output: same shape.

    Returns:
        ``10 log10(Σ ref² / Σ (ref - out)²)``; ``inf`` for identical arrays, ``-inf`` where NaN or infinity
        do not match, the shapes differ, or the reference is zero and the output is not.
    """
    one = FloatAccumulator()
    one.update(reference, output)
    return one.sqnr_db


@dataclass
class FloatAccumulator:
    """Figures of one floating-point output over many samples.

    Positions where the reference is not finite must hold the same value in the output; they and the
    positions where only the output is not finite are left out of the sums and counted in ``nan_mismatch``
    when they differ.
    """

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    cross: float = 0.0
    max_abs: float = 0.0
    max_ref: float = 0.0
    nan_mismatch: int = 0
    shape_mismatch: int = 0
    samples: int = 0
    worst_sqnr_db: float = math.inf
    worst_cosine: float = 1.0
    worst_sample: int | None = None
    labels_equal: int = 0
    labels_seen: int = 0
    elements: int = 0
    finite_elements: int = 0

    def update(self, reference: Array, output: Array) -> None:
        """Take one sample.

        Args:
            reference: any shape, floating point.
            output: should have the same shape; another one counts as infinite noise.
        """
        index = self.samples
        self.samples += 1
        if reference.shape != output.shape:
            self.shape_mismatch += 1
            self._note_worst(index, -math.inf, -1.0)
            return
        ref = reference.astype(np.float64, copy=False)
        out = output.astype(np.float64, copy=False)
        self._count_labels(ref, out)
        self.elements += ref.size
        self.finite_elements += int(np.count_nonzero(np.isfinite(ref)))
        finite = np.isfinite(ref) & np.isfinite(out)
        mismatch = 0
        if not finite.all():
            same = (ref == out) | (np.isnan(ref) & np.isnan(out))
            mismatch = int(np.count_nonzero(~same & ~finite))
            ref, out = ref[finite], out[finite]
        self.nan_mismatch += mismatch
        self._add(index, ref.ravel(), out.ravel(), mismatch)

    def _add(self, index: int, ref: Array, out: Array, mismatch: int) -> None:
        delta = ref - out
        signal, noise = float(ref @ ref), float(delta @ delta)
        other, cross = float(out @ out), float(ref @ out)
        self.signal += signal
        self.noise += noise
        self.other += other
        self.cross += cross
        if ref.size:
            self.max_abs = max(self.max_abs, float(np.abs(delta).max()))
            self.max_ref = max(self.max_ref, float(np.abs(ref).max()))
        worst = -math.inf if mismatch else decibel(signal, noise)
        self._note_worst(index, worst, _cosine(cross, signal, other))

    def _note_worst(self, index: int, sqnr: float, cosine: float) -> None:
        if self.worst_sample is None or sqnr < self.worst_sqnr_db:
            self.worst_sqnr_db = sqnr
            self.worst_sample = index
        self.worst_cosine = min(self.worst_cosine, cosine)

    def _count_labels(self, ref: Array, out: Array) -> None:
        if not 1 <= ref.ndim <= _LABEL_MAX_RANK or ref.shape[-1] < 2:
            return
        same = np.argmax(ref, axis=-1) == np.argmax(out, axis=-1)
        self.labels_equal += int(np.count_nonzero(same))
        self.labels_seen += int(np.size(same))

    @property
    def finite_share(self) -> float:
        """Share of the reference's elements that are finite, in [0, 1]; 0 of none, 1 where shapes differ."""
        return self.finite_elements / self.elements if self.elements else float(not self.empty)

    @property
    def empty(self) -> bool:
        """Whether neither side ever held an element."""
        return not self.elements and not self.shape_mismatch

    @property
    def sqnr_db(self) -> float:
        """Pooled over the samples, in dB; ``-inf`` if NaN positions or shapes did not match."""
        if self.nan_mismatch or self.shape_mismatch:
            return -math.inf
        return decibel(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between all reference values and all output values, in [-1, 1]."""
        return _cosine(self.cross, self.signal, self.other)

    @property
    def agreement(self) -> float | None:
        """Share of rows (all axes but the last) with the same argmax; ``None``: no class axis."""
        return self.labels_equal / self.labels_seen if self.labels_seen else None

    @property
    def max_relative(self) -> float:
        """``max|Δ| / max|reference|``; ``inf`` where NaN positions or shapes did not match."""
        if self.nan_mismatch or self.shape_mismatch:
            return math.inf
        if self.max_abs == 0.0:
            return 0.0
        return self.max_abs / self.max_ref if self.max_ref else math.inf


def _cosine(cross: float, signal: float, other: float) -> float:
    if signal == 0.0 or other == 0.0:
        return 1.0 if signal == other else 0.0
    return max(-1.0, min(1.0, cross / (math.sqrt(signal) * math.sqrt(other))))


@dataclass
class DiscreteAccumulator:
    """Agreement of one integer, boolean or string output over many samples."""

    equal: int = 0
    seen: int = 0
    elements: int = 0
    shape_mismatch: int = 0
    samples: int = 0
    worst_agreement: float = 1.0
    worst_sample: int | None = None

    def update(self, reference: Array, output: Array) -> None:
        """Take one sample.

        Args:
            reference: any shape; integers, booleans or strings.
            output: should have the same shape; another one counts as no element equal.
        """
        index = self.samples
        self.samples += 1
        size = max(int(reference.size), 1)
        if reference.shape != output.shape:
            self.shape_mismatch += 1
            equal = 0
        else:
            equal = int(np.count_nonzero(np.asarray(reference == output))) if reference.size else 1
        self.equal += equal
        self.seen += size
        self.elements += int(reference.size)
        share = equal / size
        if self.worst_sample is None or share < self.worst_agreement:
            self.worst_agreement = share
            self.worst_sample = index

    @property
    def empty(self) -> bool:
        """Whether neither side ever held an element."""
        return not self.elements and not self.shape_mismatch

    @property
    def agreement(self) -> float:
        """Share of equal elements over all samples, in [0, 1]."""
        return self.equal / self.seen if self.seen else 1.0


@dataclass
class TopK:
    """Top-1 and top-5 accuracy of one output against labels, one sample at a time."""

    rows: int = 0
    first: int = 0
    fifth: int = 0
    classes: int = 0
    _five: int = field(default=5, repr=False)

    def update(self, scores: Array, labels: Array) -> None:
        """Take one sample.

        Args:
            scores: float [rows, classes]; the largest entry is the answer, the first one among equals.
            labels: int64 [rows], class ids in [0, classes).
        """
        values = scores.astype(np.float64, copy=False)
        ids = np.asarray(labels, dtype=np.int64)
        own = np.take_along_axis(values, ids[:, None], axis=1)
        position = np.arange(values.shape[1])[None, :]
        ahead = (values > own) | ((values == own) & (position < ids[:, None]))
        rank = ahead.sum(axis=1)
        valid = ~np.isnan(values).any(axis=1)
        self.rows += int(ids.size)
        self.classes = int(values.shape[1])
        self.first += int(np.count_nonzero(valid & (rank == 0)))
        self.fifth += int(np.count_nonzero(valid & (rank < self._five)))

    @property
    def top1(self) -> float | None:
        """Share of rows whose largest entry is the label, in [0, 1]."""
        return self.first / self.rows if self.rows else None

    @property
    def top5(self) -> float | None:
        """Share of rows with the label among the five largest; ``None`` for five classes or fewer."""
        return self.fifth / self.rows if self.rows and self.classes > self._five else None


def class_rows(output: Array) -> Array | None:
    """An output as [rows, classes], if it can hold class scores.

    Args:
        output: [classes], [rows, classes], or [rows, classes, 1, 1] as some image classifiers end.

    Returns:
        A float view of shape [rows, classes], or ``None``.
    """
    if not is_float(output):
        return None
    array = output
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 1:
        array = array[None, :]
    return array if array.ndim == 2 and array.shape[1] > 1 else None
