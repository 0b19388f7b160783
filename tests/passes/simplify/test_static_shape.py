"""Rule `static-shape`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.testing.draft import Draft

from .harness import INT64, constant, distance, simplified


def _shape_model(
    shape: tuple[int | str, ...], rank_or_size: list[int], op: str = "Shape", **attributes: Any
) -> onnx.ModelProto:
    draft = Draft()
    x = draft.input("x", shape)
    draft.node("Neg", [draft.node(op, [x], "asked", **attributes)], "y")
    draft.output("y", rank_or_size, INT64)
    return draft.model("shape")


@pytest.mark.parametrize(
    ("shape", "attributes", "expected"),
    [
        ((2, 3, 5), {}, [2, 3, 5]),
        ((2, 3, 5), {"start": 1}, [3, 5]),
        ((2, 3, 5), {"start": -2, "end": -1}, [3]),
        ((2, 3, 5), {"start": -9, "end": 9}, [2, 3, 5]),
        (("n", 3, 5), {"start": 1}, [3, 5]),
    ],
)
def test_fixed_dimensions_become_constant(shape: Any, attributes: Any, expected: list[int]) -> None:
    done = simplified(_shape_model(shape, [len(expected)], **attributes), exact_only=True)
    assert "Shape" not in done.ops
    assert done.rules["static-shape"] == 1
    assert distance(done, n=4) == 0


def test_size_becomes_constant() -> None:
    done = simplified(_shape_model((2, 3, 5), [], "Size"), exact_only=True)
    assert "Size" not in done.ops
    assert distance(done) == 0


@pytest.mark.parametrize(
    ("shape", "op", "attributes"),
    [(("n", 3), "Shape", {}), (("n", 3), "Size", {}), ((2, "n"), "Shape", {"start": 1})],
)
def test_dynamic_dimensions_stay(shape: Any, op: str, attributes: Any) -> None:
    size = [] if op == "Size" else [2 - attributes.get("start", 0)]
    assert not simplified(_shape_model(shape, size, op, **attributes)).result.modified


def _picked(op: str, result: list[int], **constants: Any) -> onnx.ModelProto:
    """What op picks from the shape [n, 3, m, 7]."""
    draft = Draft()
    asked = draft.node("Shape", [draft.input("x", ["n", 3, "m", 7])], "asked")
    names = [constant(draft, name, np.array(value, np.int64)) for name, value in constants.items()]
    draft.node("Neg", [draft.node(op, [asked, *names], "picked")], "y")
    draft.output("y", result, INT64)
    return draft.model("picked")


@pytest.mark.parametrize(
    "proto",
    [
        _picked("Gather", [], index=1),
        _picked("Gather", [2], index=[-1, 1]),
        _picked("Gather", [1, 2], index=[[1, 3]]),
        _picked("Slice", [1], start=[1], end=[2]),
        _picked("Slice", [1], start=[-1], end=[99]),
        _picked("Slice", [2], start=[1], end=[4], axes=[0], step=[2]),
    ],
)
def test_fixed_dimensions_picked_from_a_dynamic_shape_become_constant(proto: onnx.ModelProto) -> None:
    done = simplified(proto, exact_only=True)
    assert "Shape" not in done.ops
    assert distance(done, n=2, m=4) == 0


@pytest.mark.parametrize(
    "proto",
    [_picked("Gather", [], index=0), _picked("Gather", [2], index=[1, 2]), _picked("Slice", [3], start=[1], end=[9])],
)
def test_dynamic_dimensions_picked_stay(proto: onnx.ModelProto) -> None:
    assert "Shape" in simplified(proto).ops
    assert distance(simplified(proto), n=2, m=4) == 0
