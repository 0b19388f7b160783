"""Which weights behind DequantizeLinear only save space."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.analysis.dequantize import quantized_weights
from graphopt.model.model import Model
from graphopt.testing import builders, formats
from graphopt.testing.draft import Draft


def layer(*, activations: bool, result: bool) -> onnx.ModelProto:
    """A MatMul by a quantized weight; its input and its result are quantized too, or not."""
    draft = Draft(0)
    x = draft.input("input", [2, 8])
    scale, zero = draft.const("scale", np.array(0.1, np.float32)), draft.const("zero", np.array(0, np.int8))
    if activations:
        x = draft.node("DequantizeLinear", [draft.node("QuantizeLinear", [x, scale, zero], "q"), scale, zero], "x")
    weight = draft.node("DequantizeLinear", [draft.const("w", np.ones((8, 6), np.int8)), scale, zero], "weight")
    y = draft.node("MatMul", [x, weight], "product" if result else "output")
    if result:
        draft.node("DequantizeLinear", [draft.node("QuantizeLinear", [y, scale, zero], "y.q"), scale, zero], "output")
    draft.output("output", [2, 6])
    return draft.model("layer")


@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("result", [False, True])
def test_a_layer_between_integers_is_no_float_layer(activations: bool, result: bool) -> None:
    ((node, reason),) = quantized_weights(Model.from_proto(layer(activations=activations, result=result)))
    assert node.name == "weight/DequantizeLinear"
    assert bool(reason) == (activations or result)


def test_only_constants_count() -> None:
    ((node, reason),) = quantized_weights(Model.from_proto(formats.quantized()))
    assert node.inputs[0].name == "conv.weight.q"
    assert "conv/Conv computes in integers" in reason
    assert quantized_weights(Model.from_proto(builders.conv_bn_relu())) == []
