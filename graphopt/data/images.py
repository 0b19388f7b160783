"""Samples from a folder of pictures."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from graphopt.data.check import check_feed, describe
from graphopt.data.preprocess import Preprocess
from graphopt.data.samples import Array, Feed, Samples
from graphopt.errors import LimitError, SampleError

if TYPE_CHECKING:
    from graphopt.model.interface import Interface, TensorSpec

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
KEPT_BYTES = 256 * 2**20
"""Decoded pictures are kept up to this size: samples are walked several times, and decoding is slow."""


def pictures(folder: Path) -> list[Path]:
    """Every picture below ``folder``, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def image_folder(folder: Path, interface: Interface, preprocess: Preprocess | None) -> Samples:
    """One sample for each picture of a folder.

    Labels come from ``labels.csv`` (columns ``file,label``; files relative to it, or to ``images`` beside
    it): then its rows are the samples, in its order. Without it, from class folders: where each name is a
    number, that number, else the name's place in alphabetical order. Pictures that stand in the folder itself
    or in ``images`` alone have no labels.

    Args:
        folder: the folder.
        interface: the model's; it must take one input of rank 4 (or 3: no batch axis).
        preprocess: how pictures become inputs; required, since a wrong guess is wrong results.

    Raises:
        SampleError: GO-401 no pictures; GO-402 the model takes no single picture; GO-403 a picture does not
            open; GO-406 labels; GO-407 no preprocessing given.
    """
    spec = _picture_input(interface, str(folder))
    if preprocess is None:
        raise SampleError(
            "GO-407",
            "pictures need preprocessing",
            where=str(folder),
            hint="say how, e.g. --preprocess resize=256,crop=224,scale=1/127.5,mean=1,layout=nchw,color=rgb",
        )
    _require_pillow()
    files, labels = _labelled(folder)
    batch = spec.shape[0] if spec.shape and len(spec.shape) == 4 and isinstance(spec.shape[0], int) else 1
    feeds = _PictureFeeds(tuple(files), interface, spec, preprocess, max(batch, 1))
    notes = () if len(files) % feeds.batch == 0 else (f"{folder}: the last pictures fill no whole batch",)
    if labels is not None and feeds.batch > 1:
        labels = labels[: len(feeds) * feeds.batch].reshape(len(feeds), feeds.batch)
    return Samples(feeds, labels=labels, source=str(folder), notes=notes)


@dataclass(frozen=True)
class _PictureFeeds:
    files: tuple[Path, ...]
    interface: Interface
    spec: TensorSpec
    preprocess: Preprocess
    batch: int
    kept: dict[int, Feed] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files) // self.batch

    def __getitem__(self, index: int, /) -> Feed:
        if index in self.kept:
            return self.kept[index]
        files = self.files[index * self.batch : (index + 1) * self.batch]
        where = str(files[0])
        arrays = [self._picture(file) for file in files]
        if len({a.shape for a in arrays}) > 1:
            raise SampleError(
                "GO-402", "pictures of one batch differ in size", where=where, hint="add crop, or resize=WxH"
            )
        stacked = np.concatenate(arrays)
        if self.spec.shape is not None and len(self.spec.shape) == 3:
            stacked = stacked[0]
        feed = check_feed({self.spec.name: stacked}, self.interface, where)
        size = stacked.nbytes
        if (len(self.kept) + 1) * size <= KEPT_BYTES:
            self.kept[index] = feed
        return feed

    def _picture(self, file: Path) -> Array:
        from PIL import Image

        assert self.spec.dtype is not None
        try:
            with warnings.catch_warnings(), Image.open(file) as image:
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                return self.preprocess.apply(image, self.spec.dtype)
        except SampleError as error:
            hint = error.hint
            raise SampleError(error.code, error.what, where=str(file), why=error.why, hint=hint) from None
        except Image.DecompressionBombError as error:
            raise LimitError("GO-701", "the picture is too large", where=str(file), why=str(error)) from error
        except (OSError, ValueError, SyntaxError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise SampleError("GO-403", "cannot read the picture", where=str(file), why=why) from error


def _picture_input(interface: Interface, where: str) -> TensorSpec:
    spec = interface.inputs[0] if len(interface.inputs) == 1 else None
    if spec and spec.kind == "tensor" and spec.dtype and (spec.shape is None or len(spec.shape) in (3, 4)):
        return spec
    inputs = ", ".join(f"{s.name} {describe(s)}" for s in interface.inputs)
    raise SampleError(
        "GO-402",
        "a folder of pictures can only feed a model with one picture input",
        where=where,
        why=f"the model's inputs are {inputs or 'none'}",
        hint="give npz files, or module:function",
    )


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise SampleError(
            "GO-403",
            "reading pictures needs Pillow, which is not installed",
            hint="pip install 'graphopt[images]'",
        ) from error


def _labelled(folder: Path) -> tuple[list[Path], Array | None]:
    table = folder / "labels.csv"
    if table.is_file():
        return _from_table(table)
    files = pictures(folder)
    if not files:
        raise SampleError(
            "GO-401",
            "no pictures found",
            where=str(folder),
            why=f"looked for {', '.join(sorted(SUFFIXES))}",
        )
    classes = [file.relative_to(folder).parts[0] if file.parent != folder else "" for file in files]
    names = sorted(set(classes))
    if names in ([""], ["images"]):
        return files, None
    if "" in names:
        what = "some pictures stand in class folders and some beside them"
        raise SampleError("GO-406", what, where=str(folder), hint="move them, or write labels.csv")
    ids = {name: int(name) if all(map(str.isdecimal, names)) else i for i, name in enumerate(names)}
    return files, np.array([ids[name] for name in classes], np.int64)


def _from_table(table: Path) -> tuple[list[Path], Array]:
    rows = _rows(table)
    files, labels = [], []
    for line, row in enumerate(rows, start=2):
        where = f"{table}, line {line}"
        label = (row["label"] or "").strip()
        if not label.isdecimal():
            hint = "labels are class numbers, counted from 0"
            raise SampleError("GO-406", f"{label!r} is no class number", where=where, hint=hint)
        files.append(_listed(table.parent, (row["file"] or "").strip(), where))
        labels.append(int(label))
    if not files:
        raise SampleError("GO-401", "labels.csv lists no pictures", where=str(table))
    return files, np.array(labels, np.int64)


def _rows(table: Path) -> Sequence[dict[str, str | None]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise SampleError(
                    "GO-406",
                    "labels.csv has no columns 'file' and 'label'",
                    where=str(table),
                    why=f"its first line is {','.join(reader.fieldnames or ())!r}",
                    hint="its first line must be: file,label",
                )
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SampleError("GO-406", "cannot read labels.csv", where=str(table), why=str(error)) from error


def _listed(folder: Path, name: str, where: str) -> Path:
    inside = PurePosixPath(name)
    if not name or inside.is_absolute() or ".." in inside.parts:
        hint = "name files relative to labels.csv, or to images beside it"
        raise SampleError("GO-406", f"{name!r} is no file of this folder", where=where, hint=hint)
    for candidate in (folder / inside, folder / "images" / inside):
        if candidate.is_file():
            return candidate
    raise SampleError("GO-403", f"there is no picture {name!r}", where=where)
