import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.data.samples import Samples
from graphopt.errors import SampleError
from graphopt.model.model import Model
from graphopt.runtime.target import Target
from graphopt.testing.builders import mlp
from graphopt.validation.threeway import ThreeWay, three_way

TARGET = Target()


def quantized(proto):
    """The model with its input rounded to 8 bits by a QuantizeLinear → DequantizeLinear pair."""
    name = proto.graph.input[0].name
    for node in proto.graph.node:
        for index, given in enumerate(node.input):
            if given == name:
                node.input[index] = "rounded"
    pair = [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rounded"]),
    ]
    for node in reversed(pair):
        proto.graph.node.insert(0, node)
    scale = numpy_helper.from_array(np.array(4 / 127, np.float32), "scale")
    proto.graph.initializer.extend([scale, numpy_helper.from_array(np.array(128, np.uint8), "zero")])
    return Model.from_proto(proto)


def samples(count=3):
    rng = np.random.default_rng(0)
    return Samples.of([{"input": rng.uniform(-3, 3, (4, 16)).astype(np.float32)} for _ in range(count)])


def test_quantization_noise_shows_with_and_without_runtime_optimizations():
    found = three_way(Model.from_proto(mlp()), quantized(mlp()), samples(), target=TARGET)
    assert 25 < found.unoptimized_db < 60
    assert found.optimized_db == pytest.approx(found.unoptimized_db, abs=0.5)
    assert found.runtime_db > found.unoptimized_db
    assert not found.runtime_harms


def test_a_model_against_itself_moves_only_by_runtime_rounding():
    model = Model.from_proto(mlp())
    found = three_way(model, model.clone(), samples(), target=TARGET)
    assert found.optimized_db == math.inf
    assert found.unoptimized_db > 100


def test_a_loss_that_only_fusion_brings_is_called_the_runtimes():
    assert ThreeWay(30.0, 12.0, 12.1, "").runtime_harms
    assert not ThreeWay(20.0, 19.0, 30.0, "").runtime_harms


def test_no_sample_is_an_error():
    model = Model.from_proto(mlp())
    with pytest.raises(SampleError):
        three_way(model, model, Samples.of([]), target=TARGET)


def test_outputs_without_numbers_are_compared_by_agreement():
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["input"], ["y"], axis=1)],
        "ids",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [4, 1])],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert three_way(model, model.clone(), samples(), target=TARGET).optimized_db == math.inf
