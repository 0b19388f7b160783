"""Raising the opset: every adapter gives the same numbers in onnxruntime before and after."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.model.model import Model
from graphopt.model.opset import NEWEST
from graphopt.model.opset_adapters import ADAPTERS

from .probes import model_of, value, with_functions

X4 = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)
X2 = X4.reshape(4, 36)


def run(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


def single(
    op: str, opset: int, x: np.ndarray = X4, weights: dict[str, np.ndarray] | None = None, **attributes: object
) -> onnx.ModelProto:
    weights = weights or {}
    node = helper.make_node(op, ["x", *weights], ["y"], name="n", **attributes)
    return model_of(
        [node],
        [value("x", list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        opset=opset,
        ir_version=4,
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )


def several_outputs(op: str, opset: int, kinds: list[int], x: np.ndarray = X4, **attributes: object) -> onnx.ModelProto:
    names = [f"y{i}" for i in range(len(kinds))]
    node = helper.make_node(op, ["x"], names, name="n", **attributes)
    outputs = [helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)]
    return model_of([node], [value("x", list(x.shape))], outputs, opset=opset, ir_version=4)


F, INT = TensorProto.FLOAT, TensorProto.INT64
ones = np.ones(4, np.float32)
BN = {"scale": ones * 2, "bias": ones, "mean": ones / 2, "var": ones * 3}

REDUCTIONS = [op for op, version in ADAPTERS if op.startswith("Reduce") and version == 18]

CASES: dict[str, onnx.ModelProto] = {
    "batch norm 7": single("BatchNormalization", 7, weights=BN, spatial=1),
    "batch norm 9": single("BatchNormalization", 9, weights=BN, epsilon=1e-3),
    "clip both": single("Clip", 7, min=-0.5, max=0.5),
    "clip low": single("Clip", 10, min=0.0),
    "clip none": single("Clip", 10),
    "dropout 7": single("Dropout", 7, ratio=0.3),
    "dropout 10": single("Dropout", 10),
    "pad constant": single("Pad", 7, pads=[0, 0, 1, 2, 0, 0, 3, 4], value=1.5),
    "pad reflect": single("Pad", 10, pads=[0, 0, 1, 2, 0, 0, 1, 2], mode="reflect"),
    "slice": single("Slice", 9, starts=[1, 0], ends=[-1, 3], axes=[2, 3]),
    "slice without axes": single("Slice", 7, starts=[0, 1], ends=[1, 9999]),
    "split sizes": several_outputs("Split", 11, [F, F], axis=1, split=[1, 3]),
    "split evenly": several_outputs("Split", 11, [F, F], axis=-1),
    "squeeze": single("Squeeze", 11, axes=[0]),
    "squeeze all": single("Squeeze", 9),
    "unsqueeze": single("Unsqueeze", 11, axes=[0, -1]),
    "reduce sum": single("ReduceSum", 11, axes=[1, -1], keepdims=0),
    "reduce sum all": single("ReduceSum", 9),
    "top k": several_outputs("TopK", 7, [F, INT], k=2, axis=1),
    "top k default axis": several_outputs("TopK", 9, [F, INT], k=3),
    "upsample nearest": single("Upsample", 7, scales=[1.0, 1.0, 2.0, 3.0]),
    "upsample linear": single("Upsample", 7, mode="linear", scales=[1.0, 1.0, 2.0, 2.0]),
    "upsample 9": single("Upsample", 9, weights={"s": np.array([1, 1, 2, 1.5], np.float32)}),
    "resize 10 nearest up": single("Resize", 10, weights={"s": np.array([1, 1, 2, 2.5], np.float32)}),
    "resize 10 nearest down": single("Resize", 10, weights={"s": np.array([1, 1, 0.5, 0.4], np.float32)}),
    "resize 10 linear": single("Resize", 10, weights={"s": np.array([1, 1, 1.7, 0.6], np.float32)}, mode="linear"),
    "softmax default": single("Softmax", 11),
    "softmax last": single("Softmax", 9, axis=3),
    "softmax of a matrix": single("Softmax", 7, X2),
    "log softmax": single("LogSoftmax", 11, axis=2),
    "hardmax": single("Hardmax", 11, axis=1),
    "gemm": single("Gemm", 7, X2, {"b": np.ones((36, 3), np.float32), "c": np.ones(3, np.float32)}),
    "max pool": single("MaxPool", 7, kernel_shape=[2, 2], strides=[2, 2]),
    "average pool": single("AveragePool", 7, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "lp pool": single("LpPool", 7, kernel_shape=[2, 2]),
    "depth to space": single("DepthToSpace", 7, blocksize=2),
    "flatten": single("Flatten", 7, axis=2),
    "arg max": several_outputs("ArgMax", 7, [INT], axis=1),
    "lrn": single("LRN", 7, size=3),
    "prelu": single("PRelu", 7, weights={"s": np.full((4, 1, 1), 0.1, np.float32)}),
    **{op: single(op, 13, np.abs(X4) + 1, axes=[1, 2], keepdims=1) for op in REDUCTIONS},
}


@pytest.mark.parametrize("target", [13, 17, 18, NEWEST])
@pytest.mark.parametrize("case", CASES)
def test_numbers_stay_the_same(case: str, target: int) -> None:
    source = CASES[case]
    x = X2 if len(source.graph.input[0].type.tensor_type.shape.dim) == 2 else X4
    expected = run(source, {"x": x})
    for output, array in zip(source.graph.output, expected, strict=True):
        output.CopyFrom(helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, array.shape))
    model = Model.from_proto(source)
    before = model.interface
    if target <= model.opset:
        assert model.raise_opset(target) == ()
        return
    notes = model.raise_opset(target)
    assert any(f"raised to {target}" in note for note in notes)
    assert model.opset == target
    assert model.interface == before
    written = model.to_proto()
    onnx.checker.check_model(written, full_check=True)
    for old, new in zip(expected, run(written, {"x": x}), strict=True):
        np.testing.assert_allclose(new, old, rtol=2e-6, atol=1e-6)


def test_scatter_becomes_scatter_elements() -> None:
    weights = {"i": np.array([[1, 0]], np.int64), "u": np.ones((1, 2), np.float32)}
    source = single("Scatter", 9, X2, weights, axis=1)
    model = Model.from_proto(source)
    model.raise_opset(13)
    assert model.editor.nodes()[0].op == "ScatterElements"
    np.testing.assert_array_equal(run(source, {"x": X2})[0], run(model.to_proto(), {"x": X2})[0])


def test_grid_sample_and_roi_align_keep_their_meaning() -> None:
    grid = np.random.default_rng(1).uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)
    rois = {"r": np.array([[0.3, 0.4, 4.1, 5.2]], np.float32), "b": np.zeros(1, np.int64)}
    for source in (
        single("GridSample", 16, weights={"g": grid}, mode="bicubic"),
        single("GridSample", 16, weights={"g": grid}),
        single("RoiAlign", 10, weights=rois, output_height=2, output_width=2),
    ):
        model = Model.from_proto(source)
        model.raise_opset(20)
        np.testing.assert_allclose(run(source, {"x": X4})[0], run(model.to_proto(), {"x": X4})[0], rtol=1e-6)


def test_dft_keeps_its_axis() -> None:
    x = X4[..., :1]
    source = single("DFT", 17, x, axis=2)
    model = Model.from_proto(source)
    model.raise_opset(20)
    np.testing.assert_allclose(run(source, {"x": x})[0], run(model.to_proto(), {"x": x})[0], rtol=1e-5, atol=1e-5)


REFUSED: dict[str, onnx.ModelProto] = {
    "statistics per element": single("BatchNormalization", 7, weights=BN, spatial=0),
    "computed scales": model_of(
        [helper.make_node("Resize", ["x", "s"], ["y"], name="n")],
        [value("x", [1, 4, 6, 6]), value("s", [4])],
        [helper.make_tensor_value_info("y", F, None)],
        opset=10,
        ir_version=4,
    ),
    "up and down": single("Resize", 10, weights={"s": np.array([1, 1, 2, 0.5], np.float32)}),
    "half pixel for nn": single(
        "Resize",
        11,
        weights={"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)},
        coordinate_transformation_mode="tf_half_pixel_for_nn",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_newer_form_is_refused_by_name(case: str) -> None:
    with pytest.raises(ModelError) as caught:
        Model.from_proto(REFUSED[case]).raise_opset(13)
    assert caught.value.code == "GO-305"
    assert "'n'" in str(caught.value)


def test_opsets_out_of_reach_are_refused() -> None:
    with pytest.raises(ModelError) as caught:
        Model.from_proto(single("Relu", 6)).raise_opset(13)
    assert caught.value.code == "GO-305"
    with pytest.raises(ModelError):
        Model.from_proto(single("Relu", 13)).raise_opset(NEWEST + 1)


def test_a_function_with_an_older_body_is_refused() -> None:
    model = with_functions()
    model.opset_import[0].version = 12
    for function in model.functions:
        function.opset_import[0].version = 12
    with pytest.raises(ModelError, match="function"):
        Model.from_proto(model).raise_opset(13)


def test_bodies_are_raised_too() -> None:
    body = [
        helper.make_graph([helper.make_node("Squeeze", ["x"], [n], axes=[0])], n, [], [value(n, [4])]) for n in "ab"
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=body[0], else_branch=body[1])
    condition = numpy_helper.from_array(np.array(True), "c")
    source = model_of([node], outputs=[value("y", [4])], opset=11, ir_version=4, initializer=[condition])
    model = Model.from_proto(source)
    model.raise_opset(17)
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(run(source, {"x": x})[0], run(model.to_proto(), {"x": x})[0])


def test_raising_ir3_keeps_initializers_constant() -> None:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    source = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x"), value("w", [4])],
        initializer=[weight],
        opset=8,
        ir_version=3,
    )
    model = Model.from_proto(source)
    model.raise_opset(17)
    assert model.ir_version >= 8
    assert [i.name for i in model.to_proto().graph.input] == ["x"]
    assert model.interface.overridable == ()


def test_every_adapter_is_exercised() -> None:
    ops = {node.op_type for model in [*CASES.values(), *REFUSED.values()] for node in model.graph.node}
    untested = {op for op, _ in ADAPTERS} - ops - {"Scatter", "GridSample", "RoiAlign", "DFT"}
    assert untested == {"Scan", "GroupNormalization"}


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_an_empty_dimension_stays_one_where_axes_were_one(op: str) -> None:
    node = helper.make_node(op, ["x"], ["y"], name="n", axis=1)
    dynamic = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "c", "d"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    proto = model_of([node], [dynamic], [output], opset=11, ir_version=6)
    model = Model.from_proto(proto)
    model.raise_opset(20)
    raised = model.to_proto()
    for size in ((2, 3, 4), (0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0)):
        feed = {"x": np.ones(size, np.float32)}
        (before,), (after,) = run(proto, feed), run(raised, feed)
        assert after.shape == before.shape == size
        assert np.array_equal(before, after)
