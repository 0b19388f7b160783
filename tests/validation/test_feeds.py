import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.data.samples import Samples
from graphopt.errors import SampleError
from graphopt.model.model import Model
from graphopt.runtime.target import Target
from graphopt.validation.equivalence import check_equivalence
from graphopt.validation.feeds import PICTURE_SIZE, SIZES, index_bounds, prepare_feeds

TARGET = Target()


def model_of(nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def needs(size, shape=("batch", "width")):
    """Runs only if the last dimension is a multiple of ``size``."""
    return model_of(
        [helper.make_node("Reshape", ["x", "form"], ["y"])],
        [("x", TensorProto.FLOAT, list(shape))],
        [("y", TensorProto.FLOAT)],
        [("form", np.array([-1, size], np.int64))],
    )


def embedding(rows=7):
    return model_of(
        [
            helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "wide"], ["y"]),
        ],
        [("ids", TensorProto.INT32, ["n", "s"])],
        [("y", TensorProto.FLOAT)],
        [("table", np.ones((rows, 3), np.float32))],
    )


def prepare(model, samples=None, **more):
    return prepare_feeds(model, samples, seed=0, target=TARGET, **more)


def test_sizes_are_tried_in_order_until_the_model_runs():
    found = prepare(needs(48))
    assert found.shapes == {"x": (1, 48)}
    assert found.tried == SIZES[: SIZES.index(48) + 1]
    assert found.feeds.synthetic


def test_if_nothing_runs_the_reason_lists_the_sizes_and_the_way_out():
    found = prepare(needs(997))
    assert found.feeds is None
    assert "32, 64, 48" in found.reason
    assert "--dim" in found.reason
    assert "--data" in found.reason


def test_dims_and_shapes_win_over_guessing():
    assert prepare(needs(997), dims={"width": 997}).shapes == {"x": (1, 997)}
    assert prepare(needs(997), shapes={"x": (3, 997)}).shapes == {"x": (3, 997)}


def test_an_unnamed_dimension_is_set_by_input_and_axis():
    assert prepare(needs(997, (None, None)), dims={"x.1": 997}).shapes == {"x": (1, 997)}


@pytest.mark.parametrize("wrong", [{"dims": {"widht": 997}}, {"shapes": {"z": (1, 2)}}, {"shapes": {"x": (1, 2, 3)}}])
def test_a_dimension_or_shape_that_fits_no_input_is_refused(wrong):
    with pytest.raises(SampleError) as refused:
        prepare(needs(997), **wrong)
    assert refused.value.code == "GO-402"


def test_pictures_of_dynamic_size_start_larger():
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [("y", TensorProto.FLOAT)],
    )
    assert prepare(model).shapes == {"x": (1, 3, PICTURE_SIZE, PICTURE_SIZE)}


def test_real_samples_are_kept_and_checked():
    good = Samples.of([{"x": np.ones((1, 48), np.float32)}])
    assert prepare(needs(48), good).feeds is good
    bad = Samples.of([{"x": np.ones((1, 47), np.float32)}])
    assert prepare(needs(48), bad).feeds is None


def test_indices_stay_inside_the_table_behind_a_cast():
    model = embedding(rows=7)
    assert index_bounds(model) == {"ids": (0, 6)}
    feeds = prepare(model, count=4).feeds
    assert max(int(feed["ids"].max()) for feed in feeds) <= 6
    assert min(int(feed["ids"].min()) for feed in feeds) >= 0


def test_one_hot_bounds_its_indices_by_its_depth():
    model = model_of(
        [helper.make_node("OneHot", ["bytes", "depth", "values"], ["y"])],
        [("bytes", TensorProto.INT32, [1, 16])],
        [("y", TensorProto.FLOAT)],
        [("depth", np.array(257, np.int64)), ("values", np.array([0, 1], np.float32))],
    )
    assert index_bounds(model) == {"bytes": (0, 256)}


