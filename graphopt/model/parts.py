"""A model as the files that hold it: what goes inside the model file, and where the rest lies in the data file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from graphopt.model.arrays import Array, bytes_of, stored_bytes, stored_size
from graphopt.model.weights import stub
from graphopt.model.wire import splice, total

ALIGNMENT = 4096
"""Weights in a data file start at multiples of this many bytes, so that they can be memory-mapped."""
_SMALL_ALIGNMENT = 64
"""What less than a page takes: a cache line, and a vector register."""
_LARGEST_ALIGNMENT = 1 << 16
"""The largest that any system asks of a mapping (Windows); a source's offset may be a multiple of more by chance."""
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Stored:
    """A weight that goes to the data file.

    Attributes:
        array: its value.
        source: location and offset it had in the source's external data; ``None``: it was not external.
        tied: another weight had the same place.
    """

    array: Array
    source: tuple[str, int] | None = None
    tied: bool = False


@dataclass(frozen=True)
class Parts:
    """A model to be written.

    Attributes:
        proto: the model; what is in ``inline`` has empty raw data, what is in ``external`` is a stub.
        inline: values that go inside the model file, by name.
        external: values that go to the data file, by name.
    """

    proto: onnx.ModelProto
    inline: dict[str, Array]
    external: dict[str, Stored]

    @property
    def size(self) -> int:
        """Bytes of the model file and the data file together, but for the place of each weight that the first names."""
        pieces = splice(self.proto.SerializeToString(deterministic=True), self.inline)
        return total(pieces) + Layout(self.external).size

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the model file."""
        for piece in splice(self.proto.SerializeToString(deterministic=True), self.inline):
            yield from _chunked(piece if isinstance(piece, bytes | memoryview) else stored_bytes(piece))


class Layout:
    """Where each weight lies in the data file.

    Weights that share their bytes share them in the file too: those of one array, and those that had one place in the
    source and are still equal. Each is aligned at least as well as it was in the source.

    Args:
        weights: by name, in the order in which they are written.
    """

    def __init__(self, weights: Mapping[str, Stored]) -> None:
        self.offsets: dict[str, int] = {}
        self._weights = weights
        self._written: list[tuple[int, Array]] = []
        self.size = 0
        known: dict[object, int] = {}
        for name, weight in weights.items():
            key = _identity(weight)
            if key not in known:
                length = stored_size(weight.array)
                step = _alignment(length, weight.source)
                known[key] = offset = -(-self.size // step) * step
                self._written.append((offset, weight.array))
                self.size = offset + length
            self.offsets[name] = known[key]

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the data file."""
        end = 0
        for offset, array in self._written:
            yield bytes(offset - end)
            yield from _chunked(stored_bytes(array))
            end = offset + stored_size(array)

    def digest(self) -> str:
        """SHA-256 of the data file."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def place(self, proto: onnx.ModelProto, location: str) -> None:
        """Gives every stub its place in the data file; notes on a tensor stay."""
        for tensor in proto.graph.initializer:
            if tensor.name in self.offsets:
                array, offset = self._weights[tensor.name].array, self.offsets[tensor.name]
                del tensor.external_data[:]
                tensor.MergeFrom(onnx.TensorProto(external_data=stub("", array, None, location, offset).external_data))


def _identity(weight: Stored) -> object:
    array = weight.array
    if weight.tied:
        return weight.source, array.nbytes, hashlib.sha256(bytes_of(array)).digest()
    return array.ctypes.data if array.nbytes else id(array), array.nbytes


def _alignment(length: int, source: tuple[str, int] | None) -> int:
    least = ALIGNMENT if length >= ALIGNMENT else _SMALL_ALIGNMENT
    # The lowest bit set of the old offset; an offset of 0 tells nothing.
    old = source[1] & -source[1] if source is not None else 0
    return max(least, min(old, _LARGEST_ALIGNMENT))


def _chunked(data: bytes | memoryview) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]
