"""Protobuf's wire format, as far as it takes to leave weights where they are.

Parsing a model copies every byte of it, and serializing copies them all again. ``lift`` makes a skeleton of a mapped
file that names the place of each large tensor, and only the skeleton is parsed; ``splice`` writes a model around arrays
that were never put into a message. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx
from google.protobuf.descriptor import Descriptor  # type: ignore[import-untyped]
from onnx import TensorProto

from graphopt.model.arrays import Array, stored_size

Piece: TypeAlias = bytes | memoryview | Array
"""Part of a serialized model; an array stands for its raw data."""

_DEEPEST = 100
"""Messages within each other, as in protobuf's own parser."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _number(message: type[onnx.ModelProto | TensorProto], field: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[field].number)


_WITHIN: dict[str, tuple[str, ...]] = {
    "ModelProto": ("graph",),
    "GraphProto": ("node", "initializer"),
    "NodeProto": ("attribute",),
    "AttributeProto": ("t", "g"),
}
"""Fields on the way from a model to those tensors that the editing view decodes; others are carried as they are."""
_RAW = _number(TensorProto, "raw_data")
_PLAIN = frozenset(_number(TensorProto, name) for name in ("dims", "data_type", "name", "doc_string", "metadata_props"))
"""What a tensor with raw data may hold beside it; anything else is left to the parser."""


class _NotUnderstood(ValueError):
    """The bytes are no protobuf, or one that is made in an unusual way."""


@dataclass(frozen=True)
class _Field:
    number: int
    wire_type: int
    start: int  # of the key
    payload: int
    end: int


def lift(data: memoryview, location: str, least: int) -> bytes | None:
    """A serialized model without its large raw data.

    A tensor with at least ``least`` bytes of raw data becomes one with external data in ``location``, its offset
    and length those in ``data``; the rest stays byte for byte.

    Returns:
        The skeleton; ``None`` where the bytes are not understood: protobuf may say what is wrong with them.
    """
    try:
        return b"".join(_lifted(data, 0, len(data), onnx.ModelProto.DESCRIPTOR, location, least, 0))
    except (_NotUnderstood, IndexError):
        return None


def _lifted(
    data: memoryview, start: int, end: int, kind: Descriptor, location: str, least: int, depth: int
) -> Iterator[memoryview | bytes]:
    if depth > _DEEPEST:
        raise _NotUnderstood
    within = {kind.fields_by_name[n].number: kind.fields_by_name[n].message_type for n in _WITHIN[kind.name]}
    kept = start
    for field in _fields(data, start, end):
        inner = within.get(field.number)
        if inner is None or field.wire_type != _BYTES or field.end - field.payload < least:
            continue
        if inner is TensorProto.DESCRIPTOR:
            pieces = _stubbed(data, field, location, least)
        else:
            pieces = list(_lifted(data, field.payload, field.end, inner, location, least, depth + 1))
        yield data[kept : field.start]
        yield _key(field.number) + _varint(sum(map(len, pieces)))
        yield from pieces
        kept = field.end
    yield data[kept:end]


def _stubbed(data: memoryview, tensor: _Field, location: str, least: int) -> list[memoryview | bytes]:
    raw = None
    for field in _fields(data, tensor.payload, tensor.end):
        if field.number == _RAW and field.wire_type == _BYTES and raw is None:
            raw = field
        elif field.number not in _PLAIN:
            return [data[tensor.payload : tensor.end]]
    if raw is None or raw.end - raw.payload < least:
        return [data[tensor.payload : tensor.end]]
    stub = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", raw.payload), ("length", raw.end - raw.payload)):
        stub.external_data.add(key=key, value=str(value))
    return [data[tensor.payload : raw.start], data[raw.end : tensor.end], stub.SerializeToString()]


def splice(skeleton: bytes, arrays: Mapping[str, Array]) -> list[Piece]:
    """A serialized model with the values of top-level initializers put in.

    Args:
        skeleton: a serialized model whose initializers named in ``arrays`` hold empty raw data.
        arrays: values by name.

    Returns:
        Pieces that make the model, in order; byte for byte what protobuf would make of it.
    """
    data = memoryview(skeleton)
    return _spliced(data, 0, len(data), [("graph", onnx.ModelProto), ("initializer", onnx.GraphProto)], arrays)


def _spliced(
    data: memoryview, start: int, end: int, way: list[tuple[str, type]], arrays: Mapping[str, Array]
) -> list[Piece]:
    if not way:
        return _filled(data, start, end, arrays)
    (name, message), *rest = way
    number, kept, pieces = _number(message, name), start, list[Piece]()
    for field in _fields(data, start, end):
        if field.number == number:
            inner = _spliced(data, field.payload, field.end, rest, arrays)
            pieces += [data[kept : field.start], _key(number) + _varint(total(inner)), *inner]
            kept = field.end
    return [*pieces, data[kept:end]]


def _filled(data: memoryview, start: int, end: int, arrays: Mapping[str, Array]) -> list[Piece]:
    raw = next((f for f in _fields(data, start, end) if f.number == _RAW and f.payload == f.end), None)
    array = arrays.get(TensorProto.FromString(data[start:end]).name) if raw is not None else None
    if raw is None or array is None:
        return [data[start:end]]
    return [data[start : raw.start], _key(_RAW) + _varint(stored_size(array)), array, data[raw.end : end]]


def total(pieces: list[Piece]) -> int:
    """Bytes that the pieces make."""
    return sum(len(p) if isinstance(p, bytes | memoryview) else stored_size(p) for p in pieces)


def _fields(data: memoryview, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        start = at
        key, at = _read(data, at)
        wire_type = key & 7
        payload = at
        if wire_type == _VARINT:
            _, at = _read(data, at)
        elif wire_type == _BYTES:
            length, payload = _read(data, at)
            at = payload + length
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise _NotUnderstood
        if at > end:
            raise _NotUnderstood
        yield _Field(key >> 3, wire_type, start, payload, at)


def _read(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _NotUnderstood


def _key(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
