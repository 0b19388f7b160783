"""Operators that rules leave alone."""

from __future__ import annotations

import pytest

from graphopt.pipeline.operators import QUANTIZATION, RANDOM, is_deterministic


@pytest.mark.parametrize(
    ("op", "opset", "expected"),
    [
        ("Add", 17, True),
        ("Gelu", 17, False),  # since 20
        ("Gelu", 20, True),
        ("RandomNormal", 17, False),
        ("NoSuchOperator", 17, False),
    ],
)
def test_what_onnx_knows_and_does_not_mark(op: str, opset: int, expected: bool) -> None:
    assert is_deterministic(op, opset) == expected


def test_both_sets_are_operators_of_the_standard() -> None:
    assert all(is_deterministic(op, 17) for op in QUANTIZATION)
    assert not RANDOM & QUANTIZATION
