"""Rule `constant-node`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.testing.draft import Draft

from .harness import distance, simplified


def _with_constant(dtype: int, shape: list[int], **attributes: Any) -> onnx.ModelProto:
    draft = Draft()
    draft.input("x", shape, dtype)
    draft.nodes.append(helper.make_node("Constant", [], ["c"], name="c", **attributes))
    draft.node("Add", ["x", "c"], "y")
    draft.output("y", shape, dtype)
    return draft.model("constant")


@pytest.mark.parametrize(
    ("dtype", "shape", "attributes", "expected"),
    [
        (TensorProto.FLOAT, [3], {"value": numpy_helper.from_array(np.float32([1, 2, 3]))}, np.float32([1, 2, 3])),
        (TensorProto.INT8, [], {"value": numpy_helper.from_array(np.int8(-7))}, np.int8(-7)),
        (TensorProto.FLOAT, [], {"value_float": 0.1}, np.float32(0.1)),
        (TensorProto.FLOAT, [2], {"value_floats": [0.1, 3.0]}, np.float32([0.1, 3.0])),
        (TensorProto.INT64, [], {"value_int": -5}, np.int64(-5)),
        (TensorProto.INT64, [2], {"value_ints": [2**40, 1]}, np.int64([2**40, 1])),
    ],
)
def test_each_kind_of_value_keeps_its_type(dtype: int, shape: list[int], attributes: Any, expected: Any) -> None:
    done = simplified(_with_constant(dtype, shape, **attributes))
    assert done.ops == ["Add"]
    value = done.after.editor.constant(done.after.editor.nodes()[0].inputs[1])
    assert value is not None and value.dtype == expected.dtype
    np.testing.assert_array_equal(value, expected)
    if dtype == TensorProto.FLOAT:
        assert distance(done) == 0


def test_a_constant_that_is_a_graph_output_stays() -> None:
    draft = Draft()
    draft.input("x", [2])
    draft.node("Neg", ["x"], "z")
    draft.output("z", [2])
    draft.nodes.append(helper.make_node("Constant", [], ["y"], name="c", value_floats=[1.0, 2.0]))
    draft.output("y", [2])
    done = simplified(draft.model("constant output"))
    assert not done.result.modified
    assert sorted(done.ops) == ["Constant", "Neg"]


def test_strings_stay() -> None:
    draft = Draft()
    draft.input("x", [2], TensorProto.STRING)
    draft.nodes.append(helper.make_node("Constant", [], ["c"], name="c", value_strings=["a", "b"]))
    draft.node("Equal", ["x", "c"], "y")
    draft.output("y", [2], TensorProto.BOOL)
    draft.opset = 19
    assert not simplified(draft.model("strings")).result.modified
