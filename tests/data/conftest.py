"""Interfaces of small imaginary models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graphopt.model.interface import Interface, TensorSpec

MakeInterface = Callable[..., Interface]


def _spec(text: str) -> TensorSpec:
    """``x:float32[N,3,?]`` as a TensorSpec."""
    name, _, rest = text.partition(":")
    kind, _, sizes = rest.rstrip("]").partition("[")
    shape = tuple(None if s == "?" else int(s) if s.isdigit() else s for s in sizes.split(",") if s)
    dtype = np.dtype(object) if kind == "string" else np.dtype(kind)
    return TensorSpec(name, dtype, shape)


@pytest.fixture(scope="session")
def make_interface() -> MakeInterface:
    """Interface from texts such as ``x:float32[N,3,?]``; ``x:int64[]`` is a scalar."""

    def make(*inputs: str, defaults: tuple[str, ...] = ()) -> Interface:
        return Interface(tuple(map(_spec, inputs)), (), tuple(map(_spec, defaults)))

    return make
