"""Small hand-made models, one feature each: what graphs hold beside nodes and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, TypeProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def value(name: str, dims: list[int | str | None] | None = None, elem: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem, [1, 4] if dims is None else dims)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    *,
    opset: int = 21,
    ir_version: int = 10,
    domains: dict[str, int] | None = None,
    **graph: object,
) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "g", inputs or [value("x")], outputs or [value("y")], **graph)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(made, opset_imports=imports, ir_version=ir_version)


def relu(source: str = "x", target: str = "y", **kwargs: object) -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [target], **kwargs)


def with_model_metadata() -> onnx.ModelProto:
    model = model_of([relu()])
    model.domain, model.model_version, model.doc_string = "a.b", 7, "what it is"
    model.producer_name, model.producer_version = "me", "1.2"
    helper.set_model_props(model, {"character": "a\nb", "empty": ""})
    return model


def with_docs_everywhere() -> onnx.ModelProto:
    node = relu("x", "a", doc_string="node doc", name="r")
    node.metadata_props.add(key="k", value="v")
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.doc_string = "weight doc"
    weight.metadata_props.add(key="wk", value="wv")
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.5)
    leaky.attribute[0].doc_string = "attribute doc"
    model = model_of(
        [node, leaky, helper.make_node("Add", ["b", "w"], ["y"])],
        initializer=[weight],
        value_info=[value("a"), value("b")],
        doc_string="graph doc",
    )
    model.graph.metadata_props.add(key="gk", value="gv")
    model.graph.input[0].doc_string = "input doc"
    model.graph.input[0].type.denotation = "IMAGE"
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    model.graph.value_info[0].doc_string = "value doc"
    model.graph.value_info[0].metadata_props.add(key="vk", value="vv")
    return model


def with_quantization_annotation() -> onnx.ModelProto:
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    model = model_of([relu()], initializer=[scale])
    annotation = model.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    return model


def with_overridable_initializer() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], [value("x"), value("w", [4])], initializer=[weight])


def with_ir3_initializer() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    return model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("w", [4]), value("x")],
        initializer=[weight],
        opset=8,
        ir_version=3,
    )


def with_unused_initializer() -> onnx.ModelProto:
    return model_of([relu()], initializer=[numpy_helper.from_array(np.ones(3, np.float32), "unused")])


def with_sparse_initializer() -> onnx.ModelProto:
    values = helper.make_tensor("w", FLOAT, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2], [0, 3]), [4])
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], sparse_initializer=[sparse])


def with_optional_io() -> onnx.ModelProto:
    tensor = helper.make_tensor_type_proto(FLOAT, [1, 4])
    optional = helper.make_value_info("x", helper.make_optional_type_proto(tensor))
    return model_of([helper.make_node("OptionalGetElement", ["x"], ["y"])], [optional])


def with_sequence_io() -> onnx.ModelProto:
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, [1, 4])
    index = numpy_helper.from_array(np.int64(0), "i")
    return model_of([helper.make_node("SequenceAt", ["s", "i"], ["y"])], [sequence], initializer=[index])


def with_map_output() -> onnx.ModelProto:
    kind = TypeProto()
    kind.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = FLOAT
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    return model_of([node], outputs=[helper.make_value_info("y", kind)], domains={"ai.onnx.ml": 3})


def with_map_input() -> onnx.ModelProto:
    kind = TypeProto()
    kind.map_type.key_type = TensorProto.INT64
    kind.map_type.value_type.tensor_type.elem_type = FLOAT
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", int64_vocabulary=[1, 2])
    return model_of([node], [helper.make_value_info("x", kind)], domains={"ai.onnx.ml": 3})


def with_exotic_attributes() -> onnx.ModelProto:
    node = helper.make_node("Foo", ["x"], ["y"], domain="d", blob=b"\xff\xfe", texts=["a", "b"])
    for name, kind in (("i", AttributeProto.INTS), ("f", AttributeProto.FLOATS), ("s", AttributeProto.STRINGS)):
        node.attribute.add(name=f"no_{name}", type=kind)
    types = node.attribute.add(name="type", type=AttributeProto.TYPE_PROTO)
    types.tp.CopyFrom(helper.make_tensor_type_proto(FLOAT, [4]))
    many = node.attribute.add(name="tensors", type=AttributeProto.TENSORS)
    many.tensors.append(numpy_helper.from_array(np.ones(2, np.float32), "t"))
    values = helper.make_tensor("sv", FLOAT, [1], [1.0])
    indices = helper.make_tensor("si", TensorProto.INT64, [1], [2])
    sparse = node.attribute.add(name="sparse", type=AttributeProto.SPARSE_TENSOR)
    sparse.sparse_tensor.CopyFrom(helper.make_sparse_tensor(values, indices, [4]))
    return model_of([node], domains={"d": 1})


def with_function(
    body: Sequence[onnx.NodeProto],
    opset: int = 21,
    *,
    called: bool = True,
    name: tuple[str, str] = ("f", "F"),
    **given: float | str,
) -> onnx.ModelProto:
    """One function q = name(p) of these nodes; it has the attributes that the call gives."""
    domain, op = name
    node = helper.make_node(op, ["x"], ["y"], domain=domain, **given) if called else relu()
    model = model_of([node], domains={domain: 1})
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1)]
    model.functions.append(helper.make_function(domain, op, ["p"], ["q"], body, imports, list(given)))
    return model


def with_functions() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 21)]
    functions = []
    for overload, op in (("a", "Relu"), ("b", "Neg")):
        made = helper.make_function("f", "F", ["p"], ["q"], [helper.make_node(op, ["p"], ["q"])], imports)
        made.overload = overload
        made.metadata_props.add(key="fk", value=overload)
        functions.append(made)
    first = helper.make_node("F", ["x"], ["a"], domain="f", overload="a")
    second = helper.make_node("F", ["a"], ["y"], domain="f", overload="b")
    model = model_of([first, second], domains={"f": 1})
    model.functions.extend(functions)
    return model


def with_nested_bodies() -> onnx.ModelProto:
    """An If in a Loop; the inner body captures an outer initializer and an outer computed value."""
    weight = numpy_helper.from_array(np.full(4, 2.0, np.float32), "w")
    inner = [
        helper.make_graph([helper.make_node(op, ["outer", "w"], [out])], f"branch{out}", [], [value(out)])
        for op, out in (("Add", "p"), ("Mul", "q"))
    ]
    branch = helper.make_node("If", ["keep"], ["c_out"], then_branch=inner[0], else_branch=inner[1], name="branch")
    body = helper.make_graph(
        [helper.make_node("Identity", ["keep"], ["keep_out"]), branch],
        "body",
        [value("i", [], TensorProto.INT64), value("keep", [], TensorProto.BOOL), value("c")],
        [value("keep_out", [], TensorProto.BOOL), value("c_out")],
    )
    trip = numpy_helper.from_array(np.int64(2), "trip")
    condition = numpy_helper.from_array(np.array(True), "cond")
    return model_of(
        [relu("x", "outer"), helper.make_node("Loop", ["trip", "cond", "x"], ["y"], body=body, name="loop")],
        initializer=[weight, trip, condition],
    )


def with_training_info() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[weight])
    info = model.training_info.add()
    info.algorithm.CopyFrom(helper.make_graph([relu("w", "w2")], "step", [], [value("w2", [4])]))
    info.update_binding.add(key="w", value="w2")
    return model


def with_every_element_type() -> onnx.ModelProto:
    weights, nodes = [], []
    for name, elem in TensorProto.DataType.items():
        if elem == TensorProto.UNDEFINED or name.startswith("FLOAT6"):
            continue
        if elem == TensorProto.STRING:
            weights.append(helper.make_tensor(name, elem, [2], [b"a", b"\xff"]))
        else:
            weights.append(numpy_helper.from_array(np.ones(3, helper.tensor_dtype_to_np_dtype(elem)), name))
        nodes.append(helper.make_node("Identity", [name], [f"out_{name}"], name=name))
    outputs = [helper.make_tensor_value_info(f"out_{w.name}", w.data_type, list(w.dims)) for w in weights]
    return model_of(nodes, outputs=outputs, initializer=weights, opset=25, ir_version=13)


def with_typed_fields() -> onnx.ModelProto:
    """Values in the typed fields instead of raw bytes, also for halves (which use int32_data)."""
    weights = [
        helper.make_tensor("f", FLOAT, [2], [1.0, -0.0]),
        helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("b", TensorProto.BFLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("i4", TensorProto.INT4, [3], [1, -2, 3]),
        helper.make_tensor("u", TensorProto.UINT64, [1], [2**63]),
        helper.make_tensor("e", FLOAT, [0], []),
    ]
    nodes = [helper.make_node("Identity", [w.name], [f"out_{w.name}"], name=w.name) for w in weights]
    outputs = [helper.make_tensor_value_info(f"out_{w.name}", w.data_type, list(w.dims)) for w in weights]
    return model_of(nodes, outputs=outputs, initializer=weights)


def with_unnamed_and_omitted() -> onnx.ModelProto:
    """Nodes without names, omitted inputs in the middle and omitted outputs."""
    high = numpy_helper.from_array(np.float32(1), "high")
    clip = helper.make_node("Clip", ["x", "", "high"], ["a"])
    dropout = helper.make_node("Dropout", ["a"], ["y", ""])
    return model_of([clip, dropout], initializer=[high])


def with_initializer_as_output() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    return model_of([relu()], outputs=[value("y"), value("w", [4])], initializer=[weight])


def with_input_as_output() -> onnx.ModelProto:
    return model_of([relu()], outputs=[value("y"), value("x")])


def with_symbols() -> onnx.ModelProto:
    return model_of([relu()], [value("x", ["N", None, 3])], [value("y", ["N", None, 3])])


def without_shapes() -> onnx.ModelProto:
    plain = helper.make_tensor_value_info("x", FLOAT, None)
    return model_of([relu()], [plain], [helper.make_tensor_value_info("y", FLOAT, None)])


def with_constant_nodes() -> onnx.ModelProto:
    """A Constant of each attribute form."""
    forms: list[dict[str, object]] = [
        {"value": numpy_helper.from_array(np.ones(2, np.float32), "inner")},
        {"value_float": 1.5},
        {"value_floats": [1.5, 2.5]},
        {"value_int": 3},
        {"value_ints": [3, 4]},
        {"value_string": "t"},
        {"value_strings": ["t", "u"]},
    ]
    nodes = [helper.make_node("Constant", [], [f"c{i}"], **form) for i, form in enumerate(forms)]
    kinds = [FLOAT, FLOAT, FLOAT, TensorProto.INT64, TensorProto.INT64, TensorProto.STRING, TensorProto.STRING]
    outputs = [helper.make_tensor_value_info(f"c{i}", kind, None) for i, kind in enumerate(kinds)]
    return model_of(nodes, outputs=outputs)


PROBES: list[Callable[[], onnx.ModelProto]] = [
    with_model_metadata,
    with_docs_everywhere,
    with_quantization_annotation,
    with_overridable_initializer,
    with_ir3_initializer,
    with_unused_initializer,
    with_sparse_initializer,
    with_optional_io,
    with_sequence_io,
    with_map_output,
    with_map_input,
    with_exotic_attributes,
    with_functions,
    with_nested_bodies,
    with_training_info,
    with_every_element_type,
    with_typed_fields,
    with_unnamed_and_omitted,
    with_initializer_as_output,
    with_input_as_output,
    with_symbols,
    without_shapes,
    with_constant_nodes,
]


def canonical(proto: onnx.ModelProto) -> bytes:
    """The bytes that two equal models share."""
    return proto.SerializeToString(deterministic=True)
