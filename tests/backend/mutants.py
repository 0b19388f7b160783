"""Files as a bad disk, a bad network or a bad person leaves them: bytes of real models, changed a little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def mutants(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """``count`` changed copies of ``data``, the same for the same seed.

    Each has one to four changes: a bit flipped, a byte set, bytes taken out, doubled, put in or moved, or the end cut
    off. Few and small, so that most of the protobuf stays readable and the change is found late.
    """
    rng = np.random.default_rng([seed, len(data)])
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(int(rng.integers(1, 5))):
            _change(mutant, rng)
        yield bytes(mutant)


def _change(mutant: bytearray, rng: np.random.Generator) -> None:
    if not mutant:
        return
    at, length = int(rng.integers(len(mutant))), int(rng.integers(1, 9))
    kind = rng.choice(7, p=(0.3, 0.3, 0.1, 0.1, 0.1, 0.05, 0.05))
    if kind == 0:
        mutant[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        mutant[at] = int(rng.choice((0, 1, 2, 8, 10, 18, 127, 128, 254, 255, int(rng.integers(256)))))
    elif kind == 2:
        del mutant[at : at + length]
    elif kind == 3:
        mutant[at:at] = mutant[at : at + length]
    elif kind == 4:
        mutant[at:at] = rng.bytes(length)
    elif kind == 5:
        to = int(rng.integers(len(mutant)))
        mutant[to : to + length] = mutant[at : at + length]
    else:
        del mutant[at:]


def field_mutants(proto: onnx.ModelProto, count: int, seed: int) -> Iterator[bytes]:
    """``count`` models that parse, each with one to three fields changed, the same for the same seed."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(count):
        mutant = onnx.ModelProto()
        mutant.CopyFrom(proto)
        for _ in range(int(rng.integers(1, 4))):
            _change_field(mutant, rng)
        yield mutant.SerializeToString()


def _change_field(message: Message, rng: np.random.Generator) -> None:
    """Go down from ``message`` at random, and change what is there."""
    while True:
        fields = [(field, value) for field, value in message.ListFields()]
        if not fields:
            return
        field, value = fields[int(rng.integers(len(fields)))]
        inner = [value] if isinstance(value, Message) else []
        if not isinstance(value, Message | str | bytes | int | float):
            inner = [item for item in value if isinstance(item, Message)]
        if inner and rng.random() < 0.85:
            message = inner[int(rng.integers(len(inner)))]
            continue
        _set_field(message, field, value, rng)
        return


NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 17, 100, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))
TEXTS = ("", "x", "y", "Relu", "Loop", "If", "ai.onnx", "value", "\0", "é" * 100)


def _set_field(message: Message, field: FieldDescriptor, value: Any, rng: np.random.Generator) -> None:
    if isinstance(value, Message):
        message.ClearField(field.name)
    elif isinstance(value, str | bytes | int | float):
        setattr(message, field.name, _other(field, value, rng))
    else:
        _change_list(value, field, rng)


def _other(field: FieldDescriptor, value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, str):
        return str(rng.choice(TEXTS))
    if isinstance(value, bytes):
        return value[: int(rng.integers(len(value) + 1))] + rng.bytes(int(rng.integers(3)))
    if isinstance(value, float):
        return float(rng.choice((0.0, -1.0, np.nan, np.inf, 1e38)))
    if field.cpp_type == field.CPPTYPE_ENUM:
        return int(rng.choice([number.number for number in field.enum_type.values]))
    fits = NUMBERS if field.cpp_type == field.CPPTYPE_INT64 else NUMBERS[:11]
    number = int(fits[int(rng.integers(len(fits)))])
    return abs(number) if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else number


def _change_list(values: Any, field: FieldDescriptor, rng: np.random.Generator) -> None:
    at, to = int(rng.integers(len(values))), int(rng.integers(len(values)))
    kind = int(rng.integers(3))
    if kind == 0:
        del values[at]
    elif kind == 1:
        values.append(values[at])
    elif isinstance(values[at], Message):
        values[to].CopyFrom(values[at])
    else:
        values[at] = _other(field, values[at], rng)
