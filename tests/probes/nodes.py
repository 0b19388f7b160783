"""Features of nodes, their attributes, and local functions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, TypeProto, helper

from tests.probes.probe import (
    FLOAT,
    Probe,
    attribute,
    edited,
    entries,
    kept,
    node,
    plain,
    relu,
    trunk,
    value,
    weight,
)


def probes() -> Iterator[Probe]:
    """All probes of this module."""
    yield from _headers()
    yield from _arguments()
    yield from _attributes()
    yield from _constants()
    yield from _functions()


def _headers() -> Iterator[Probe]:
    yield Probe("node doc_string", trunk(relu(doc_string="layer 1")), lambda m: kept(m).doc_string)
    model = edited(trunk(), lambda m: kept(m).metadata_props.add(key="pkg.torch", value="relu"))
    yield Probe("node metadata_props", model, lambda m: entries(kept(m).metadata_props))
    leaky = node("LeakyRelu", ["s"], ["f"], alpha=0.5)
    leaky.attribute[0].doc_string = "slope"
    yield Probe("attribute doc_string", trunk(leaky), lambda m: attribute(m, "alpha"))
    model = trunk(relu(domain="ai.onnx"))
    yield Probe("node of domain ai.onnx", model, lambda m: kept(m).op_type, respelled=True)
    model = edited(trunk(relu(domain="ai.onnx")), lambda m: setattr(m.opset_import[0], "domain", "ai.onnx"))
    yield Probe("opset import of domain ai.onnx", model, lambda m: kept(m).op_type, noted="canonical")
    custom = node("Foo", ["s"], ["f"], domain="org.x", level=3)
    yield Probe("custom operator", trunk(custom, domains={"org.x": 1}), lambda m: attribute(m, "level"))
    custom = node("Foo", ["s"], ["f"], domain="org.x", overload="wide")
    yield Probe("node overload", trunk(custom, domains={"org.x": 1}), lambda m: kept(m).overload)
    model = edited(trunk(), lambda m: [n.ClearField("name") for n in m.graph.node if n.op_type == "Relu"])
    yield Probe("node without a name", model, lambda m: [n.name for n in m.graph.node if n.op_type == "Relu"])
    twins = trunk(relu("s", "a", "twin"), relu("a", "f", "twin"))
    yield Probe("two nodes of one name", twins, lambda m: len(m.graph.node) >= 3, noted="renamed")


def _arguments() -> Iterator[Probe]:
    high = [weight("high", np.float32(1))]
    clip = node("Clip", ["s", "", "high"], ["f"])
    yield Probe("omitted input in the middle", trunk(clip, weights=high), lambda m: list(kept(m).input)[1:])
    clip = node("Clip", ["s", "high", ""], ["f"])
    yield Probe("omitted input at the end", trunk(clip, weights=high), lambda m: list(kept(m).input)[1:])
    dropout = node("Dropout", ["s"], ["f", ""])
    model = trunk(dropout)
    yield Probe("omitted output at the end", model)
    pool = node("TopK", ["s", "k"], ["", "at"])
    cast = node("Cast", ["at"], ["f"], "cast", to=FLOAT)
    yield Probe(
        "omitted first output",
        trunk(pool, cast, weights=[weight("k", np.array([4], np.int64))]),
        lambda m: list(kept(m).output),
    )
    model = trunk(relu(), node("Abs", ["s"], [""], "nothing"))
    yield Probe("node whose only output is omitted", model)
    double = node("Add", ["s", "s"], ["f"])
    yield Probe("one tensor as both inputs", trunk(double), lambda m: len(set(kept(m).input)))


def _attributes() -> Iterator[Probe]:
    for name, given in (
        ("integer", 2**62),
        ("float that needs rounding", 0.1),
        ("text", "tab\there"),
        ("bytes that are not UTF-8", b"\xff\x00\xfe"),
        ("list of integers", [1, -2]),
        ("list of floats", [0.1, float("nan")]),
        ("list of text", ["a", ""]),
        ("list of bytes that are not UTF-8", [b"\xff", b"a"]),
        ("tensor", helper.make_tensor("inner", FLOAT, [2], [1.0, 2.0])),
        ("graph", helper.make_graph([], "empty", [], [])),
    ):
        yield _custom(f"attribute: {name}", helper.make_attribute("a", given))
    for kind in ("INTS", "FLOATS", "STRINGS", "TENSORS", "SPARSE_TENSORS", "TYPE_PROTOS"):
        made = AttributeProto(name="a", type=AttributeProto.AttributeType.Value(kind))
        yield _custom(f"attribute: empty list of {kind.lower()}", made)
    typed = TypeProto()
    typed.sequence_type.elem_type.tensor_type.elem_type = FLOAT
    tensor = helper.make_tensor("inner", FLOAT, [1], [1.0])
    sparse = helper.make_sparse_tensor(tensor, helper.make_tensor("at", TensorProto.INT64, [1], [2]), [4])
    for name, kind, field, given in (
        ("type", "TYPE_PROTO", "tp", typed),
        ("sparse tensor", "SPARSE_TENSOR", "sparse_tensor", sparse),
    ):
        made = AttributeProto(name="a", type=AttributeProto.AttributeType.Value(kind))
        getattr(made, field).CopyFrom(given)
        yield _custom(f"attribute: {name}", made)
    for name, kind, field, given in (
        ("list of tensors", "TENSORS", "tensors", tensor),
        ("list of sparse tensors", "SPARSE_TENSORS", "sparse_tensors", sparse),
        ("list of types", "TYPE_PROTOS", "type_protos", typed),
    ):
        made = AttributeProto(name="a", type=AttributeProto.AttributeType.Value(kind))
        getattr(made, field).append(given)
        yield _custom(f"attribute: {name}", made)
    graphs = AttributeProto(name="a", type=AttributeProto.GRAPHS)
    graphs.graphs.append(helper.make_graph([], "empty", [], []))
    refused = _custom("attribute: list of graphs", graphs)
    yield Probe(refused.name, refused.model, refused="GO-308")


def _custom(name: str, made: AttributeProto) -> Probe:
    custom = node("Foo", ["s"], ["f"], domain="org.x")
    custom.attribute.append(made)
    return Probe(name, trunk(custom, domains={"org.x": 1}), lambda m: attribute(m, "a"))


def _constants() -> Iterator[Probe]:
    for name, form in (
        ("value_float", {"value_float": 1.5}),
        ("value_floats", {"value_floats": [1.0, 2.0, 3.0, 4.0]}),
        ("value", {"value": helper.make_tensor("inner", FLOAT, [4], [1.0, 2.0, 3.0, 4.0])}),
    ):
        model = trunk(node("Constant", [], ["c"], "const", **form), node("Mul", ["s", "c"], ["f"]))
        yield Probe(f"Constant with {name}", model)
    for name, form in (("value_int", {"value_int": 0}), ("value_ints", {"value_ints": [0, 0]})):
        model = trunk(
            node("Constant", [], ["c"], "const", **form),
            node("Cast", ["c"], ["d"], "cast", to=FLOAT),
            node("Reshape", ["d", "four"], ["e"], "shape"),
            node("Add", ["s", "e"], ["f"]),
            weights=[weight("four", np.array([-1, 1], np.int64))],
        )
        yield Probe(f"Constant with {name}", model)
    for name, form, dims in (
        ("value_string", {"value_string": "a"}, ()),
        ("value_strings", {"value_strings": ["a"]}, (1,)),
    ):
        constant = node("Constant", [], ["c"], **form)
        model = trunk(constant, relu(name="other"), outputs=[value("c", dims, TensorProto.STRING)])
        yield Probe(f"Constant with {name}", model)
    sparse = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    inner = helper.make_tensor("inner", FLOAT, [1], [5.0])
    at = helper.make_tensor("at", TensorProto.INT64, [1], [2])
    sparse.sparse_tensor.CopyFrom(helper.make_sparse_tensor(inner, at, [4]))
    constant = node("Constant", [], ["c"], "const")
    constant.attribute.append(sparse)
    yield Probe("Constant with sparse_value", trunk(constant, node("Add", ["s", "c"], ["f"])))


def _function(
    name: str, *nodes: onnx.NodeProto, attributes: tuple[str, ...] = (), domain: str = "f"
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    return helper.make_function(domain, name, ["p"], ["q"], list(nodes), imports, list(attributes))


def _call(name: str = "F", **extra: object) -> onnx.NodeProto:
    return node(name, ["s"], ["f"], domain="f", **extra)


def _functions() -> Iterator[Probe]:
    look = lambda m: [plain(f) for f in m.functions]  # noqa: E731

    def probe(name: str, *functions: onnx.FunctionProto, call: onnx.NodeProto | None = None) -> Probe:
        return Probe(name, trunk(call or _call(), domains={"f": 1}, functions=functions), look)

    body = helper.make_node("Relu", ["p"], ["q"], name="inner")
    yield probe("local function", _function("F", body))
    made = _function("F", body)
    made.doc_string = "what it does"
    made.metadata_props.add(key="k", value="v")
    made.value_info.append(value("q"))
    yield probe("documents of a function", made)
    scaled = helper.make_node("LeakyRelu", ["p"], ["q"])
    scaled.attribute.add(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope")
    yield probe("function with an attribute", _function("F", scaled, attributes=("slope",)), call=_call(slope=0.25))
    made = _function("F", scaled)
    made.attribute_proto.append(helper.make_attribute("slope", 0.125))
    yield probe("function with an attribute's default", made)
    outer = _function("F", helper.make_node("G", ["p"], ["q"], domain="f"))
    yield probe("function that calls another", outer, _function("G", body))
    yield probe("function that nothing calls", _function("F", body), _function("H", body))
    first, second = _function("F", body), _function("F", helper.make_node("Neg", ["p"], ["q"]))
    first.overload, second.overload = "a", "b"
    call = _call(overload="b")
    yield Probe("function overloads", trunk(call, domains={"f": 1}, functions=[first, second], ir_version=10), look)
    shadow = _function("Relu", helper.make_node("Neg", ["p"], ["q"]), domain="f")
    yield Probe("function named like an operator", trunk(_call("Relu"), domains={"f": 1}, functions=[shadow]), look)
    itself = _function("F", helper.make_node("F", ["p"], ["q"], domain="f"))
    yield Probe("function that calls itself", trunk(_call(), domains={"f": 1}, functions=[itself]), refused="GO-304")
    around = _function("F", helper.make_node("G", ["p"], ["q"], domain="f"))
    back = _function("G", helper.make_node("F", ["p"], ["q"], domain="f"))
    model = trunk(_call(), domains={"f": 1}, functions=[around, back])
    yield Probe("functions that call each other", model, refused="GO-304")
