"""Rules `neutral-operand` and `add-zero`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto

from graphopt.model.model import Model
from graphopt.testing.draft import Draft

from .harness import INT64, Done, constant, outputs, simplified, unary

SPECIAL = np.array([0.0, -0.0, 1.5, -1e-42, np.inf, -np.inf], np.float32).reshape(2, 3)


def _full(value: float, *shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.full(shape, value, dtype)


def _bits(done: Done, x: np.ndarray[Any, Any]) -> bool:
    before, after = outputs(done.before, {"x": x}), outputs(done.after, {"x": x})
    return bool(before["y"].tobytes() == after["y"].tobytes())


@pytest.mark.parametrize(
    ("op", "operand"),
    [
        ("Mul", _full(1)),
        ("Mul", _full(1, 1)),
        ("Mul", _full(1, 2, 3)),
        ("Mul", _full(1, 3)),
        ("Div", _full(1, 1, 1)),
        ("Sub", _full(0.0)),
        ("Add", _full(-0.0, 3)),
    ],
)
def test_neutral_floats_go_without_changing_a_bit(op: str, operand: np.ndarray[Any, Any]) -> None:
    done = simplified(unary(op, operand), exact_only=True)
    assert done.ops == ["Neg", "Neg"]
    assert _bits(done, SPECIAL)


@pytest.mark.parametrize("op", ["Add", "Sub"])
def test_integer_zeros_are_neutral(op: str) -> None:
    done = simplified(unary(op, _full(0, 1, dtype=np.int64), dtype=INT64), exact_only=True)
    assert done.ops == ["Neg", "Neg"]


def test_the_constant_may_come_first_where_order_does_not_matter() -> None:
    def swapped(op: str) -> onnx.ModelProto:
        proto = unary(op, _full(1))
        tested = next(node for node in proto.graph.node if node.name == "tested")
        tested.input[0], tested.input[1] = tested.input[1], tested.input[0]
        return proto

    assert simplified(swapped("Mul")).ops == ["Neg", "Neg"]
    assert "Div" in simplified(swapped("Div")).ops


@pytest.mark.parametrize(
    "proto",
    [
        unary("Mul", _full(2)),
        unary("Mul", np.float32([1, 1, 2])),
        unary("Mul", _full(1, 4, 1, 1), result=(4, 2, 3)),
        unary("Mul", _full(1, 1, 1, 1), result=(1, 2, 3)),
        unary("Mul", _full(1, 3), shape=(2, "n"), result=(2, 3)),
        unary("Mul", _full(1, 3), shape=(2, 1), result=(2, 3)),
        unary("Sub", _full(1)),
    ],
    ids=["two", "one of three", "broadcast", "higher rank", "unknown size", "size one", "minus one"],
)
def test_near_misses_stay(proto: onnx.ModelProto) -> None:
    assert not simplified(proto).result.modified


@pytest.mark.parametrize(("op", "zero"), [("Add", 0.0), ("Sub", -0.0)])
def test_zeros_of_the_other_sign_are_not_exact(op: str, zero: float) -> None:
    proto = unary(op, _full(zero))
    assert op in simplified(proto, exact_only=True).ops
    done = simplified(proto)
    assert done.ops == ["Neg", "Neg"]
    assert done.rules == {"add-zero": 1}
    before, after = (outputs(m, {"x": SPECIAL})["y"] for m in (done.before, done.after))
    np.testing.assert_array_equal(before, after)


def test_zero_before_a_division_stays() -> None:
    draft = Draft()
    z = draft.node("Neg", [draft.input("x", [2])], "n")
    draft.node("Reciprocal", [draft.node("Add", [z, constant(draft, "zero", _full(0.0))], "a")], "y")
    draft.output("y", [2])
    assert "Add" in simplified(draft.model("sign")).ops


def test_zero_before_a_division_behind_views_stays() -> None:
    draft = Draft()
    z = draft.node("Neg", [draft.input("x", [2])], "n")
    view = draft.node("Add", [z, constant(draft, "zero", _full(0.0))], "a")
    for i in range(3):
        view = draft.node("Unsqueeze", [view, draft.const(f"axes{i}", np.array([0]))], f"view{i}")
    draft.node("Reciprocal", [view], "y")
    draft.output("y", [1, 1, 1, 2])
    assert "Add" in simplified(draft.model("sign")).ops


@settings(max_examples=60, deadline=None)
@given(
    x=hnp.arrays(np.float32, (2, 3), elements=st.floats(width=32, allow_nan=False)),
    op=st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    value=st.sampled_from([0.0, -0.0, 1.0, 2.0]),
    shape=st.sampled_from([(), (1,), (3,), (2, 1), (2, 3)]),
)
def test_exact_mode_never_changes_a_bit(x: Any, op: str, value: float, shape: tuple[int, ...]) -> None:
    done = simplified(unary(op, _full(value, *shape)), exact_only=True)
    assert _bits(done, x)


def test_before_opset_7_broadcasting_is_another_matter() -> None:
    proto = unary("Mul", _full(1, 3), opset=6, broadcast=1)
    assert not simplified(proto).result.modified
    assert Model.from_proto(proto).opset == 6


def test_bool_has_no_neutral_number() -> None:
    proto = unary("And", np.array(True), free=False, dtype=TensorProto.BOOL)
    assert not simplified(proto).result.modified
