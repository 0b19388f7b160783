"""From what the user names to samples: one door for every kind of source."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.data.callable import function_samples, is_reference, load_function
from graphopt.data.check import check_feed
from graphopt.data.images import image_folder, pictures
from graphopt.data.npz import MAX_INFLATED, npz_file, npz_folder
from graphopt.data.samples import Feed, FeedSource, Samples
from graphopt.errors import SampleError
from graphopt.progress import Progress, Silent

if TYPE_CHECKING:
    from graphopt.data.preprocess import Preprocess
    from graphopt.model.interface import Interface

Source = str | os.PathLike[str] | Sequence[Feed] | Callable[[], Iterable[Feed]]
"""Anything samples can be read from."""
_FORMS = "an npz file, a folder of npz files or pictures, or module:function"


def read_samples(
    source: Source,
    interface: Interface,
    *,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    max_bytes: int = MAX_INFLATED,
    progress: Progress | None = None,
) -> Samples:
    """Read samples and check every one against the model's inputs.

    Args:
        source: an npz file; a folder of npz files (one feed each) or of pictures; ``module:function``; a
            function; feeds in memory; or ``Samples``.
        interface: the model's inputs. Those with a default value may be left out.
        preprocess: how pictures become inputs; for pictures only.
        limit: use the first so many.
        max_bytes: what the compressed arrays of one npz file may inflate to.
        progress: where each checked sample is reported.

    Returns:
        At least one sample, all of them checked; files are read again when a feed is asked for.

    Raises:
        SampleError: GO-401 none found, GO-402 they do not fit the model, GO-403 unreadable, GO-404 NaN or
            infinity, GO-406 labels, GO-407 preprocessing.
        RuntimeFailure: GO-606, a user's function failed.
        LimitError: GO-701, they are larger than allowed.
    """
    samples = _open(source, interface, preprocess, limit, max_bytes)
    if limit is not None:
        samples = samples.first(limit)
    if not len(samples):
        raise SampleError("GO-401", "no samples found", where=samples.source, hint=f"give {_FORMS}")
    walk = (progress or Silent()).track(samples, label="reading samples", total=len(samples))
    for index, feed in enumerate(walk):
        check_feed(feed, interface, f"{samples.source}, sample {index}")
    return samples


def require_source(source: Source) -> None:
    """Refuse a name that stands for nothing, without reading anything.

    Raises:
        SampleError: GO-401.
    """
    if isinstance(source, str | os.PathLike) and not Path(source).exists() and not is_reference(str(source)):
        raise SampleError("GO-401", "there is no such file or folder", where=str(source), hint=f"give {_FORMS}")


def _open(
    source: Source, interface: Interface, preprocess: Preprocess | None, limit: int | None, max_bytes: int
) -> Samples:
    if isinstance(source, str | os.PathLike):
        require_source(source)
        path = Path(source)
        if path.is_dir():
            return _folder(path, interface, preprocess, max_bytes)
        _refuse_preprocess(preprocess, str(source))
        if path.exists():
            return _file(path, interface, max_bytes)
        return function_samples(load_function(str(source)), interface, str(source), limit=limit)
    _refuse_preprocess(preprocess, "samples in memory")
    if callable(source):
        return function_samples(source, interface, getattr(source, "__name__", "function"), limit=limit)
    if isinstance(source, Samples):
        return source
    return Samples(_Memory(source, interface), source="memory")


@dataclass(frozen=True)
class _Memory:
    """Feeds that the caller holds, checked and handed out read-only."""

    feeds: FeedSource
    interface: Interface

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index: int, /) -> Feed:
        return check_feed(self.feeds[index], self.interface, f"memory, sample {index}")


def _file(path: Path, interface: Interface, max_bytes: int) -> Samples:
    if path.suffix.lower() == ".npz":
        return npz_file(path, interface, max_bytes=max_bytes)
    raise SampleError("GO-403", "not a kind of file samples are read from", where=str(path), hint=f"give {_FORMS}")


def _folder(path: Path, interface: Interface, preprocess: Preprocess | None, max_bytes: int) -> Samples:
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".npz")
    except OSError as error:
        raise SampleError("GO-403", "cannot read the folder", where=str(path), why=error.strerror) from error
    if files:
        _refuse_preprocess(preprocess, str(path))
        return npz_folder(files, interface, str(path), max_bytes=max_bytes)
    if (path / "labels.csv").is_file() or pictures(path):
        return image_folder(path, interface, preprocess)
    raise SampleError(
        "GO-401", "no samples found", where=str(path), why="the folder holds no npz files and no pictures"
    )


def _refuse_preprocess(preprocess: Preprocess | None, where: str) -> None:
    if preprocess is not None:
        raise SampleError(
            "GO-407",
            "preprocessing is for pictures; arrays are used as they are",
            where=where,
            hint="leave --preprocess out",
        )