def test_the_smallest_table_bounds_an_input_that_indexes_two():
    model = model_of(
        [
            helper.make_node("Gather", ["big", "ids"], ["a"]),
            helper.make_node("Gather", ["small", "ids"], ["b"], axis=1),
        ],
        [("ids", TensorProto.INT64, [4])],
        [("a", TensorProto.FLOAT), ("b", TensorProto.FLOAT)],
        [("big", np.ones((50, 2), np.float32)), ("small", np.ones((2, 5), np.float32))],
    )
    assert index_bounds(model) == {"ids": (0, 4)}


def test_integers_that_index_nothing_have_no_bounds():
    model = model_of(
        [helper.make_node("Add", ["n", "n"], ["y"])], [("n", TensorProto.INT64, [3])], [("y", TensorProto.INT64)]
    )
    assert index_bounds(model) == {}


def test_feeds_depend_on_the_seed_alone():
    model = needs(32)
    again = prepare(model).feeds.fingerprint
    assert prepare(model).feeds.fingerprint == again
    assert prepare_feeds(model, None, seed=1, target=TARGET).feeds.fingerprint != again


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        # A recurrent state whose unnamed middle dimension is the batch, and a window that only some sizes fit.
        ("odd/silero_vad_if_lstm.onnx", {"input": (1, 128), "state": (2, 1, 128), "sr": ()}),
        ("odd/espcn.onnx", None),
        ("odd/swift_f0_scalars.onnx", None),
        ("odd/plcmos_gru.onnx", None),
        ("magika/model.onnx", {"bytes": (1, 2048)}),
        ("mnist_opset8/model.onnx", None),
        ("ppocr_v4_rec/model.onnx", None),
    ],
)
def test_real_models_run_on_what_is_made_up(shared, name, shapes):
    model = Model.open(shared / "models" / name)
    found = prepare(model)
    assert found.feeds is not None, found.reason
    assert shapes is None or found.shapes == shapes


@pytest.mark.shared
def test_a_model_with_an_unknown_operator_has_no_feeds_but_a_reason(shared):
    found = prepare(Model.open(shared / "models" / "odd" / "unknown_domain.onnx"))
    assert found.feeds is None
    assert "onnx.brevitas" in found.reason


@pytest.mark.shared
def test_the_text_detectors_own_noise_stays_small_at_the_first_size(shared):
    """At 32 pixels it was measured as 0.14 of the output, which would make the check worthless."""
    model = Model.open(shared / "models" / "ppocr_v4_det" / "model.onnx")
    feeds = prepare(model).feeds
    found = check_equivalence(model, model.clone(), feeds, safety="rounding", target=TARGET)
    assert found.passed
    assert found.own_noise < 1e-2


def test_a_picture_of_unknown_channels_takes_them_from_the_first_weight() -> None:
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1] * 4)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "C", "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    prepared = prepare_feeds(Model.from_proto(proto), None, seed=0, target=Target())
    assert prepared.feeds is not None, prepared.reason
    assert prepared.shapes["x"][:2] == (1, 3)


def test_inputs_too_large_to_make_up_are_said_to_be():
    huge = model_of(
        [helper.make_node("Relu", ["x"], ["y"])], [("x", TensorProto.FLOAT, [2**40])], [("y", TensorProto.FLOAT)]
    )
    found = prepare_feeds(huge, None, seed=0, target=TARGET)
    assert found.feeds is None
    assert "more than 67,108,864 elements are not made up; give real samples" in found.reason
    assert "tried" not in found.reason and "--dim" not in found.reason


def test_inputs_that_are_no_tensors_are_answered_with_a_function():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["s"], ["n"])],
        "g",
        [sequence],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    reason = prepare_feeds(model, None, seed=0, target=TARGET).reason
    assert "input 's' (sequence); give real samples with --data MODULE:FUNCTION" in reason
    assert "--dim" not in reason
