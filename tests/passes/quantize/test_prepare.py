"""What quantize makes of a model before it looks for units."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphopt.model.model import Model
from graphopt.passes.quantize.prepare import prepare
from graphopt.testing.draft import Draft


def mean(dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    draft = Draft(opset=17)
    x = draft.input("x", [2, 3, 5, 5], dtype)
    draft.node("ReduceMean", [x], "y", axes=[2, 3], keepdims=0)
    draft.output("y", [2, 3], dtype)
    return draft.model("mean")


def ops(model: Model) -> list[str]:
    return [node.op for node in model.editor.nodes()]


def test_a_mean_over_space_becomes_a_pool() -> None:
    model = Model.from_proto(mean())
    prepare(model)
    assert ops(model) == ["GlobalAveragePool", "Flatten"]


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.INT32, TensorProto.FLOAT16])
def test_means_of_other_types_have_no_pool(dtype: int) -> None:
    model = Model.from_proto(mean(dtype))
    prepare(model)
    assert ops(model) == ["ReduceMean"]


def test_a_mean_that_is_left_out_stays() -> None:
    model = Model.from_proto(mean())
    prepare(model, ["y"])
    assert ops(model) == ["ReduceMean"]


def test_a_pad_is_written_out_even_where_it_is_left_out() -> None:
    draft = Draft(opset=18)
    x = draft.input("x", [1, 4, 8, 8])
    pads, axes = draft.const("pads", np.array([2, 1, 0, 1])), draft.const("axes", np.array([-1, 2]))
    draft.node("Pad", [x, pads, "", axes], "y")
    draft.output("y", [1, 4, 10, 10])
    model = Model.from_proto(draft.model("pad"))
    prepare(model, ["y"])
    (pad,) = model.editor.nodes()
    assert len(pad.inputs) == 3
