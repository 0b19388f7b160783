"""A stand-in for onnxruntime, to reach what this machine's own cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort
import pytest


@dataclass
class Named:
    name: str


@dataclass
class FakeRaw:
    """A session that computes nothing."""

    active: tuple[str, ...]

    def get_inputs(self) -> list[Named]:
        return [Named("x")]

    def get_outputs(self) -> list[Named]:
        return [Named("y")]

    def get_providers(self) -> tuple[str, ...]:
        return self.active

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any], /) -> list[Any]:
        return [feed["x"]]


@dataclass
class FakeBackend:
    """onnxruntime with other providers.

    Attributes:
        offered: what it says it was built with.
        working: those that start; the others are left out without a word, as onnxruntime does.
        requests: the provider lists it was asked for.
    """

    offered: tuple[str, ...]
    working: tuple[str, ...]
    requests: list[Any] = field(default_factory=list)

    def available(self) -> Sequence[str]:
        return self.offered

    def open(self, model: bytes | str, options: ort.SessionOptions, providers: list[tuple[str, dict[str, str]]]) -> Any:
        self.requests.append(providers)
        return FakeRaw(tuple(name for name, _ in providers if name in self.working))


@pytest.fixture
def fake_backend() -> type[FakeBackend]:
    return FakeBackend
