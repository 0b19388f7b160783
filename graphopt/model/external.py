"""The files that hold a model's weights: data files beside it, and the model file itself."""

from __future__ import annotations

import math
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.model import dtypes
from graphopt.model.mapping import FileMap, map_file

STUB_LOCATION = "__graphopt__"
"""External location of a weight whose bytes are handed over separately (see ``Model.skeleton``)."""


@dataclass(frozen=True)
class Own:
    """The model file itself, mapped: weights inside it were left where they are.

    Attributes:
        map: the whole file.
        location: what stands as their external location; nobody could have guessed it.
    """

    map: FileMap
    location: str = field(default_factory=lambda: secrets.token_hex(16))


class ExternalFiles:
    """The files of one model's weights: opened through onnx's own checked opener, mapped read-only, once each.

    onnx's opener resolves the location beneath the model's folder and refuses absolute paths, ``..``, symbolic links
    and hard links; those checks were wrong several times where they were written by hand (CVE-2022-25882,
    CVE-2024-27318, CVE-2026-34446, CVE-2026-34447), so none are written here.

    Args:
        base: the model's folder; ``None`` for a model in memory, which has none.
        own: the model file, where weights were left in it.
    """

    def __init__(self, base: Path | None, own: Own | None = None) -> None:
        self._base = base
        self._own = own
        self._maps: dict[str, FileMap | None] = {}

    def within_model(self, tensor: TensorProto) -> bool:
        """Whether the tensor's bytes were left in the model file: its source is no external one."""
        return self._own is not None and place_in(tensor)[0] == self._own.location

    def read(self, tensor: TensorProto) -> memoryview:
        """The bytes of ``tensor``.

        Raises:
            ModelError: GO-306 if the file cannot be opened safely or does not hold the range.
        """
        location, start, length_text = place_in(tensor)
        if self._own is not None and location == self._own.location:
            return memoryview(self._own.map)[int(start) : int(start) + int(length_text)]
        if location == STUB_LOCATION or not location:
            raise _external(tensor, location, "the location is missing")
        data = self._mapped(location, tensor)
        size = dtypes.raw_size(tensor.data_type, math.prod(tensor.dims))
        try:
            offset = int(start or 0)
            length = int(length_text) if length_text else size
        except ValueError:
            raise _external(tensor, location, "offset or length is not a number") from None
        if size is None:
            raise _external(tensor, location, "string tensors cannot be external")
        if length != size:
            raise _external(tensor, location, f"its length is {length} bytes, {size} are needed")
        if offset < 0 or offset + size > len(data):
            raise _external(tensor, location, f"needs bytes {offset} to {offset + size}, the file has {len(data)}")
        return data[offset : offset + size]

    def _mapped(self, location: str, tensor: TensorProto) -> memoryview:
        if location not in self._maps:
            descriptor = self._open(location, tensor)
            try:
                self._maps[location] = map_file(descriptor, Path(self._base or "", location))
            except OSError as error:
                raise _external(tensor, location, str(error)) from None
            finally:
                os.close(descriptor)
        return memoryview(self._maps[location] or b"")

    def _open(self, location: str, tensor: TensorProto) -> int:
        if self._base is None:
            raise _external(tensor, location, "a model in memory has no folder to look in")
        try:
            opened = onnx.checker.C._open_external_data(str(self._base), location, tensor.name, True)
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if self._is_missing(location):  # onnx calls that "not regular file"
                why = "there is no such file"
            raise _external(tensor, location, why) from None
        return int(opened)

    def _is_missing(self, location: str) -> bool:
        place = Path(location)
        beneath = not place.is_absolute() and ".." not in place.parts
        return beneath and not os.path.lexists(Path(self._base or "", place))


def place_in(tensor: TensorProto) -> tuple[str, str, str]:
    """Location, offset and length of external data, as the file states them; empty where it does not."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    return fields.get("location", ""), fields.get("offset", ""), fields.get("length", "")


def _external(tensor: TensorProto, location: str, why: str) -> ModelError:
    return ModelError(
        "GO-306",
        f"cannot use the external data {location!r}",
        where=f"tensor {tensor.name!r}",
        why=why,
        hint="keep the data file, a regular file under its own name, in the model's folder",
    )
