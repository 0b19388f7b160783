"""Scales and shifts by constants, as the graph writes them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from graphopt.model.model import Model
from graphopt.pipeline.affine import Affine, Arithmetic, read_arithmetic
from graphopt.pipeline.rules import Dims, Limits, Scope
from graphopt.pipeline.selection import Selection
from graphopt.testing.draft import Draft


def read(op: str, value: np.ndarray, first: bool = False, opset: int = 17) -> Arithmetic | None:
    draft = Draft(opset=opset)
    draft.input("x", [2, 3, 4], int(numpy_helper.from_array(value).data_type))
    draft.initializers.append(numpy_helper.from_array(value, "c"))
    draft.node(op, ["c", "x"] if first else ["x", "c"], "y")
    draft.output("y", [2, 3, 4], draft.inputs[0].type.tensor_type.elem_type)
    model = Model.from_proto(draft.model("arithmetic"))
    return read_arithmetic(model.editor.nodes()[0], Scope(model, Selection.of(model, (), ()), Limits(0)))


C = np.float32([2, 4, -0.5]).reshape(3, 1)


@pytest.mark.parametrize(
    ("op", "first", "scale", "shift"),
    [
        ("Mul", False, C, 0),
        ("Mul", True, C, 0),
        ("Div", False, 1 / C, 0),
        ("Add", False, 1, C),
        ("Add", True, 1, C),
        ("Sub", False, 1, -C),
        ("Sub", True, -1, C),
    ],
)
def test_each_form_is_a_scale_and_a_shift(op: str, first: bool, scale: object, shift: object) -> None:
    found = read(op, C, first)
    assert found is not None and found.kept == int(first) and found.x.name == "x"
    np.testing.assert_array_equal(found.scale, scale)
    np.testing.assert_array_equal(found.shift, shift)
    assert found.scales == (op in ("Mul", "Div") or (op == "Sub" and first))
    assert found.shifts == (op in ("Add", "Sub"))


def test_what_is_neither() -> None:
    assert read("Div", C, first=True) is None
    assert read("Div", np.float32([[1], [0], [2]])) is None
    assert read("Mul", np.float32([np.inf])) is None
    assert read("Mul", np.int64([2])) is None
    assert read("Mul", np.float16([2])) is None
    assert read("Max", C) is None


@pytest.mark.parametrize(
    ("shape", "axis", "x", "fits"),
    [
        ((), -2, (2, 3, 4), True),
        ((1,), -1, (None, None), True),
        ((1, 1), -1, (None,), False),
        ((3, 1), -2, (None, 3, None), True),
        ((1, 3, 1), -2, ("n", 3, None), True),
        ((3, 1), -2, (None, "c", None), False),
        ((3, 1), -2, (None, 1, None), False),
        ((3,), -2, (None, 3, 3), False),
        ((3, 4), -2, (None, 3, 4), False),
        ((2, 1, 1), -2, (2, 3, 4), False),
    ],
)
def test_along_the_channels(shape: tuple[int, ...], axis: int, x: Dims, fits: bool) -> None:
    value = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)
    node = read("Mul", C)
    assert node is not None
    found = Arithmetic(node.node, 0, value, value.astype(np.float64), np.zeros(()))
    affine = found.along(axis, 3, x)
    assert (affine is not None) == fits
    if affine is not None:
        np.testing.assert_array_equal(affine.scale, np.broadcast_to(value.reshape(-1), 3))
        np.testing.assert_array_equal(affine.shift, np.zeros(3))


def test_one_after_the_other() -> None:
    first, second = Affine(np.float64([2]), np.float64([3])), Affine(np.float64([5]), np.float64([7]))
    both = second.after(first)
    assert (both.scale[0], both.shift[0]) == (10, 22)


def test_double_precision_is_read() -> None:
    assert numpy_helper.from_array(np.float64([2])).data_type == TensorProto.DOUBLE
    found = read("Mul", np.float64([2]))
    assert found is not None and found.constant.dtype == np.float64
