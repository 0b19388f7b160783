"""Reading a model file, and saying plainly what is wrong with one that is no model."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.errors import ModelError
from graphopt.model.external import ExternalFiles, Own
from graphopt.model.limits import DEFAULT_LIMITS, Limits, exceeded
from graphopt.model.mapping import map_file
from graphopt.model.wire import lift

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"PK\x03\x04", "a zip archive (or a PyTorch, Keras or npz file)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"ORTM", "an onnxruntime (ORT) format model"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
)


MAPPED_ABOVE = 64 << 20
"""Bytes of a model file above which the weights inside it are mapped, not read.

A smaller file is read: whoever writes over a file that is mapped changes the weights under our feet.
"""
LIFTED_ABOVE = 1 << 16
"""Bytes of a tensor above which it stays in a mapped model file."""


@dataclass(frozen=True)
class ModelFile:
    """A parsed model file.

    Attributes:
        proto: the model; weights that were left in the file are external data of it.
        files: where external data is read from.
    """

    proto: onnx.ModelProto
    files: ExternalFiles


def read_model(path: Path, limits: Limits = DEFAULT_LIMITS) -> ModelFile:
    """Parses a model file; external data is not read, nor are large weights inside a large file.

    Raises:
        ModelError: GO-301 when the file cannot be read, GO-302 when it is something else, GO-303 when it is cut off.
        LimitError: GO-701 when the file is too large.
    """
    data, own = _read(path, limits)
    if not data:
        raise ModelError("GO-302", "the file is empty", where=str(path))
    skeleton = None if own is None else lift(data, own.location, LIFTED_ABOVE)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(bytes(data) if skeleton is None else skeleton)
    except DecodeError as error:
        raise _undecodable(path, data, str(error)) from None
    if not _looks_like_model(proto):
        raise _undecodable(path, data, "no model in it")
    return ModelFile(proto, ExternalFiles(path.resolve().parent, own if skeleton is not None else None))


def require_file(path: Path, limits: Limits = DEFAULT_LIMITS) -> int:
    """Refuse what is no file, without reading it.

    Returns:
        Its bytes.

    Raises:
        ModelError: GO-301.
        LimitError: GO-701 when the file is too large.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
    if status.st_size > limits.max_file_bytes:
        hint = "keep the weights in a data file beside the model (external data)"
        raise exceeded("max_file_bytes", status.st_size, limits.max_file_bytes, where=str(path), hint=hint).as_error()
    return status.st_size


def _read(path: Path, limits: Limits) -> tuple[memoryview, Own | None]:
    size = require_file(path, limits)
    try:
        return _contents(path, mapped=size > MAPPED_ABOVE)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError("GO-301", "cannot read the model file", where=str(path), why=why)


def _contents(path: Path, *, mapped: bool) -> tuple[memoryview, Own | None]:
    with path.open("rb") as file:
        found = map_file(file.fileno(), path.resolve()) if mapped else None
        return (memoryview(file.read()), None) if found is None else (memoryview(found), Own(found))


def _looks_like_model(proto: onnx.ModelProto) -> bool:
    """Random bytes often parse as a protobuf with nothing but unknown fields."""
    return bool(proto.HasField("graph") or proto.ir_version or proto.opset_import)


def _undecodable(path: Path, data: memoryview, why: str) -> ModelError:
    head = bytes(data[:512])
    if head.startswith(b"version https://git-lfs"):
        return ModelError(
            "GO-302", "the file is a Git LFS pointer, not the model", where=str(path), hint="run `git lfs pull`"
        )
    kind = next((name for magic, name in _MAGIC if head.startswith(magic)), None) or _text_kind(head)
    if kind:
        return ModelError("GO-302", f"not an ONNX model: it looks like {kind}", where=str(path))
    if "depth" in why.lower():
        return ModelError("GO-304", "the model nests deeper than protobuf allows", where=str(path), why=why)
    # Field 1 (ir_version) as a small number opens every ONNX file that exporters write.
    if head[:1] == b"\x08" and 1 <= (head + b"\0")[1] <= 32:
        return ModelError(
            "GO-303",
            f"not a complete ONNX file ({len(data)} bytes read)",
            where=str(path),
            hint="copy or download it again",
        )
    return ModelError("GO-302", "not an ONNX model", where=str(path), why=why)


def _text_kind(head: bytes) -> str | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith((b"{", b"[")):
        return "JSON"
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)
    return "text" if head and printable >= 0.95 * len(head) else None
