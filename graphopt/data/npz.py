"""Samples from npz files: one file that holds all of them, or a folder with one file a feed.

The arrays' headers are read first: names, types and sizes are known, and refused where they do not fit,
before any data is read. Arrays that are stored plainly (``numpy.savez``) are mapped, not loaded; compressed
ones are inflated, up to a limit. Pickled arrays are never read: unpickling runs code.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.data.check import check_feed, check_names, describe, describe_array
from graphopt.data.samples import Array, Feed, Samples
from graphopt.errors import LimitError, SampleError

if TYPE_CHECKING:
    from graphopt.model.interface import Interface, TensorSpec

MAX_INFLATED = 4 * 2**30
"""Bytes of compressed arrays that one file may inflate to."""
LABELS = "labels"
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # an encrypted member
    NotImplementedError,  # an unknown compression
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # zip local file header: magic, …, name length, extra length


@dataclass(frozen=True)
class _Header:
    """What an npy member says about its data, and where the data starts within the member."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def load_arrays(path: Path, *, only: str | None = None, max_bytes: int = MAX_INFLATED) -> dict[str, Array]:
    """Every array of an npz file; plainly stored ones are mapped read-only.

    Args:
        path: an npz file.
        only: read just the array of this name, if it is there.
        max_bytes: limit on what its compressed arrays inflate to, all together.

    Raises:
        SampleError: GO-403, not an npz file, damaged, or holding pickled arrays.
        LimitError: GO-701, the compressed arrays declare more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {n: i for n, i in _members(archive).items() if only in (None, n)}
            headers = {name: _header(archive, info, path) for name, info in members.items()}
            inflated = sum(headers[n].nbytes for n, info in members.items() if not _plain(info))
            _check_inflated(inflated, max_bytes, path)
            return {name: _array(archive, info, headers[name], path) for name, info in members.items()}
    except _DAMAGE as error:
        raise SampleError(
            "GO-403",
            "cannot read the samples",
            where=str(path),
            why=_reason(error),
            hint="samples are npz files as numpy.savez writes them, one array for each input",
        ) from error


def npz_file(path: Path, interface: Interface, *, max_bytes: int = MAX_INFLATED) -> Samples:
    """All samples of one npz file that holds an array for each input.

    An array of the input's rank is cut along axis 0 into the model's fixed batch, or into ones; an array of
    one rank more holds one feed for each element of axis 0; for a scalar input, ``[n]`` holds n feeds.
    ``labels`` holds class ids, unless the model has an input of that name.

    Args:
        path: the npz file.
        interface: the model's inputs.
        max_bytes: as for ``load_arrays``.

    Raises:
        SampleError: GO-401 no feed in it; GO-402 arrays that do not fit the model; GO-403 unreadable; GO-406
            labels.
        LimitError: GO-701.
    """
    arrays = load_arrays(path, max_bytes=max_bytes)
    where = str(path)
    labels = arrays.pop(LABELS, None) if LABELS not in _specs(interface) else None
    check_names(arrays, interface, where)
    specs = _specs(interface)
    cuts = {name: _cut(specs[name], array, where) for name, array in arrays.items()}
    feeds = _CutFeeds(arrays, cuts, _count(arrays, cuts, where))
    rest = {n: len(arrays[n]) % batch for n, batch in cuts.items() if batch and len(arrays[n]) % batch}
    notes = tuple(f"{path.name}: the last {k} rows of {n!r} fill no whole batch" for n, k in rest.items())
    return Samples(
        feeds,
        labels=None if labels is None else _labels(labels, len(feeds), cuts, where),
        source=where,
        notes=notes,
    )


def npz_folder(files: list[Path], interface: Interface, source: str, *, max_bytes: int = MAX_INFLATED) -> Samples:
    """One feed for each npz file; shapes may differ between files.

    Args:
        files: npz files, in the samples' order; each may hold ``labels``, one class id (or one a batch row).
        interface: the model's inputs.
        source: what to call them.
        max_bytes: as for ``load_arrays``, for each file.

    Raises:
        SampleError: GO-406, only some files hold labels.
    """
    own_labels = LABELS not in _specs(interface)
    feeds = _FileFeeds(tuple(files), interface, own_labels, max_bytes)
    found = [feeds.labels(i) for i in range(len(files))] if own_labels else [None]
    if all(label is None for label in found):
        return Samples(feeds, source=source)
    bare = next((file for file, label in zip(files, found, strict=True) if label is None), None)
    sizes = {label.size for label in found if label is not None}
    if bare is not None or len(sizes) > 1:
        raise SampleError(
            "GO-406",
            f"some files hold {'no labels' if bare else 'another number of labels'}",
            where=str(bare or source),
            hint="give each file one class id under the name 'labels', or none",
        )
    labels = np.stack([label.reshape(-1) for label in found if label is not None])
    return Samples(feeds, labels=labels[:, 0] if labels.shape[1] == 1 else labels, source=source)


@dataclass(frozen=True)
class _CutFeeds:
    """Feeds cut out of one array for each input; ``cuts``: rows a feed, 0 where each element is a feed."""

    arrays: dict[str, Array]
    cuts: dict[str, int]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Feed:
        feed = {}
        for name, batch in self.cuts.items():
            where = slice(index * batch, (index + 1) * batch) if batch else index
            feed[name] = np.array(self.arrays[name][where], order="C")
        return feed


@dataclass(frozen=True)
class _FileFeeds:
    """One feed a file, read when asked for."""

    files: tuple[Path, ...]
    interface: Interface
    own_labels: bool
    max_bytes: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Feed:
        arrays = load_arrays(self.files[index], max_bytes=self.max_bytes)
        if self.own_labels:
            arrays.pop(LABELS, None)
        copies = {name: np.array(array, order="C") for name, array in arrays.items()}
        return check_feed(copies, self.interface, str(self.files[index]))

    def labels(self, index: int) -> Array | None:
        found = load_arrays(self.files[index], only=LABELS, max_bytes=self.max_bytes).get(LABELS)
        return None if found is None else np.array(found)


def _specs(interface: Interface) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in (*interface.inputs, *interface.overridable)}


def _cut(spec: TensorSpec, array: Array, where: str) -> int:
    """Rows of one feed, 0: each element of axis 0 is a whole feed."""
    if spec.kind != "tensor" or spec.shape is None:
        why = f"input {spec.name!r} is {describe(spec)}"
        hint = "give a folder with one npz file a feed, or module:function"
        raise SampleError("GO-402", "one array cannot be cut into feeds", where=where, why=why, hint=hint)
    rank = len(spec.shape)
    if array.ndim == rank + 1:
        return 0
    if array.ndim == rank and rank > 0:
        batch = spec.shape[0]
        return batch if isinstance(batch, int) and batch > 0 else 1
    raise SampleError(
        "GO-402",
        f"input {spec.name!r} expects {describe(spec)}, the file holds {describe_array(array)}",
        where=where,
        hint=f"the array needs rank {rank} (axis 0 is the batch) or {rank + 1} (one feed for each element)"
        if rank
        else "a scalar input takes an array [n], one value a feed",
    )


def _count(arrays: dict[str, Array], cuts: dict[str, int], where: str) -> int:
    counts = {name: len(arrays[name]) // (batch or 1) for name, batch in cuts.items()}
    if len(set(counts.values())) > 1:
        raise SampleError(
            "GO-402",
            "the arrays hold different numbers of feeds",
            where=where,
            why=", ".join(f"{name}: {n}" for name, n in counts.items()),
            hint="where axis 0 of an input is no batch axis, add one in front: one feed for each element",
        )
    return next(iter(counts.values()), 0)


def _labels(labels: Array, feeds: int, cuts: dict[str, int], where: str) -> Array:
    flat = np.array(labels).reshape(-1)
    batch = max(cuts.values(), default=0)
    if batch > 1 and flat.size // batch == feeds:
        return flat[: feeds * batch].reshape(feeds, batch)
    if flat.size == feeds:
        return flat
    raise SampleError(
        "GO-406",
        f"{flat.size} labels for {feeds} samples",
        where=where,
        hint="'labels' holds one class id a sample",
    )


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in members:
            what = "is no array" if name == info.filename else "is there twice"
            raise ValueError(f"its member {info.filename!r} {what}")
        members[name] = info
    return members


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Header:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"array {info.filename!r} has npy format version {version}")
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise SampleError(
                "GO-403",
                f"array {info.filename.removesuffix('.npy')!r} is pickled",
                where=str(path),
                why="unpickling runs code, so graphopt never does it",
                hint="save it as plain numbers or fixed-width text",
            )
        return _Header(tuple(shape), fortran, dtype, file.tell())


def _plain(info: zipfile.ZipInfo) -> bool:
    """Whether the member's bytes stand in the file as they are."""
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1


