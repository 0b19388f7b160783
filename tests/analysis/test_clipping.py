import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.clipping import clip_bounds
from graphopt.model.model import Model


def bounds(node, opset=17, **held):
    float_row = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    inputs = [float_row[0]]
    if "low" in node.input and "low" not in held:
        inputs.append(helper.make_tensor_value_info("low", TensorProto.FLOAT, []))
    weights = [numpy_helper.from_array(np.float32(value), name) for name, value in held.items()]
    graph = helper.make_graph([node], "g", inputs, [float_row[1]], weights)
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
    return clip_bounds(model.editor, model.editor.nodes()[0])


@pytest.mark.parametrize(
    ("inputs", "held", "expected"),
    [
        (["x", "low", "high"], {"low": -1.0, "high": 6.0}, (-1.0, 6.0)),
        (["x", "", "high"], {"high": 6.0}, (-math.inf, 6.0)),
        (["x", "low"], {"low": 0.5}, (0.5, math.inf)),
        (["x"], {}, (-math.inf, math.inf)),
        (["x", "low"], {}, None),
        (["x", "low"], {"low": math.nan}, None),
    ],
)
def test_bounds_are_inputs(inputs, held, expected):
    assert bounds(helper.make_node("Clip", inputs, ["y"]), **held) == expected


def test_bounds_were_attributes():
    assert bounds(helper.make_node("Clip", ["x"], ["y"], min=0.0, max=6.0), opset=10) == (0.0, 6.0)


def test_relu_and_others():
    assert bounds(helper.make_node("Relu", ["x"], ["y"])) == (0.0, math.inf)
    assert bounds(helper.make_node("Abs", ["x"], ["y"])) is None
