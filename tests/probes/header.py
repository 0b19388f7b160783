"""Features of a model's header, its graph and its declarations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, helper

from tests.probes.probe import FLOAT, Probe, X, declared, edited, entries, kept, node, plain, relu, trunk, value, weight


def probes() -> Iterator[Probe]:
    """All probes of this module."""
    yield from _model()
    yield from _graph()
    yield from _declarations()
    yield from _shapes()
    yield from _kinds()


def _set(name: str, change: Callable[[onnx.ModelProto], object], look: Callable[[onnx.ModelProto], object]) -> Probe:
    return Probe(name, edited(trunk(), change), look)


def _model() -> Iterator[Probe]:
    for field, given in (
        ("domain", "org.example"),
        ("model_version", 7),
        ("doc_string", "what it is\nand why"),
        ("producer_name", "someone"),
        ("producer_version", "1.2.3"),
        ("ir_version", 9),
    ):
        yield _set(f"model {field}", lambda m, f=field, v=given: setattr(m, f, v), lambda m, f=field: getattr(m, f))
    yield _set(
        "model metadata_props",
        lambda m: helper.set_model_props(m, {"classes": "a\nb", "empty": "", "é": "ü"}),
        lambda m: entries(m.metadata_props),
    )
    yield Probe(
        "opset import of a domain that no node uses",
        trunk(domains={"ai.onnx.ml": 3}),
        lambda m: [(o.domain, o.version) for o in m.opset_import if o.domain],
    )
    yield Probe("opset import of a domain that onnx does not know", trunk(domains={"org.x": 5}), _domains)
    yield _set("device configurations of the model", _configured, lambda m: [plain(c) for c in m.configuration])
    yield _set(
        "device configuration of a node",
        _node_configured,
        lambda m: [plain(c) for c in kept(m).device_configurations],
    )
    yield Probe("training_info", _trained("fc.bias"), lambda m: [plain(t) for t in m.training_info])
    yield Probe(
        "unknown protobuf fields of the model", _unknown_fields(), lambda m: m.producer_name, noted="does not know"
    )


def _domains(model: onnx.ModelProto) -> list[str]:
    return [o.domain for o in model.opset_import]


def _configured(model: onnx.ModelProto) -> None:
    model.ir_version = 11
    model.configuration.add(name="two", num_devices=2).device.extend(["cpu:0", "cpu:1"])


def _node_configured(model: onnx.ModelProto) -> None:
    _configured(model)
    kept(model).device_configurations.add(configuration_id="two", pipeline_stage=1)


def _trained(name: str) -> onnx.ModelProto:
    model = trunk()
    info = model.training_info.add()
    step = helper.make_node("Identity", [name], ["next"])
    info.algorithm.CopyFrom(helper.make_graph([step], "step", [], [value("next", (8,))]))
    info.update_binding.add(key=name, value="next")
    return model


def _unknown_fields() -> onnx.ModelProto:
    data = edited(trunk(), lambda m: setattr(m, "producer_name", "future")).SerializeToString()
    return onnx.ModelProto.FromString(data + b"\xc2\x3e\x03abc")  # field 1000, length-delimited


def _graph() -> Iterator[Probe]:
    yield _set("graph name", lambda m: setattr(m.graph, "name", "torch-jit-export"), lambda m: m.graph.name)
    yield _set("graph doc_string", lambda m: setattr(m.graph, "doc_string", "doc"), lambda m: m.graph.doc_string)
    yield _set(
        "graph metadata_props",
        lambda m: m.graph.metadata_props.add(key="k", value="v"),
        lambda m: entries(m.graph.metadata_props),
    )
    scale = weight("scale", np.float32(0.5))
    model = trunk(relu(), node("Mul", ["f", "scale"], ["extra"], "user"), weights=[scale], outputs=[value("extra")])
    annotation = model.graph.quantization_annotation.add(tensor_name="f")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    yield Probe("quantization_annotation", model, lambda m: [plain(a) for a in m.graph.quantization_annotation])


def _declarations() -> Iterator[Probe]:
    def changed(name: str, change: Callable[[onnx.ValueInfoProto], object], look: Callable[[Any], object]) -> Probe:
        return _set(f"input {name}", lambda m: change(m.graph.input[0]), lambda m: look(m.graph.input[0]))

    yield changed("doc_string", lambda v: setattr(v, "doc_string", "an image"), lambda v: v.doc_string)
    yield changed(
        "metadata_props", lambda v: v.metadata_props.add(key="k", value="v"), lambda v: entries(v.metadata_props)
    )
    yield changed("type denotation", lambda v: setattr(v.type, "denotation", "IMAGE"), lambda v: v.type.denotation)
    yield changed(
        "dimension denotation",
        lambda v: setattr(v.type.tensor_type.shape.dim[0], "denotation", "DATA_BATCH"),
        lambda v: v.type.tensor_type.shape.dim[0].denotation,
    )
    yield _set(
        "output doc_string",
        lambda m: setattr(m.graph.output[0], "doc_string", "scores"),
        lambda m: m.graph.output[0].doc_string,
    )
    inner = trunk(value_info=[value("f", doc_string="features")])
    yield Probe("inner value doc_string", inner, lambda m: declared(m.graph.value_info, "f"))
    inner = trunk(value_info=[value("f")])
    inner.graph.value_info[0].metadata_props.add(key="k", value="v")
    yield Probe("inner value metadata_props", inner, lambda m: declared(m.graph.value_info, "f"))
    custom = node("Foo", ["s"], ["f"], domain="org.x")
    model = trunk(custom, domains={"org.x": 1}, value_info=[value("f", ("N", 4))])
    yield Probe("inner value that only a custom operator knows", model, lambda m: declared(m.graph.value_info, "f"))


def _shapes() -> Iterator[Probe]:
    for name, dims in (
        ("named dimension", ("batch", 4)),
        ("dimension without a name", (None, 4)),
        ("dimension that is an expression", ("2*n + 1", 4)),
        ("no shape at all", None),
    ):
        model = trunk()
        model.graph.input[0].CopyFrom(value("x", dims))
        model.graph.output[0].CopyFrom(value("y", None if dims is None else (dims[0], 8)))
        yield Probe(name, model, lambda m: (plain(m.graph.input[0]), plain(m.graph.output[0])))
    model = trunk(node("Mul", ["s", "z"], ["f"]), inputs=[value("z", ())])
    yield Probe(
        "scalar input", model, lambda m: declared(m.graph.input, "z"), feed={"x": X, "z": np.array(2, np.float32)}
    )
    empty = node("Concat", ["s", "none"], ["f"], axis=0)
    model = trunk(empty, inputs=[value("none", (0, 4))])
    feed = {"x": X, "none": np.zeros((0, 4), np.float32)}
    yield Probe("dimension of size zero", model, lambda m: declared(m.graph.input, "none"), feed=feed)
    model = trunk(inputs=[value("unused", (3,))])
    feed = {"x": X, "unused": np.zeros(3, np.float32)}
    yield Probe("input that nothing uses", model, lambda m: declared(m.graph.input, "unused"), feed=feed)
    model = trunk(outputs=[value("x")])
    yield Probe("input that is an output", model, lambda m: [v.name for v in m.graph.output])
    twice = edited(trunk(), lambda m: m.graph.output.append(m.graph.output[0]))
    yield Probe("output listed twice", twice, refused="GO-308")


def _kinds() -> Iterator[Probe]:
    look = lambda m: (plain(m.graph.input[-1]), plain(m.graph.output[-1]))  # noqa: E731
    tensor = helper.make_tensor_type_proto(FLOAT, (2, 4))
    optional = helper.make_value_info("o", helper.make_optional_type_proto(tensor))
    model = trunk(node("OptionalGetElement", ["o"], ["f"]), inputs=[optional])
    yield Probe("optional tensor input", model, look, feed={"x": X, "o": X})
    sequence = helper.make_sequence_type_proto(tensor)
    model = trunk(
        node("OptionalHasElement", ["o"], ["has"]),
        relu(name="other"),
        inputs=[helper.make_value_info("o", helper.make_optional_type_proto(sequence))],
        outputs=[value("has", (), TensorProto.BOOL)],
    )
    yield Probe("optional sequence input", model, look, feed={"x": X, "o": [X]})
    model = trunk(
        node("Optional", ["s"], ["o"]),
        relu(name="other"),
        outputs=[helper.make_value_info("o", helper.make_optional_type_proto(tensor))],
    )
    yield Probe("optional output", model, look)
    model = trunk(
        node("SequenceAt", ["q", "zero"], ["f"]),
        inputs=[helper.make_value_info("q", sequence)],
        weights=[weight("zero", np.int64(0))],
    )
    yield Probe("sequence input with dimensions", model, look, feed={"x": X, "q": [X]})
    model = trunk(
        node("SequenceConstruct", ["s", "s"], ["q"]),
        relu(name="other"),
        outputs=[helper.make_value_info("q", sequence)],
    )
    yield Probe("sequence output", model, look)
    yield from _maps(look)
    model = trunk(
        node("StringNormalizer", ["t"], ["u"], case_change_action="UPPER"),
        relu(name="other"),
        inputs=[value("t", (1,), TensorProto.STRING)],
        outputs=[value("u", (1,), TensorProto.STRING)],
    )
    yield Probe("string input", model, look, feed={"x": X, "t": np.array(["a"], dtype=object)})
    sparse = TypeProto()
    sparse.sparse_tensor_type.elem_type = FLOAT
    model = trunk(
        node("Densify", ["p", "s"], ["f"], domain="org.x"),
        inputs=[helper.make_value_info("p", sparse)],
        domains={"org.x": 1},
    )
    yield Probe("sparse tensor input", model, look)


def _maps(look: Callable[[onnx.ModelProto], object]) -> Iterator[Probe]:
    kind = TypeProto()
    kind.map_type.key_type = TensorProto.INT64
    kind.map_type.value_type.tensor_type.elem_type = FLOAT
    model = trunk(
        node("DictVectorizer", ["m"], ["v"], domain="ai.onnx.ml", int64_vocabulary=[1, 2]),
        relu(name="other"),
        inputs=[helper.make_value_info("m", kind)],
        outputs=[value("v", (1, 2))],
        domains={"ai.onnx.ml": 3},
    )
    yield Probe("map input", model, look, feed={"x": X, "m": {1: 0.5, 2: 0.25}})
    listed = TypeProto()
    listed.sequence_type.elem_type.CopyFrom(kind)
    zipped = node("ZipMap", ["s"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    model = trunk(
        zipped,
        relu(name="other"),
        outputs=[helper.make_value_info("z", listed)],
        domains={"ai.onnx.ml": 3},
    )
    yield Probe("sequence of maps as output", model, look)
