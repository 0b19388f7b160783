"""When two models, or two states of one, are the same."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from graphopt.model.arrays import Array, bytes_of


class Fingerprints:
    """Hashes models; each array is hashed once, since arrays cannot change and clones share them."""

    def __init__(self) -> None:
        self._digests: dict[int, tuple[weakref.ref[Array], str]] = {}

    def of(self, skeleton: onnx.ModelProto, arrays: Mapping[str, Array]) -> str:
        """SHA-256 (hex) over a skeleton and the weights that it names."""
        digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True))
        for name, array in arrays.items():
            digest.update(f"{name}\0{array.dtype}\0{array.shape}\0{self._digest(array)}".encode())
        return digest.hexdigest()

    def _digest(self, array: Array) -> str:
        found = self._digests.get(id(array))
        if found is None or found[0]() is not array:
            found = self._digests[id(array)] = (weakref.ref(array), hashlib.sha256(bytes_of(array)).hexdigest())
        return found[1]


@dataclass(frozen=True, eq=False)
class State:
    """What a graph held at one time; arrays count by identity.

    Attributes:
        skeleton: SHA-256 of the skeleton.
        arrays: the weights.
    """

    skeleton: bytes
    arrays: tuple[Array, ...]

    @classmethod
    def of(cls, skeleton: onnx.ModelProto, arrays: Mapping[str, Array]) -> State:
        """The state that a skeleton and its weights stand for."""
        digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True)).digest()
        return cls(digest, tuple(arrays.values()))

    def same_as(self, other: State) -> bool:
        """Whether nothing changed between the two."""
        return (
            self.skeleton == other.skeleton
            and len(self.arrays) == len(other.arrays)
            and all(a is b for a, b in zip(self.arrays, other.arrays, strict=True))
        )
