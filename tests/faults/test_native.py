"""onnx's shape inference ends the process on some operators whose input has no type; graphopt keeps away from that."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.model.model import Model
from graphopt.model.shapes import FRAGILE, infer

ATTRIBUTES: dict[str, dict[str, object]] = {
    "RegexFullMatch": {"pattern": "a"},
    "DictVectorizer": {"int64_vocabulary": [1, 2]},
    "LabelEncoder": {
        "keys_strings": ["a"],
        "values_tensor": helper.make_tensor("v", TensorProto.INT16, [1], [1]),
        "default_tensor": helper.make_tensor("d", TensorProto.INT16, [1], [0]),
    },
}


def model_with(domain: str, op: str, kind: str) -> onnx.ModelProto:
    """The operator behind a custom one, behind an input without a type, or in a body."""
    node = helper.make_node(op, ["c"], ["out"], domain=domain, **ATTRIBUTES.get(op, {}))
    nodes, inputs = [node], [onnx.ValueInfoProto(name="c")]
    if kind != "untyped":
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])]
        nodes = [helper.make_node("Foo", ["x"], ["c"], domain="org.x"), node]
    if kind == "body":
        typeless = onnx.ValueInfoProto(name="out")
        body = helper.make_graph([node], "body", [], [typeless])
        nodes[1] = helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
        inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    nodes.append(helper.make_node("Identity", ["y" if kind == "body" else "out"], ["last"]))
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="last")])
    domains = {"": 20, "org.x": 1, "ai.onnx.ml": 5}
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*item) for item in domains.items()])


@pytest.mark.parametrize("kind", ["custom", "untyped", "body"])
@pytest.mark.parametrize(("domain", "op"), sorted(FRAGILE))
def test_an_input_without_a_type_does_not_end_the_process(domain: str, op: str, kind: str) -> None:
    source = model_with(domain, op, kind)
    model = Model.from_proto(source)
    assert len(model.editor.nodes()) == len(source.graph.node)
    model.clone().finish()
    assert model.to_proto().SerializeToString(deterministic=True) == source.SerializeToString(deterministic=True)


def test_the_same_operators_are_inferred_where_all_is_typed() -> None:
    eye = helper.make_node("EyeLike", ["x"], ["eye"])
    graph = helper.make_graph(
        [eye, helper.make_node("Abs", ["eye"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    found = infer(proto)
    assert not found.failures and found.proto is not None
    assert found.proto.graph.node[0].domain == ""
    model = Model.from_proto(proto)
    tensor = model.editor.tensor("eye")
    assert tensor is not None
    assert model.shape_of(tensor) == (3, 3) and model.dtype_of(tensor) == np.dtype(np.float32)


LONG = 1 << 40


@pytest.mark.parametrize(
    "text",
    [
        f"(float[{LONG}] x) => (float[N] y) {{ y = Mul(x, x) }}",
        f"(float[1] x) => (float[N] y) {{ s = Constant<value = int64[1] {{{LONG}}}>() c = Expand(x, s) "
        "y = Add(c, c) }",
        f"(bool b, float[1] x) => (float[N] y) {{ y = If<then_branch = t () => (float[N] u) {{ "
        f"s = Constant<value = int64[1] {{{LONG}}}>() c = Expand(x, s) u = Add(c, c) }}, "
        "else_branch = e () => (float[N] v) { v = Relu(x) }>(b) }",
        f"(float[1,{LONG}] x) => (float[N] y) {{ c = Flatten<axis = 0>(x) s = Constant<value = int64[1] {{0}}>() "
        "d = Squeeze(c, s) y = Mul(d, d) }",
    ],
)
def test_vectors_that_data_propagation_would_fill_the_memory_with(text: str) -> None:
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>\ng ' + text)
    found = infer(proto)
    assert not found.failures and found.proto is not None
    assert Model.from_proto(proto).interface.outputs[0].name == "y"


def test_values_that_are_sizes_are_still_propagated() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[2,3,1000,1000] x) => (float[A,B] y) {"
        " s = Shape(x) a = Constant<value = int64[1] {0}>() b = Gather(s, a) m = Constant<value = int64[1] {-1}>()"
        " t = Concat<axis = 0>(b, m) y = Reshape(x, t) }"
    )
    model = Model.from_proto(proto)
    tensor = model.editor.tensor("t")
    assert tensor is not None and model.shape_of(tensor) == (2,)
    output = model.editor.tensor("y")
    assert output is not None and model.shape_of(output) == (2, 3_000_000)
