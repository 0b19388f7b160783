"""Rounding errors that make up for each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.activations import observe
from graphopt.model.model import Model
from graphopt.passes.quantize.emit import emit
from graphopt.passes.quantize.isa import PAIR_LIMIT, largest_pair
from graphopt.passes.quantize.plan import Grid, Plan, RoundedWeight
from graphopt.passes.quantize.ranges import find_ranges, observed_tensors
from graphopt.passes.quantize.rounding import DAMPING, Order, compensated_codes, rounded_layers
from graphopt.passes.quantize.units import Kind, Units, find_units
from graphopt.passes.quantize.weights import dequantized, in_integers, peak_codes
from graphopt.progress import Silent
from graphopt.runtime.target import Target
from graphopt.testing import builders
from graphopt.testing.draft import Draft
from tests.passes.quantize.harness import feeds, sqnr


def problem(seed: int, rank: int, inputs: int = 48, outputs: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight, scales, and the moments of inputs that fill ``rank`` directions and a little of the others."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((400, rank)) @ rng.standard_normal((rank, inputs))
    rows += 0.05 * rng.standard_normal(rows.shape)
    weight = rng.standard_normal((inputs, outputs))
    return weight, np.float32(np.abs(weight).max(0) / 127), rows.T @ rows


def codes_of(weight: np.ndarray, scales: np.ndarray, gram: np.ndarray) -> np.ndarray:
    order = Order.of(gram)
    assert order is not None
    return compensated_codes(weight, scales, order)


def error(weight: np.ndarray, scales: np.ndarray, codes: np.ndarray, gram: np.ndarray) -> float:
    """Σ ‖x·(W − W')‖²."""
    off = weight - codes * scales.astype(np.float64)
    return float(np.einsum("io,io->", off, gram @ off))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 48))
def test_the_layers_output_changes_less(seed: int, rank: int) -> None:
    weight, scales, gram = problem(seed, rank)
    codes = codes_of(weight, scales, gram)
    assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max() <= 127
    nearest = np.rint(weight / scales)
    assert error(weight, scales, codes, gram) < (0.5 if rank <= 12 else 0.95) * error(weight, scales, nearest, gram)


def test_inputs_that_know_nothing_of_each_other_are_rounded_to_the_nearest() -> None:
    weight, scales, _ = problem(1, 1)
    power = np.random.default_rng(0).uniform(1, 9, len(weight))
    codes = codes_of(weight, scales, np.diag(power))
    assert np.array_equal(codes, np.rint(weight / scales))


def test_the_order_of_the_inputs_does_not_matter() -> None:
    weight, scales, gram = problem(2, 8)
    order = np.random.default_rng(0).permutation(len(weight))
    codes = codes_of(weight, scales, gram)
    moved = codes_of(weight[order], scales, gram[np.ix_(order, order)])
    assert (codes[order] != moved).mean() < 0.01  # sums in another order may tip a tie


def test_the_factor_is_that_of_the_inverse() -> None:
    _, _, gram = problem(3, 48)
    order = Order.of(gram)
    assert order is not None and np.array_equal(order.factor, np.triu(order.factor))
    damped = gram[np.ix_(order.inputs, order.inputs)] + DAMPING * np.diag(gram).mean() * np.eye(len(gram))
    np.testing.assert_allclose(order.factor.T @ order.factor @ damped, np.eye(len(gram)), atol=1e-9)


@pytest.mark.parametrize("gram", [np.zeros((48, 48)), np.full((48, 48), np.nan)])
def test_moments_that_say_nothing_give_no_order(gram: np.ndarray) -> None:
    assert Order.of(gram) is None


@pytest.mark.parametrize(
    "proto", [builders.mlp(), builders.matmul_add(), builders.attention()], ids=lambda p: p.graph.name
)
def test_a_model_with_compensated_layers_is_as_accurate(proto: onnx.ModelProto) -> None:
    model = Model.from_proto(proto)
    units, plan = planned(model)
    weights = rounded(model, units, plan)
    linear = frozenset(unit.name for unit in units.all if unit.kind is Kind.LINEAR)
    assert set(weights) == linear
    nearest, compensated = model.clone(), model.clone()
    emit(nearest, replace(plan, integer=linear))
    emit(compensated, replace(plan, integer=linear, weights=weights))
    assert canonical(nearest) != canonical(compensated)
    samples = feeds(model, 8)
    assert sqnr(model, compensated, samples) > sqnr(model, nearest, samples) - 1


def test_inputs_that_hold_nearly_the_same_gain_much() -> None:
    model = Model.from_proto(correlated())
    units, plan = planned(model)
    pair = [model.clone(), model.clone()]
    for candidate, weights in zip(pair, ({}, rounded(model, units, plan)), strict=True):
        emit(candidate, replace(plan, integer=frozenset({"layer"}), weights=weights))
    samples = feeds(model, 8)
    assert sqnr(model, pair[1], samples) > sqnr(model, pair[0], samples) + 1


def test_pairs_stay_within_what_kernels_that_saturate_can_add() -> None:
    for proto in (builders.mlp(), builders.matmul_add()):
        model = Model.from_proto(proto)
        units, plan = planned(model)
        limited = replace(plan, limit_pairs=True)
        for name, weight in rounded(model, units, limited).items():
            unit = units.named()[name]
            axis = 0 if unit.head.attrs.get("transB", 0) else 1
            peaks = np.full(weight.codes.shape[1 - axis], 255.0)
            assert peak_codes(unit, dequantized(weight, axis), limited, grid_of(plan, unit.reads[0])) is not None
            reach = largest_pair(weight.codes.astype(np.float32), axis, peaks)
            assert (reach <= PAIR_LIMIT + 255).all()


def test_output_channels_of_zeros_keep_their_bias() -> None:
    proto = builders.mlp()
    weight = next(w for w in proto.graph.initializer if w.name == "fc2.weight")
    value = onnx.numpy_helper.to_array(weight).copy()
    value[:, ::3] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    model = Model.from_proto(proto)
    units, plan = planned(model)
    unit = next(u for u in units.all if u.head.name == "fc2/Gemm")
    plan = replace(plan, weights=rounded(model, units, plan))
    bias = model.editor.constant(unit.head.inputs[2])
    assert bias is not None
    _, result = in_integers(unit, value, plan, grid_of(plan, unit.reads[0]), bias)
    assert result.bias is not None
    np.testing.assert_allclose((result.bias * result.bias_scales)[::3], bias[::3], rtol=1e-6)


def correlated() -> onnx.ModelProto:
    """A layer whose 64 inputs are mixtures of four values."""
    draft = Draft(0)
    x = draft.node("MatMul", [draft.input("input", [16, 4]), draft.weight("mix", 4, 64, scale=1.0)], "mixed")
    x = draft.node("Tanh", [x], "bent")
    draft.node("MatMul", [x, draft.weight("weight", 64, 32)], "output", name="layer")
    draft.output("output", [16, 32])
    return draft.model("correlated")


def planned(model: Model) -> tuple[Units, Plan]:
    units = find_units(model)
    found = observe(model, observed_tensors(units), feeds(model))
    return units, Plan(frozenset(), find_ranges(model, units, found).intervals)


def rounded(model: Model, units: Units, plan: Plan) -> dict[str, RoundedWeight]:
    names = [unit.name for unit in units.all]
    return dict(rounded_layers(model, units, plan, names, feeds(model), target=Target(), progress=Silent()))


def grid_of(plan: Plan, tensor: str) -> Grid:
    return Grid.covering(plan.ranges[tensor])


def canonical(model: Model) -> bytes:
    return model.to_proto().SerializeToString(deterministic=True)
