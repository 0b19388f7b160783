"""Two feeds as one batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.model.interface import Interface, TensorSpec
from graphopt.validation.batches import larger_batch

FLOAT = np.dtype(np.float32)


def interface(**shapes: tuple[int | str | None, ...] | None) -> Interface:
    inputs = tuple(TensorSpec(name, FLOAT, shape) for name, shape in shapes.items())
    return Interface(inputs, (), ())


def feed(value: float, **shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


def test_two_feeds_are_put_behind_each_other() -> None:
    found = larger_batch(interface(x=("n", 3)), [feed(1, x=(1, 3)), feed(2, x=(1, 3))])
    assert found is not None
    assert found["x"].tolist() == [[1.0] * 3, [2.0] * 3]


def test_one_feed_is_doubled() -> None:
    found = larger_batch(interface(x=(None, 3)), [feed(1, x=(2, 3))])
    assert found is not None
    assert found["x"].shape == (4, 3)


def test_the_batch_is_followed_by_name() -> None:
    """A recurrent state has its batch in the middle."""
    shapes = {"x": (1, 5), "state": (2, 1, 4), "scale": (7,)}
    found = larger_batch(interface(x=("n", 5), state=(2, "n", 4), scale=(7,)), [feed(1, **shapes)])
    assert found is not None
    assert {name: value.shape for name, value in found.items()} == {"x": (2, 5), "state": (2, 2, 4), "scale": (7,)}


@pytest.mark.parametrize("shape", [(1, 3), (1, "n"), (), None])
def test_a_fixed_batch_stays(shape: tuple[int | str, ...] | None) -> None:
    assert larger_batch(interface(x=shape), [feed(1, x=(1, 3))]) is None


def test_feeds_of_different_sizes_do_not_go_together() -> None:
    assert larger_batch(interface(x=("n", "w")), [feed(1, x=(1, 3)), feed(1, x=(1, 4))]) is None


def test_defaults_need_no_value() -> None:
    found = larger_batch(interface(x=("n", 3), y=("n", 3)), [feed(1, x=(1, 3))])
    assert found is not None
    assert list(found) == ["x"]
