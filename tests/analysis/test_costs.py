"""Costs: counted by hand on small models."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from graphopt.analysis.costs import node_costs, total_macs
from graphopt.model.model import Model
from graphopt.testing import builders
from graphopt.testing.nesting import in_branches


def test_a_convolutional_network_by_hand() -> None:
    model = Model.of(builders.depthwise(0))
    costs = {cost.name: cost for cost in node_costs(model)}
    assert costs["stem.conv/Conv"].macs == 8 * 8 * 32 * 3 * 9
    assert costs["depthwise.conv/Conv"].macs == 8 * 8 * 32 * 9
    assert costs["pointwise.conv/Conv"].macs == 8 * 8 * 64 * 32
    assert costs["output/Gemm"].macs == 64 * 10
    assert costs["output/Gemm"].parameters == 650 and costs["output/Gemm"].bytes == 2600
    assert total_macs(model) == sum(cost.macs for cost in costs.values())


def test_a_transposed_convolution_counts_each_input_position() -> None:
    costs = {cost.name: cost for cost in node_costs(Model.of(builders.conv_transpose(0)))}
    assert costs["up/ConvTranspose"].macs == 4 * 4 * 32 * 32 * 4


def test_a_matrix_product_counts_its_leading_axes() -> None:
    costs = {cost.name: cost for cost in node_costs(Model.of(builders.attention(0)))}
    assert costs["up.product/MatMul"].macs == 2 * 6 * 32 * 64
    assert costs["product/MatMul"].macs == 2 * 4 * 6 * 6 * 8


def test_a_size_known_only_at_run_time_counts_once() -> None:
    costs = {cost.name: cost for cost in node_costs(Model.of(builders.ALL["dynamic_dims"](0)))}
    assert costs["block1.conv/Conv"].macs == 32 * 3 * 9


@pytest.mark.parametrize("builder", [builders.depthwise, builders.mlp])
def test_work_in_bodies_counts_as_often_as_there_are_bodies(builder: Callable[[int], onnx.ModelProto]) -> None:
    plain = builder(0)
    assert total_macs(Model.of(in_branches(plain))) == 2 * total_macs(Model.of(plain)) > 0