def _check_inflated(size: int, limit: int, path: Path) -> None:
    if size > limit:
        raise LimitError(
            "GO-701",
            f"the compressed arrays declare {size / 2**20:,.0f} MiB, the limit is {limit / 2**20:,.0f} MiB",
            where=str(path),
            hint="save them uncompressed with numpy.savez, or in several files",
        )


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: _Header, path: Path) -> Array:
    if _plain(info) and header.nbytes:
        return _mapped(info, header, path)
    with archive.open(info) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _mapped(info: zipfile.ZipInfo, header: _Header, path: Path) -> Array:
    if header.offset + header.nbytes != info.file_size:
        raise ValueError(f"array {info.filename!r} is not of the size its header says")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        file.seek(name_length + extra_length, 1)
        start = file.tell() + header.offset
        checksum = zlib.crc32(file.read(header.offset))
    if magic != b"PK\x03\x04":
        raise ValueError(f"array {info.filename!r} is not where the file's directory says")
    mapped = np.memmap(path, header.dtype, "r", start, header.shape, "F" if header.fortran else "C")
    if zlib.crc32(mapped.reshape(-1, order="A").view(np.uint8).data, checksum) != info.CRC:
        raise ValueError(f"array {info.filename!r} is damaged: its checksum differs")
    return mapped


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
