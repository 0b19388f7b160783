"""Smoothed activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.activations import observe, walk_values
from graphopt.analysis.histogram import ChannelStatistics
from graphopt.model.model import Model
from graphopt.passes.quantize.emit import emit
from graphopt.passes.quantize.placement import settle
from graphopt.passes.quantize.plan import Plan, smoothed_name
from graphopt.passes.quantize.ranges import find_ranges, observed_tensors
from graphopt.passes.quantize.smoothing import LEAST_GAIN, LEAST_REACH, _Noise, find_smoothing, least_noise, smoothed
from graphopt.passes.quantize.units import Kind, Units, find_units
from graphopt.passes.quantize.verify import check_fusions
from graphopt.runtime.target import Target
from tests.passes.quantize.harness import feeds, ops, outliers, sqnr


def channels_of(values: np.ndarray) -> ChannelStatistics:
    found = ChannelStatistics(-1)
    found.update(values.astype(np.float32))
    return found


def layer(seed: int, *, inputs: int = 24, outputs: int = 40, far: float = 30.0) -> tuple[ChannelStatistics, np.ndarray]:
    """Channels of which two reach far, and the weight that reads them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((200, inputs)) * rng.uniform(0.3, 2, inputs)
    values[:, :2] *= far
    return channels_of(values), rng.standard_normal((inputs, outputs)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_no_other_factors_nearby_make_less_noise(seed: int) -> None:
    channels, weight = layer(seed)
    noise = _Noise(channels, weight)
    factors, gain = least_noise(channels, weight)
    least, _ = noise.at(np.log(factors))
    plain, _ = noise.at(np.zeros(len(factors)))
    assert plain / least == pytest.approx(gain)
    rng = np.random.default_rng(seed)
    for size in (0.01, 0.1, 1.0):
        for _ in range(20):
            assert noise.at(np.log(factors) + size * rng.standard_normal(len(factors)))[0] >= 0.98 * least


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_no_formula_makes_less_noise(alpha: float) -> None:
    for seed in range(5):
        channels, weight = layer(seed)
        reach = np.maximum(channels.maximum, -channels.minimum)
        formula = alpha * np.log(reach) - (1 - alpha) * np.log(np.abs(weight).max(1))
        noise = _Noise(channels, weight)
        assert noise.at(np.log(least_noise(channels, weight)[0]))[0] <= 1.001 * noise.at(formula)[0]


def test_the_slope_is_that_of_the_noise() -> None:
    channels, weight = layer(3)
    noise = _Noise(channels, weight)
    place = np.random.default_rng(0).standard_normal(weight.shape[0]) * 0.3
    value, slope = noise.at(place)
    for index in range(len(place)):
        step = np.zeros_like(place)
        step[index] = 1e-5
        rise = (noise.at(place + step)[0] - noise.at(place - step)[0]) / 2e-5 / value
        assert slope[index] == pytest.approx(rise, rel=1e-2, abs=1e-4)


def test_a_silent_channel_keeps_room_for_other_samples() -> None:
    channels, weight = layer(4)
    channels.minimum[5] = channels.maximum[5] = 0.0
    factors, _ = least_noise(channels, weight)
    reach = np.maximum(channels.maximum, -channels.minimum)
    assert LEAST_REACH * reach.max() / factors[5] <= 1.01 * (reach / factors).max()


def test_smoothing_changes_nothing_but_the_rounding() -> None:
    model = Model.from_proto(outliers())
    plan, units = smoothed_plan(model)
    layers = [unit for unit in units.all if unit.kind is Kind.LINEAR]
    assert plan.smoothing and {unit.reads[0] for unit in layers} >= set(plan.smoothing)
    smooth, plain = model.clone(), model.clone()
    names = frozenset(unit.name for unit in layers)
    emit(smooth, replace(plan, integer=names))
    emit(plain, replace(plan, integer=names, smoothing={}))
    assert ops(smooth).count("Mul") == ops(plain).count("Mul") + len(plan.smoothing)
    samples = feeds(model, 6, seed=1)
    assert sqnr(model, smooth, samples, "none") > sqnr(model, plain, samples, "none") + 6
    assert sqnr(model, smooth, samples) > sqnr(model, plain, samples) + 6


def test_the_quotients_range_is_what_calibrating_it_would_find() -> None:
    model = Model.from_proto(outliers())
    plan, _ = smoothed_plan(model)
    (tensor, factors), *_ = plan.smoothing.items()
    values = np.concatenate(
        [v[tensor].reshape(-1, len(factors)) for v in walk_values(model, [tensor], feeds(model), Target())]
    ) / np.asarray(factors, np.float32)
    interval = plan.ranges[smoothed_name(tensor)]
    assert (interval.low, interval.high) == pytest.approx((values.min(), values.max()), rel=1e-5)


def test_even_channels_are_left_alone() -> None:
    model = Model.from_proto(outliers(far=1.0))
    assert not smoothed_plan(model)[0].smoothing
    channels, weight = layer(0, far=1.0)
    assert least_noise(channels_of(np.ones((4, 24)) * channels.maximum.mean()), weight)[1] < LEAST_GAIN


@pytest.mark.parametrize("activation", ["LeakyRelu", "Relu"])
def test_what_integer_kernels_take_in_or_give_in_codes_is_left_as_it_is(activation: str) -> None:
    assert not smoothed_plan(Model.from_proto(outliers(activation=activation)))[0].smoothing


def test_a_models_own_tensor_of_that_name_is_no_quotient() -> None:
    proto = outliers()
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = smoothed_name("act") if name == "up.sum" else name
    assert "act" not in smoothed_plan(Model.from_proto(proto))[0].smoothing


@pytest.mark.parametrize("form", ["rows", "bare", "gemm"])
def test_every_form_of_a_layer_keeps_its_kernel_behind_a_quotient(form: str) -> None:
    model = Model.from_proto(two_layers(form))
    linear = frozenset(unit.name for unit in find_units(model).all if unit.kind is Kind.LINEAR)
    plan, _ = smoothed_plan(model, linear)
    assert plan.smoothing
    candidate = model.clone()
    emit(candidate, replace(plan, integer=linear))
    check_fusions(candidate, Target())
    assert sqnr(model, candidate, feeds(model, 6, seed=1)) > 25


def two_layers(form: str) -> onnx.ModelProto:
    """``outliers`` with two axes, without biases, or as Gemm."""
    proto = outliers()
    if form == "rows":
        for value in (*proto.graph.input, *proto.graph.output):
            del value.type.tensor_type.shape.dim[0]
        return proto
    nodes = {node.output[0]: node for node in proto.graph.node}
    if form == "bare":
        nodes["act"].input[0], nodes["down.product"].output[0] = "up.product", "output"
        del proto.graph.node[4]
        del proto.graph.node[1]
        return proto
    proto = two_layers("rows")
    for name in ("up", "down"):
        product = next(node for node in proto.graph.node if node.output[0] == f"{name}.product")
        product.op_type = "Gemm"
    return proto


def test_what_else_reads_a_smoothed_tensor_reads_it_undivided() -> None:
    model = Model.from_proto(shared())
    linear = frozenset(unit.name for unit in find_units(model).all if unit.kind is Kind.LINEAR)
    plan, units = smoothed_plan(model, linear)
    assert set(plan.smoothing) >= {"act", "sum"}
    samples, layers, all_units = feeds(model, 6, seed=1), model.clone(), model.clone()
    emit(layers, replace(plan, integer=linear))
    emit(all_units, replace(plan, integer=frozenset(unit.name for unit in units.all)))
    assert sqnr(model, layers, samples) > 25
    (add,) = (node for node in all_units.editor.nodes() if node.name == "sum")
    assert {all_units.editor.producer(tensor).op for tensor in add.inputs} == {"DequantizeLinear"}


def shared() -> onnx.ModelProto:
    """The tensor that reaches far goes around the second layer, too."""
    proto = outliers()
    del proto.graph.output[:]
    proto.graph.node.extend(
        [
            onnx.helper.make_node("MatMul", ["output", "up"], ["wide"], name="wide"),
            onnx.helper.make_node("Add", ["wide", "act"], ["sum"], name="sum"),
            onnx.helper.make_node("MatMul", ["sum", "down"], ["result"], name="result"),
        ]
    )
    proto.graph.output.append(onnx.helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, [2, 12, 64]))
    return proto


def smoothed_plan(model: Model, integer: frozenset[str] | None = None) -> tuple[Plan, Units]:
    units = find_units(model)
    axes = {unit.reads[0]: -1 for unit in units.all if unit.kind is Kind.LINEAR}
    activations = observe(model, observed_tensors(units), feeds(model), channel_axes=axes)
    chosen = settle(units, [unit.name for unit in units.all]) if integer is None else integer
    plan = Plan(frozenset(), find_ranges(model, units, activations).intervals)
    return smoothed(plan, find_smoothing(model, units, chosen, activations), activations), units
