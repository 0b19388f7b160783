"""Operators that rules leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.pipeline.operators import QUANTIZATION, RANDOM, is_deterministic, is_whole


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


def node(op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> gs.Node:
    made = [gs.Variable(f"out{index}") for index in range(outputs)]
    return gs.Node(op, attrs=attributes, inputs=[gs.Variable(name) for name in inputs], outputs=made)


@pytest.mark.parametrize(
    "whole",
    [
        node("Add", "a", "b"),
        node("Clip", "x", "", "high"),
        node("Concat", "a", axis=0),
        node("Concat", "a", "b", axis=np.int64(1)),
        node("Softmax", "x"),
        node("Conv", "x", "w", pads=[1, 1, 1, 1]),
        node("Elu", "x", alpha=2),
        node("NoSuchOperator"),
    ],
    ids=lambda n: n.op,
)
def test_what_an_operator_allows_is_whole(whole: gs.Node) -> None:
    assert is_whole(whole, 17)


@pytest.mark.parametrize(
    "broken",
    [
        node("Add", "a"),
        node("Add", "", "b"),
        node("Relu", "x", outputs=0),
        node("Concat", "a", "b"),
        node("Concat", axis=0),
        node("Softmax", "x", axis="last"),
        node("Softmax", "x", axis=[1]),
        node("Conv", "x", "w", pads=["a"]),
        node("Elu", "x", alpha="1"),
    ],
    ids=lambda n: n.op,
)
def test_what_lacks_an_operand_or_a_number_is_not(broken: gs.Node) -> None:
    assert not is_whole(broken, 17)
