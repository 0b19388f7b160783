"""Files that are no model, and files that are too large for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import helper

from tests.corpus.case import Case, bad_model
from tests.model.probes import model_of, relu, value

_KINDS = {
    "an empty file": (b"", "empty"),
    "a PNG picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "PNG"),
    "a JPEG picture": (b"\xff\xd8\xff\xe0" + bytes(64), "JPEG"),
    "a zip archive": (b"PK\x03\x04" + bytes(64), "zip"),
    "a gzip archive": (b"\x1f\x8b\x08" + bytes(64), "gzip"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "a numpy array": (b"\x93NUMPY\x01\x00" + bytes(64), "numpy"),
    "a model in ORT format": (b"ORTM" + bytes(64), "onnxruntime"),
    "a PDF document": (b"%PDF-1.7" + bytes(64), "PDF"),
    "a program": (b"\x7fELF" + bytes(64), "program"),
    "an HTML page": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "a JSON file": (b'{"ir_version": 8}', "JSON"),
    "a text file": (b"once upon a time there was a text file\n" * 9, "text"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "zeros": (bytes(64), "not an ONNX model"),
}


def cases() -> Iterator[Case]:
    """All cases of this module."""
    yield bad_model("no file", "GO-301", lambda p: None, "no such file")
    yield bad_model("a folder", "GO-301", lambda p: p.mkdir(), "folder")
    yield bad_model("a pipe", "GO-301", os.mkfifo, "regular file")
    yield bad_model("a link to itself", "GO-301", lambda p: p.symlink_to(p.name))
    if os.geteuid() != 0:
        yield bad_model("a file without permission", "GO-301", _forbidden)
    for name, (data, said) in _KINDS.items():
        yield bad_model(name, "GO-302", lambda p, data=data: p.write_bytes(data), said)
    yield bad_model("a model cut in half", "GO-303", lambda p: p.write_bytes(_bytes()[: len(_bytes()) // 2]), "again")
    yield bad_model("a model without its last byte", "GO-303", lambda p: p.write_bytes(_bytes()[:-1]), "again")
    yield bad_model("a model that protobuf cannot nest", "GO-304", _deep, "deeper")
    yield bad_model("a file above 2 GiB", "GO-701", _huge, "max_file_bytes", exit_code=7)


def _forbidden(path: Path) -> None:
    path.write_bytes(_bytes())
    path.chmod(0)


def _bytes() -> bytes:
    data: bytes = model_of([relu()]).SerializeToString()
    return data


def _deep(path: Path) -> None:
    """Sixty If in each other, as bytes: Python's protobuf does not even write them."""
    graph = helper.make_graph([relu("x", "z")], "innermost", [], [value("z")]).SerializeToString()
    node = b"\x22\x02If" + b"\x12\x01y"
    for _ in range(60):
        attribute = b"\x0a\x01b" + b"\xa0\x01\x05" + _field(6, graph)
        graph = _field(1, node + _field(5, attribute))
    path.write_bytes(b"\x08\x0a" + _field(7, graph) + _field(8, b"\x10\x15"))


def _field(number: int, data: bytes) -> bytes:
    length, size = b"", len(data)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def _huge(path: Path) -> None:
    """A sparse file: it takes no room on the disk."""
    with path.open("wb") as file:
        file.write(onnx.ModelProto(ir_version=10).SerializeToString())
        file.truncate((1 << 31) + 5)
