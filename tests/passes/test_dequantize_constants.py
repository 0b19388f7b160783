"""The pass `dequantize-constants`."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.model.model import Model
from graphopt.passes.dequantize_constants import DequantizeConstants, dequantized
from graphopt.pipeline.contract import PassResult
from graphopt.runtime.target import Target
from graphopt.testing import check_pass, formats
from graphopt.testing.draft import Draft
from graphopt.testing.trial import default_samples, run_once
from graphopt.validation.equivalence import check_equivalence

RANGES = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-9999, 9999),
    "int4": (-8, 7),
    "uint4": (0, 15),
}
ONNX_TYPE = {name: getattr(TensorProto, name.upper()) for name in RANGES}


def folded(proto: onnx.ModelProto, **options: Any) -> tuple[Model, PassResult]:
    """Run the pass and tidy up, as the manager would."""
    source = Model.from_proto(proto)
    trial = run_once(DequantizeConstants, DequantizeConstants.Options(**options), source, default_samples(source))
    assert trial.result is not None, trial.fault
    return trial.candidate, trial.result


def ops(model: Model) -> list[str]:
    return [node.op for node in model.editor.nodes()]


def weight_only(*, granularity: str = "axis", kind: str = "int8", opset: int = 21) -> onnx.ModelProto:
    """A MatMul of a float input by a weight ``[8, 6]`` behind DequantizeLinear."""
    draft = Draft(0, opset=opset, ir_version=10)
    x = draft.input("input", [2, 8])
    low, high = RANGES[kind]
    value = draft.rng.integers(low, high + 1, (8, 6))
    shape: tuple[int, ...] = {"tensor": (), "axis": (6,), "block": (2, 6)}[granularity]
    draft.initializers.append(helper.make_tensor("weight.q", ONNX_TYPE[kind], (8, 6), value.ravel().tolist()))
    scale = draft.const("weight.scale", draft.rng.uniform(0.01, 0.02, shape).astype(np.float32))
    zero = np.zeros(shape, np.int64) if kind == "int32" else draft.rng.integers(low, high + 1, shape)
    draft.initializers.append(helper.make_tensor("weight.zero", ONNX_TYPE[kind], shape, np.ravel(zero).tolist()))
    words: dict[str, Any] = {"tensor": {}, "axis": {"axis": 1}, "block": {"axis": 0, "block_size": 4}}[granularity]
    weight = draft.node("DequantizeLinear", ["weight.q", scale, "weight.zero"], "weight", **words)
    draft.node("MatMul", [x, weight], "output")
    draft.output("output", [2, 6])
    return draft.model("weight_only")


def in_onnxruntime(
    quantized: Any, scale: Any, zero: Any, axis: int, block: int, kind: str, float_type: int = TensorProto.FLOAT
) -> Any:
    """What onnxruntime's DequantizeLinear gives."""
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis, block_size=block)
    tensors = [
        helper.make_tensor("q", ONNX_TYPE[kind], quantized.shape, np.ravel(quantized).tolist()),
        helper.make_tensor("s", float_type, scale.shape, np.ravel(scale).astype(np.float64).tolist()),
        helper.make_tensor("z", ONNX_TYPE[kind], zero.shape, np.ravel(zero).tolist()),
    ]
    graph = helper.make_graph([node], "one", [], [helper.make_tensor_value_info("y", float_type, None)], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {})[0]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(
    kind=st.sampled_from(sorted(RANGES)),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    granularity=st.sampled_from(["tensor", "axis", "block"]),
    half=st.booleans(),
    data=st.data(),
)
def test_the_bits_are_onnxruntimes_own(kind: str, shape: list[int], granularity: str, half: bool, data: Any) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = [2, *shape] if granularity == "block" else shape  # of rank 1, scales count as per axis
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    block = data.draw(st.integers(1, shape[axis])) if granularity == "block" else 0
    low, high = RANGES[kind]
    quantized = rng.integers(low, high + 1, shape)
    form: tuple[int, ...] = () if granularity == "tensor" else (shape[axis],)
    if granularity == "block":
        form = tuple(-(-n // block) if i == axis % len(shape) else n for i, n in enumerate(shape))
    scale = rng.uniform(1e-3, 1.0, form).astype(np.float16 if half else np.float32)
    zero = np.zeros(form, np.int64) if kind == "int32" else rng.integers(low, high + 1, form)
    found = dequantized(quantized, np.asarray(scale), np.asarray(zero), axis, block)
    try:
        expected = in_onnxruntime(
            quantized, np.asarray(scale), np.asarray(zero), axis, block, kind,
            TensorProto.FLOAT16 if half else TensorProto.FLOAT,
        )  # fmt: skip
    except Exception as error:
        assert "NOT_IMPLEMENTED" in str(error) or "not supported" in str(error).lower(), error
        return
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", sorted(RANGES))
@pytest.mark.parametrize("granularity", ["tensor", "axis", "block"])
def test_a_weight_in_front_of_a_float_layer_is_folded(kind: str, granularity: str) -> None:
    source = weight_only(granularity=granularity, kind=kind)
    model, result = folded(source)
    assert ops(model) == ["MatMul"]
    assert [v.name for v in model.to_proto().graph.initializer] == ["weight.q_float"]
    found = check_equivalence(
        Model.from_proto(source), model, default_samples(model), safety="rounding", target=Target()
    )
    assert found.passed, found.message
    assert result.summary["file_bytes_before"] == Model.from_proto(source).file_size
    assert result.summary["file_bytes_after"] == model.file_size


def test_what_is_bfloat16_stays_bfloat16() -> None:
    scale = np.array([0.5, 0.3], ml_dtypes.bfloat16)
    found = dequantized(np.array([[3, 5]], np.int8), scale, None, 1, 0)
    assert found.dtype == scale.dtype
    assert found.astype(np.float32).tolist() == [[1.5, np.float32(ml_dtypes.bfloat16(5 * np.float32(scale[1])))]]


def test_a_layer_whose_activations_are_quantized_is_left_in_integers() -> None:
    _, result = folded(formats.quantized())
    assert not result.modified
    assert [skip.where for skip in result.skipped] == ["conv.weight/DequantizeLinear"]
    assert "its activations are quantized too" in result.skipped[0].reason


def test_a_weight_moved_before_an_integer_layer_is_left_too() -> None:
    draft = Draft(0)
    x = draft.input("input", [2, 8])
    scale, zero = draft.const("scale", np.array(0.1, np.float32)), draft.const("zero", np.array(0, np.int8))
    x = draft.node("DequantizeLinear", [draft.node("QuantizeLinear", [x, scale, zero], "q"), scale, zero], "dq")
    weight = draft.const("weight.q", np.ones((6, 8), np.int8))
    weight = draft.node("DequantizeLinear", [weight, scale, zero], "weight")
    draft.node("MatMul", [x, draft.node("Transpose", [weight], "turned", perm=[1, 0])], "output")
    draft.output("output", [2, 6])
    assert not folded(draft.model("moved"))[1].modified


def test_a_table_whose_rows_go_on_in_integers_is_left() -> None:
    draft = Draft(0)
    ids = draft.input("ids", [3], TensorProto.INT64)
    scale, zero = draft.const("scale", np.array(0.1, np.float32)), draft.const("zero", np.array(0, np.int8))
    table = draft.node("DequantizeLinear", [draft.const("t", np.ones((5, 4), np.int8)), scale, zero], "table")
    row = draft.node("QuantizeLinear", [draft.node("Gather", [table, ids], "row"), scale, zero], "row.q")
    draft.node("DequantizeLinear", [row, scale, zero], "output")
    draft.output("output", [3, 4])
    assert not folded(draft.model("table"))[1].modified


def test_scales_that_are_computed_and_weights_that_are_outputs_stay() -> None:
    draft = Draft(0)
    scale = draft.input("scale", [])
    weight, zero = draft.const("w", np.ones((2, 3), np.int8)), draft.const("zero", np.array(0, np.int8))
    step = draft.const("step", np.array(0.5, np.float32))
    draft.node("DequantizeLinear", [weight, scale, zero], "computed")
    draft.node("Relu", ["computed"], "output")
    draft.node("DequantizeLinear", [weight, step, zero], "shown")
    draft.output("output", [2, 3])
    draft.output("shown", [2, 3])
    _, result = folded(draft.model("stay"))
    assert not result.modified
    assert [skip.reason for skip in result.skipped] == [
        "its scale or zero point is not constant",
        "it is a graph output",
    ]


def test_selection() -> None:
    assert not folded(weight_only(), skip=("op:DequantizeLinear",))[1].modified


@pytest.mark.parametrize("granularity", ["tensor", "axis", "block"])
def test_conformance_where_there_is_work(granularity: str) -> None:
    check_pass(DequantizeConstants, models=[weight_only(granularity=granularity)])
