from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from graphopt.model.model import Model
from graphopt.runtime.optimized import optimized_nodes, optimized_ops
from graphopt.testing.builders import conv_bn_relu


def test_without_optimization_the_graph_is_the_models_own():
    proto = conv_bn_relu(0)
    own = sorted(node.op_type for node in proto.graph.node)
    assert sorted(optimized_ops(Model.from_proto(proto), optimization="none").elements()) == own


def test_fused_operators_are_gone_and_fused_ones_carry_their_domain():
    found = optimized_ops(Model.from_proto(conv_bn_relu(0)))
    assert "BatchNormalization" not in found
    assert "Relu" not in found
    assert sum(count for op, count in found.items() if op.rpartition(":")[2] in ("Conv", "FusedConv")) == 2
    assert any(":" in op for op in found)


def test_bytes_file_and_model_are_optimized_alike(tmp_path):
    proto = conv_bn_relu(0)
    onnx.save(proto, tmp_path / "m.onnx")
    sources = (Model.from_proto(proto), proto.SerializeToString(), tmp_path / "m.onnx")
    assert len({frozenset(optimized_ops(source).items()) for source in sources}) == 1


def test_bodies_of_branches_are_counted():
    inner = h.make_graph([h.make_node("Tanh", ["x"], ["t"])], "a", [], [h.make_tensor_value_info("t", T.FLOAT, [2])])
    other = h.make_graph([h.make_node("Sin", ["x"], ["s"])], "b", [], [h.make_tensor_value_info("s", T.FLOAT, [2])])
    node = h.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    inputs = [h.make_tensor_value_info("c", T.BOOL, []), h.make_tensor_value_info("x", T.FLOAT, [2])]
    graph = h.make_graph([node], "g", inputs, [h.make_tensor_value_info("y", T.FLOAT, [2])])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
    assert optimized_ops(model.SerializeToString()) == {"If": 1, "Tanh": 1, "Sin": 1}


def test_nodes_tell_what_they_read_and_write():
    nodes = optimized_nodes(Model.from_proto(conv_bn_relu(0)), optimization="none")
    written = {name for node in nodes for name in node.outputs}
    assert "output" in written
    assert "input" in {name for node in nodes for name in node.inputs}


@pytest.mark.shared
def test_mobilenets_27_batch_norms_are_fused_into_its_28_convolutions(shared):
    found = optimized_ops(Model.open(shared / "models" / "mobilenet_v1" / "model.onnx"))
    assert sum(count for op, count in found.items() if op.endswith("Conv")) == 28
    assert "BatchNormalization" not in found
