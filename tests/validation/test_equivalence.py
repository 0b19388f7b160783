import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.data.samples import Samples
from graphopt.errors import RuntimeFailure, SampleError
from graphopt.model.model import Model
from graphopt.runtime.target import Target
from graphopt.testing.builders import conv_bn_relu, mlp
from graphopt.validation.ahead import pairs_ahead
from graphopt.validation.equivalence import check_equivalence, identical, prepare_feeds

TARGET = Target()


def feeds_of(model, count=2):
    return prepare_feeds(model, None, seed=0, target=TARGET, count=count).feeds


def check(reference, candidate, safety="rounding", feeds=None):
    return check_equivalence(reference, candidate, feeds or feeds_of(reference), safety=safety, target=TARGET)


def with_scaled_weight(proto, factor):
    """The model with its first float weight multiplied."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    weight = next(t for t in changed.graph.initializer if t.data_type == TensorProto.FLOAT)
    values = (numpy_helper.to_array(weight) * np.float32(factor)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return Model.from_proto(changed)


def classifier(scale=1.0, shift=0):
    """``x [4, 8]`` → logits → a class id, optionally moved by ``shift`` behind the ArgMax."""
    weight = (np.eye(8, dtype=np.float32) * np.float32(scale)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1),
    ]
    nodes.append(helper.make_node("Add", ["best", "shift"], ["ids"]))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [4, 1])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(shift, np.int64), "shift")],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def perturbed_classifier():
    """Moves logits by about 1e-7 of their size, which decides near ties the other way."""
    model = classifier()
    proto = model.to_proto()
    bump = np.eye(8, dtype=np.float32)
    bump[1, 1] += np.float32(2e-7)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(bump, "w"))
    return Model.from_proto(proto)


def near_ties():
    """In every row classes 0 and 1 are as good as equal."""
    x = np.zeros((4, 8), np.float32)
    x[:, :2] = 1.0
    return Samples.of([{"x": x}])


def noisy():
    graph = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])],
        "noisy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("safety", ["exact", "rounding"])
@pytest.mark.parametrize("build", [conv_bn_relu, mlp])
def test_a_clone_is_equivalent(build, safety):
    model = Model.from_proto(build())
    found = check(model, model.clone(), safety)
    assert found.passed is True
    assert found.max_relative == 0.0


def test_one_last_bit_breaks_exact_but_not_rounding():
    proto = mlp()
    model, moved = Model.from_proto(proto), with_scaled_weight(proto, 1 + 2**-23)
    assert check(model, moved, "exact").passed is False
    rounded = check(model, moved)
    assert rounded.passed is True
    assert 0 < rounded.max_relative <= rounded.bound


def test_a_change_of_a_thousandth_breaks_rounding_with_the_numbers():
    proto = mlp()
    found = check(Model.from_proto(proto), with_scaled_weight(proto, 1.001))
    assert found.passed is False
    assert found.bound == pytest.approx(max(1e-5, 4 * found.own_noise))
    assert found.max_relative > found.bound
    assert found.output in found.message
    assert "synthetic" in found.message


def test_flipped_near_ties_are_compared_ahead_of_the_argmax():
    found = check(classifier(), perturbed_classifier(), feeds=near_ties())
    assert found.passed is True
    assert found.ahead == ("logits",)


def test_flipped_ids_with_moved_logits_fail():
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    found = check(classifier(), classifier(scale=-1.0), feeds=Samples.of([{"x": x}]))
    assert found.passed is False
    assert found.output == "logits"


def test_a_change_behind_the_argmax_is_not_excused_by_equal_logits():
    found = check(classifier(), classifier(shift=1), feeds=near_ties())
    assert found.passed is False
    assert found.output == "ids"
    assert pairs_ahead(classifier(), classifier(shift=1), "ids") == ()


def test_no_discontinuity_means_nothing_to_compare_ahead():
    model = Model.from_proto(mlp())
    assert pairs_ahead(model, model.clone(), model.interface.outputs[0].name) == ()


@pytest.mark.parametrize("safety", ["exact", "rounding"])
def test_a_random_source_cannot_be_validated(safety):
    model = noisy()
    found = check(model, model.clone(), safety, Samples.of([{"x": np.ones(4, np.float32)}]))
    assert found.passed is None
    assert "run to run" in found.message


def test_a_source_that_does_not_open_is_not_validated_and_says_why():
    graph = helper.make_graph(
        [helper.make_node("Quant", ["x"], ["y"], domain="nobody.knows")],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody.knows", 1)]
    model = Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    found = check(model, model.clone(), feeds=Samples.of([{"x": np.ones(2, np.float32)}]))
    assert found.passed is None
    assert "nobody.knows" in found.message
    prepared = prepare_feeds(model, None, seed=0, target=TARGET)
    assert prepared.feeds is None
    assert "nobody.knows" in prepared.reason


def test_a_lost_output_is_an_error():
    proto = mlp()
    renamed = onnx.ModelProto()
    renamed.CopyFrom(proto)
    old = renamed.graph.output[0].name
    renamed.graph.node.append(helper.make_node("Identity", [old], ["other"]))
    renamed.graph.output[0].name = "other"
    model = Model.from_proto(proto)
    with pytest.raises(RuntimeFailure) as failure:
        check(model, Model.from_proto(renamed))
    assert failure.value.code == "GO-605"


def test_no_feed_is_an_error():
    model = Model.from_proto(mlp())
    with pytest.raises(SampleError):
        check_equivalence(model, model, Samples.of([]), safety="exact", target=TARGET)


def test_bits_decide_identity_and_nan_payloads_do_not():
    one = np.array([0.0, np.nan, np.inf], np.float32)
    other = one.copy()
    other.view(np.uint32)[1] ^= 1
    assert identical(one, other)
    assert not identical(one, np.array([-0.0, np.nan, np.inf], np.float32))
    assert not identical(one, one.astype(np.float64))
    assert identical(np.array(["a"], object), np.array(["a"], object))


def cancelling(offset):
    """Conv → BatchNormalization where the mean takes back an offset of the convolution: what is rounded in between
    depends on whether the runtime folds the two."""
    weight = np.random.default_rng(0).normal(size=(1, 8, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "offset"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "one", "zero", "offset", "one"], ["y"]),
    ]
    values = {"w": weight, "offset": [offset], "one": [1.0], "zero": [0.0]}
    graph = helper.make_graph(
        nodes,
        "cancelling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 16, 16])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_the_bound_follows_the_sources_own_noise():
    calm, wild = cancelling(0.0), cancelling(1e4)
    assert check(calm, calm.clone()).bound == 1e-5
    found = check(wild, wild.clone())
    assert found.own_noise > 1e-5
    assert found.bound == pytest.approx(4 * found.own_noise)
