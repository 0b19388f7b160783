"""What is written, and what onnxruntime makes of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.model.model import Model
from graphopt.passes.quantize.emit import emit
from graphopt.passes.quantize.fused import fusing
from graphopt.passes.quantize.plan import Plan
from graphopt.passes.quantize.units import HEAVY, Kind, find_units
from graphopt.passes.quantize.verify import check_fusions, loaded_kernels, written_kernels
from graphopt.runtime.optimized import optimized_ops
from graphopt.runtime.target import Target
from graphopt.testing import builders
from graphopt.testing.draft import Draft
from graphopt.testing.formats import dynamic_dims
from graphopt.testing.trial import default_samples
from tests.passes.quantize.harness import feeds, ops, plan_of, simplified, sqnr

BUILDERS = [
    builders.conv_bn_relu,
    builders.residual,
    builders.depthwise,
    builders.mlp,
    builders.matmul_add,
    builders.attention,
    builders.concat,
    builders.squeeze_excite,
    builders.conv_transpose,
    builders.flatten_gemm,
    dynamic_dims,
]


def written(model: Model, plan: Plan | None = None) -> Model:
    candidate = model.clone()
    emit(candidate, plan or plan_of(model))
    return candidate


@pytest.mark.parametrize("build", BUILDERS)
def test_every_kernel_that_is_written_is_loaded_and_the_outputs_hold(build: Callable[[int], onnx.ModelProto]) -> None:
    model = simplified(build(0))
    candidate = written(model)
    check_fusions(candidate, Target())
    assert sum(written_kernels(candidate).values()) == sum(u.kind in HEAVY for u in find_units(model).all)
    assert sqnr(model, candidate, feeds(model)) > 22
    assert sqnr(candidate, candidate, feeds(model), "none") > 30  # optimized against not


@pytest.mark.parametrize("build", BUILDERS)
def test_all_units_at_once_open_and_run(build: Callable[[int], onnx.ModelProto]) -> None:
    model = simplified(build(0))
    every = frozenset(unit.name for unit in find_units(model).all)
    assert sqnr(model, written(model, plan_of(model, every)), feeds(model)) > 12


@pytest.mark.parametrize("left_out", ["inner.conv", "back.conv", "stem.conv"])
def test_a_convolution_that_is_left_float_stays_float(left_out: str) -> None:
    model = simplified(builders.residual(0))
    units = find_units(model).named()
    name = next(n for n in units if n.startswith(left_out))
    candidate = written(model, plan_of(model, frozenset(units) - {name}))
    check_fusions(candidate, Target())
    whole = loaded_kernels(written(model), Target())["Conv"]
    assert loaded_kernels(candidate, Target())["Conv"] == whole - 1


def picture(draft: Draft, *operators: tuple[str, dict[str, object]]) -> Model:
    """Convolution, the operators in a row, convolution."""
    x = draft.conv(draft.input("input", [1, 4, 8, 8]), "before", 4, 16, bias=True)
    for index, (op, attributes) in enumerate(operators):
        x = draft.node(op, [x], f"middle{index}", **attributes)
    draft.conv(x, "after", 16, 16, bias=True)
    draft.head("after", 16)
    return Model.from_proto(draft.model("picture"))


@pytest.mark.parametrize(
    ("op", "attributes", "kernel"),
    [
        ("HardSwish", {}, "com.microsoft:QLinearMul"),
        ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}, "com.microsoft:QLinearAdd"),
        ("Sigmoid", {}, "com.microsoft:QLinearSigmoid"),
        ("LeakyRelu", {"alpha": 0.1}, "com.microsoft:QLinearLeakyRelu"),
        ("AveragePool", {"kernel_shape": [2, 2], "dilations": [1, 1]}, "com.microsoft:QLinearAveragePool"),
    ],
)
def test_operators_between_convolutions_become_integer_kernels(op: str, attributes: dict, kernel: str) -> None:
    draft = Draft(1, opset=19)
    model = picture(draft, (op, attributes))
    candidate = written(model)
    assert optimized_ops(candidate)[kernel] == 1
    assert "DequantizeLinear" not in optimized_ops(candidate)
    assert sqnr(model, candidate, feeds(model)) > 25


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("Transpose", {"perm": [0, 1, 3, 2]})],
)
def test_movements_work_on_the_codes(op: str, attributes: dict) -> None:
    draft = Draft(1)
    candidate = written(picture(draft, (op, attributes)))
    node = next(n for n in candidate.editor.nodes() if n.op == op)
    assert candidate.dtype_of(node.outputs[0]) == np.uint8
    check_fusions(candidate, Target())


def test_a_pad_puts_the_zero_point_around_the_codes() -> None:
    draft = Draft(1)
    x = draft.conv(draft.input("input", [1, 4, 8, 8]), "before", 4, 16, bias=True)
    pads = draft.const("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    draft.conv(draft.node("Pad", [x, pads], "padded"), "after", 16, 16)
    draft.head("after", 16)
    model = Model.from_proto(draft.model("pad"))
    candidate = written(model)
    pad = next(n for n in candidate.editor.nodes() if n.op == "Pad")
    quantize = candidate.editor.producer(pad.inputs[0])
    assert quantize is not None and quantize.op == "QuantizeLinear"
    zero = candidate.editor.constant(pad.inputs[2])
    assert zero is not None and 0 < zero == candidate.editor.constant(quantize.inputs[2])
    assert sqnr(model, candidate, feeds(model)) > 30


def test_a_product_with_a_positive_scalar_costs_no_node() -> None:
    draft = Draft(1)
    x = draft.conv(draft.input("input", [1, 4, 8, 8]), "before", 4, 16, bias=True)
    scaled = draft.node("Mul", [x, draft.const("factor", np.array(0.25, np.float32))], "scaled")
    draft.conv(scaled, "after", 16, 16)
    draft.head("after", 16)
    model = Model.from_proto(draft.model("scalar"))
    candidate = written(model)
    assert "Mul" not in ops(candidate)
    assert sqnr(model, candidate, feeds(model)) > 30


def test_hard_swish_in_pieces_spends_no_codes_on_what_its_gate_closes() -> None:
    draft = Draft(1)
    x = draft.conv(draft.input("input", [1, 4, 8, 8]), "before", 4, 16, bias=True)
    names = {"three": 3.0, "low": 0.0, "high": 6.0, "six": 6.0}
    for name, value in names.items():
        draft.const(name, np.array(value, np.float32))
    big = draft.node("Mul", [x, draft.const("large", np.full((1, 16, 1, 1), 8, np.float32))], "big")
    gate = draft.node("Clip", [draft.node("Add", [big, "three"], "shifted"), "low", "high"], "gate")
    draft.conv(draft.node("Div", [draft.node("Mul", [big, gate], "product"), "six"], "swish"), "after", 16, 16)
    draft.head("after", 16)
    model = Model.from_proto(draft.model("pieces"))
    plan = plan_of(model)
    assert plan.ranges["big"].low == -3.0 < plan.ranges["big"].high
    assert sqnr(model, written(model, plan), feeds(model)) > 30


def test_a_relu6_is_swallowed() -> None:
    draft = Draft(1)
    x = draft.conv(draft.input("input", [1, 4, 8, 8]), "before", 4, 16, bias=True)
    bounds = [draft.const(name, np.array(value, np.float32)) for name, value in (("low", 0.0), ("high", 6.0))]
    draft.conv(draft.node("Clip", [x, *bounds], "clipped"), "after", 16, 16)
    draft.head("after", 16)
    model = Model.from_proto(draft.model("relu6"))
    loaded = optimized_ops(written(model))
    assert loaded["Clip"] == 0 and loaded["com.microsoft:QLinearConv"] == 2


def test_a_matmul_with_bias_becomes_reshape_gemm_reshape_without_an_output_grid() -> None:
    model = simplified(builders.matmul_add(0))
    candidate = written(model)
    gemm = next(n for n in candidate.editor.nodes() if n.op == "Gemm")
    readers = candidate.editor.consumers(gemm.outputs[0])
    assert [n.op for n in readers] == ["Reshape"]
    assert loaded_kernels(candidate, Target())["Gemm"] == written_kernels(candidate)["Gemm"] >= 1


@pytest.mark.parametrize("transposed", [0, 1])
def test_alpha_and_beta_of_a_gemm_move_into_its_numbers(transposed: int) -> None:
    draft = Draft(2)
    shape = (24, 32) if transposed else (32, 24)
    names = [draft.input("input", [2, 32]), draft.weight("w", *shape, scale=0.2), draft.weight("b", 24, scale=0.1)]
    draft.node("Gemm", names, "output", transB=transposed, alpha=0.5, beta=3.0)
    draft.output("output", [2, 24])
    model = Model.from_proto(draft.model("gemm"))
    candidate = written(model)
    assert loaded_kernels(candidate, Target())["Gemm"] == 1
    assert sqnr(model, candidate, feeds(model)) > 35


@pytest.mark.parametrize("build", [builders.residual, builders.mlp])
def test_biases_stand_on_the_canonical_scale(build: Callable[[int], onnx.ModelProto]) -> None:
    candidate = written(simplified(build(0)))
    editor = candidate.editor
    layers = [n for n in editor.nodes() if n.op in ("Conv", "Gemm") and len(n.inputs) > 2]
    assert layers
    for node in layers:
        sources = [editor.producer(t) for t in node.inputs[:3]]
        scales = [editor.constant(source.inputs[1]) for source in sources if source is not None]
        assert scales[0] is not None and scales[1] is not None
        assert np.array_equal(scales[2], np.float32(scales[0]) * scales[1])


def test_weights_cannot_saturate_the_kernels_of_older_processors() -> None:
    model = simplified(builders.residual(0))
    unit = next(u for u in find_units(model).all if u.kind is Kind.CONV)
    weight = model.editor.constant(unit.head.inputs[1])
    assert weight is not None
    loud = model.clone()
    node = next(n for n in loud.editor.nodes() if n.name == unit.head.name)
    loud.editor.set_constant(node, 1, np.full_like(weight, 0.2))
    candidate = written(loud)
    # Every weight at the same large value is the worst case; with and without fused kernels it comes out the same.
    assert sqnr(candidate, candidate, feeds(loud), "none") > 40


@pytest.mark.parametrize(
    "carriers", [("MaxPool",), ("Transpose",), ("Reshape",), ("Relu",), ("MaxPool", "Dropout", "MaxPool"), ("Dropout",)]
)
def test_values_that_a_branch_captures_do_not_end_the_process(carriers: tuple[str, ...]) -> None:
    """onnxruntime moves a DequantizeLinear behind a MaxPool, Transpose or Reshape, and dies where an If captures it."""
    draft = Draft(0, opset=13)
    x = draft.conv(draft.input("input", [1, 4, 8, 8]), "first", 4, 4, bias=True)
    draft.const("shape", np.array([1, 4, 8, 8], np.int64))
    attributes = {"MaxPool": {"kernel_shape": [3, 3], "pads": [1] * 4}, "Transpose": {"perm": [0, 1, 3, 2]}}
    for place, carrier in enumerate(carriers):
        read = [x, "shape"] if carrier == "Reshape" else [x]
        x = draft.node(carrier, read, f"carried{place}", **attributes.get(carrier, {}))
    draft.input("choice", [], TensorProto.BOOL)
    bodies = []
    for op in ("Neg", "Abs"):
        result = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [1, 4, 8, 8])
        bodies.append(helper.make_graph([helper.make_node(op, [x], [f"{op}_out"])], op, [], [result]))
    y = draft.node("If", ["choice"], "chosen", then_branch=bodies[0], else_branch=bodies[1])
    draft.conv(y, "output", 4, 4, bias=True)
    draft.output("output", [1, 4, 8, 8])
    model = Model.from_proto(draft.model("captured"))
    layers = frozenset(unit.name for unit in find_units(model).all if unit.kind in HEAVY)
    samples = default_samples(model)
    candidate = written(model, plan_of(model, layers, samples=samples))
    data = candidate.to_proto().SerializeToString()
    done = subprocess.run([sys.executable, "-c", OPEN], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-300:]
    assert sqnr(model, candidate, samples) > 20


OPEN = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.stdin.buffer.read())"


def test_a_layer_that_does_not_fuse_leaves_those_that_share_its_weight_alone() -> None:
    draft = Draft(0)
    x, weight = draft.input("input", [64, 32]), draft.weight("weight", 32, 32)
    x = draft.node("Relu", [draft.node("MatMul", [x, weight], "first", name="first")], "relu")
    product = draft.node("MatMul", [x, weight], "product", name="loose")
    draft.node("Add", [product, draft.node("Sin", [x], "sine")], "output")
    draft.output("output", [64, 32])
    model = Model.from_proto(draft.model("loose"))
    plan, dropped = fusing(model, find_units(model), plan_of(model), Target())
    assert (plan.integer, dropped) == ({"first"}, {"loose"})


def test_layers_that_share_a_weight_share_its_codes() -> None:
    draft = Draft(0)
    x, weight = draft.input("input", [4, 16]), draft.weight("weight", 16, 16)
    parts = [draft.node("MatMul", [draft.node("Relu", [x], "pos"), weight], "first")]
    parts.append(draft.node("MatMul", [draft.node("Tanh", [x], "bent"), weight], "second"))
    draft.node("Sub", parts, "output")
    draft.output("output", [4, 16])
    model = Model.from_proto(draft.model("shared"))
    candidate = model.clone()
    emit(candidate, plan_of(model))
    weights = [
        t for t in candidate.to_proto().graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
    ]
    assert len(weights) == 1
    assert sqnr(model, candidate, feeds(model)) > 25
