"""Samples: the feeds a model is calibrated, compared and timed on.

A ``Samples`` never changes, can be walked as often as needed, and reads a feed only when it is asked for:
walking a folder of pictures needs the memory of one picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from graphopt.errors import SampleError

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
"""Input name → array, exactly as the model's interface wants it."""


class FeedSource(Protocol):
    """Anything that holds feeds: a list, or a reader that fetches them from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Feed: ...


class Samples(Sequence[Feed]):
    """An immutable sequence of feeds, read lazily.

    Args:
        feeds: where the feeds come from; indexed with 0 … len - 1, must give equal feeds each time.
        labels: int64, one entry a feed: ``[n]``, or ``[n, batch]`` where each feed holds a batch of several.
        source: what to call them in messages.
        synthetic: they were made from a seed, not taken from real data.
        notes: what a user should know about how they were read.

    Raises:
        SampleError: GO-406, the labels are not one integer entry a feed.
    """

    def __init__(
        self,
        feeds: FeedSource,
        *,
        labels: Array | None = None,
        source: str = "memory",
        synthetic: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._feeds = feeds
        self._indices: npt.NDArray[np.int64] = np.arange(len(feeds), dtype=np.int64)
        self._labels = None if labels is None else _checked_labels(labels, len(feeds), source)
        self._source = source
        self._synthetic = synthetic
        self._notes = notes

    @classmethod
    def of(cls, feeds: Sequence[Feed], labels: Array | None = None, source: str = "memory") -> Samples:
        """Samples that stand in memory.

        Args:
            feeds: input name → array; used as they are, unchecked (``read_samples`` checks against a model).
            labels: int64 class ids, one entry a feed.
            source: what to call them in messages.

        Raises:
            SampleError: GO-406, the labels do not fit.
        """
        return cls(tuple(feeds), labels=labels, source=source)

    @property
    def labels(self) -> Array | None:
        """Class ids, int64: ``[n]``, or ``[n, batch]`` where each feed holds a batch of several."""
        return self._labels

    @property
    def source(self) -> str:
        """What to call these samples in messages."""
        return self._source

    @property
    def synthetic(self) -> bool:
        """Whether they were made from a seed instead of taken from real data."""
        return self._synthetic

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how they were read, e.g. rows that fill no whole batch."""
        return self._notes

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Feed | Samples:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self._feeds[int(self._indices[index])]

    def __iter__(self) -> Iterator[Feed]:
        for index in self._indices:
            yield self._feeds[int(index)]

    def __repr__(self) -> str:
        kind = "synthetic, " if self.synthetic else ""
        labelled = "labelled" if self.labels is not None else "no labels"
        return f"Samples({len(self)} from {self.source!r}, {kind}{labelled})"

    def take(self, indices: Sequence[int]) -> Samples:
        """The samples at ``indices``, in that order, labels included. Nothing is read or copied.

        Raises:
            IndexError: an index is outside ``0 … len - 1``.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"sample index outside 0 … {len(self) - 1}")
        part = Samples.__new__(Samples)
        part._feeds = self._feeds
        part._indices = self._indices[chosen]
        part._labels = None if self._labels is None else _frozen(self._labels[chosen])
        part._source = self._source
        part._synthetic = self._synthetic
        part._notes = self._notes
        return part

    def first(self, n: int) -> Samples:
        """The first ``n`` samples, or all where there are fewer."""
        return self.take(range(min(max(n, 0), len(self))))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over names, types, shapes, bytes and order of feeds and labels; reads all once."""
        digest = hashlib.sha256()
        for feed in self:
            for name in sorted(feed):
                _update(digest, name, np.asarray(feed[name]))
            digest.update(b"\0feed")
        if self._labels is not None:
            _update(digest, "labels", self._labels)
        return digest.hexdigest()


def split(samples: Samples, seed: int, eval_fraction: float = 0.5) -> tuple[Samples, Samples]:
    """Split one source into disjoint calibration and evaluation samples.

    The draw depends on the seed, the labels and the number of samples only. With labels (one a feed) each
    class is split alike, as far as its size allows; both parts keep the source's order.

    Args:
        samples: at least two.
        seed: for the draw.
        eval_fraction: share of the evaluation part, in (0, 1); each part gets at least one sample.

    Returns:
        Calibration samples, evaluation samples.

    Raises:
        SampleError: GO-401, fewer than two samples.
    """
    n = len(samples)
    if n < 2:
        raise SampleError(
            "GO-401",
            f"{n} sample{'s' if n != 1 else ''} cannot be split into calibration and evaluation",
            where=samples.source,
            hint="give at least two samples, or two sources with --calib and --eval",
        )
    if not 0 < eval_fraction < 1:
        raise ValueError(f"eval_fraction must lie between 0 and 1, not {eval_fraction}")
    held_back = min(max(round(n * eval_fraction), 1), n - 1)
    order = _spread_classes(samples.labels, n, np.random.default_rng(seed))
    # Every stretch of the interleaved order holds the classes in proportion; so does a prefix of it.
    evaluation = np.sort(order[:held_back])
    calibration = np.sort(order[held_back:])
    return samples.take(calibration.tolist()), samples.take(evaluation.tolist())


def _spread_classes(labels: Array | None, n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A random order of 0 … n - 1 in which every class is spread evenly (systematic sampling)."""
    shuffled = rng.permutation(n)
    if labels is None or labels.ndim != 1:
        return shuffled
    position = np.empty(n, dtype=np.float64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        # One common random offset a class keeps rare classes from all landing in the same part.
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(position, kind="stable").astype(np.int64)


def _checked_labels(labels: Array, n: int, source: str) -> Array:
    values = np.asarray(labels)
    if values.ndim == 0 or len(values) != n:
        raise SampleError(
            "GO-406",
            f"labels of shape {list(values.shape)} for {n} samples",
            where=source,
            hint="give one class id a sample, in the samples' order",
        )
    if not np.issubdtype(values.dtype, np.integer):
        raise SampleError(
            "GO-406",
            f"labels must be integer class ids, not {values.dtype}",
            where=source,
            hint="class ids count from 0; convert with labels.astype(numpy.int64)",
        )
    return _frozen(values.astype(np.int64))


def _frozen(values: Array) -> Array:
    values.flags.writeable = False
    return values


def _update(digest: hashlib._Hash, name: str, values: Array) -> None:
    digest.update(f"{name}\0{values.dtype.str}\0{list(values.shape)}\0".encode())
    if values.dtype.hasobject:
        for text in values.reshape(-1):
            digest.update(repr(text).encode() + b"\0")
    else:
        digest.update(np.ascontiguousarray(values).tobytes())
