"""Models that parse and are wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.corpus.case import Case, bad_model
from tests.model.probes import model_of, relu, value, with_function, with_nested_bodies

FLOAT = TensorProto.FLOAT


def cases() -> Iterator[Case]:
    """All cases of this module."""
    yield from _versions()
    yield from _wiring()
    yield from _nodes()
    yield from _functions()
    yield from _function_nodes()
    yield from _tensors()
    yield from _external()


def _case(name: str, code: str, model: onnx.ModelProto | bytes, said: str = "", exit_code: int = 3) -> Case:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return bad_model(name, code, lambda path: path.write_bytes(data), said, exit_code)


def _edited(change: Callable[[onnx.ModelProto], object], model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    model = model or model_of([relu()])
    change(model)
    return model


def _versions() -> Iterator[Case]:
    yield _case("no graph", "GO-304", _edited(lambda m: m.ClearField("graph")), "no graph")
    yield _case("no IR version", "GO-305", _edited(lambda m: m.ClearField("ir_version")), "IR version")
    yield _case("no opset", "GO-305", _edited(lambda m: m.ClearField("opset_import")), "opset")
    yield _case("opset 999", "GO-305", model_of([relu()], opset=999), "999")
    yield _case("opset 0", "GO-305", model_of([relu()], opset=0), "opset 0")
    yield _case("IR version 999", "GO-305", model_of([relu()], ir_version=999), "999")
    unknown = helper.make_node("NoSuchThing", ["x"], ["y"], name="here")
    yield _case("an unknown operator", "GO-305", model_of([unknown]), "here")
    later = helper.make_node("Gelu", ["x"], ["y"], name="here")
    yield _case("an operator of a later opset", "GO-305", model_of([later], opset=17), "opset 17")
    only = _edited(lambda m: setattr(m.opset_import[0], "domain", "other"))
    yield _case("no opset of the standard domain", "GO-305", only, "standard domain")
    for name, domain in (("two spellings of the standard domain", "ai.onnx"), ("one domain twice", "")):
        both = _edited(lambda m, d=domain: m.opset_import.add(domain=d, version=11))
        yield _case(f"{name} at two opsets", "GO-305", both, f"21 of '' and 11 of '{domain}'")


def _wiring() -> Iterator[Case]:
    one = numpy_helper.from_array(np.ones(1, np.float32), "w")
    yield _case("a value defined twice", "GO-304", model_of([relu(), relu()]), "'y'")
    yield _case("a value that is an input too", "GO-304", model_of([relu("x", "x"), relu()]), "'x'")
    yield _case("a value never defined", "GO-304", model_of([relu("nowhere")]), "nowhere")
    yield _case("an output never computed", "GO-304", model_of([relu("x", "a")]), "'y'")
    circle = [helper.make_node("Add", ["x", "b"], ["a"], "one"), relu("a", "b", name="two"), relu("a")]
    yield _case("a cycle", "GO-304", model_of(circle), "one -> two")
    yield _case("a node that reads itself", "GO-304", model_of([helper.make_node("Add", ["x", "y"], ["y"])]), "cycle")
    yield _case("an initializer twice", "GO-304", model_of([relu()], initializer=[one, one]), "'w'")
    yield _case("an input twice", "GO-304", model_of([relu()], [value("x"), value("x")]), "'x'")
    yield _case("an output twice", "GO-308", model_of([relu()], None, [value("y"), value("y")]), "'y'")
    yield _case("an input without a name", "GO-304", model_of([relu()], [value("x"), value("")]), "no name")
    body = _edited(lambda m: _first_body(m).node[0].input.__setitem__(0, "nowhere"), with_nested_bodies())
    yield _case("a value never defined in a body", "GO-304", body, "nowhere")
    text = model_of([relu(name="MARK")]).SerializeToString().replace(b"MARK", b"MA\xffK")
    yield _case("a name that is not UTF-8", "GO-304", text, "UTF-8")
    node = helper.make_node("Foo", ["x"], ["y"], "many", domain="d")
    inner = helper.make_graph([relu("x", "z")], "b", [], [value("z")])
    node.attribute.add(name="bodies", type=AttributeProto.GRAPHS).graphs.append(inner)
    yield _case("a list of graphs", "GO-308", model_of([node], domains={"d": 1}), "'bodies'")


def _nodes() -> Iterator[Case]:
    def node(name: str, said: str, made: onnx.NodeProto, code: str = "GO-304") -> Case:
        return _case(name, code, model_of([made]), said)

    make = helper.make_node
    twice = make("LeakyRelu", ["x"], ["y"], "here", alpha=0.5)
    twice.attribute.add().CopyFrom(twice.attribute[0])
    foreign = make("Foo", ["x"], ["y"], "here", domain="d", a=1)
    foreign.attribute.add().CopyFrom(foreign.attribute[0])
    untyped = make("LeakyRelu", ["x"], ["y"], "here", alpha=0.5)
    untyped.attribute[0].ClearField("type")
    yield node("too few inputs", "the node has 1 input, Add takes 2 (node 'here')", make("Add", ["x"], ["y"], "here"))
    yield node("too many inputs", "the node has 2 inputs, Relu takes 1", make("Relu", ["x", "x"], ["y"], "here"))
    yield node("too few of any number of inputs", "the node has 0 inputs, Sum takes at least 1", make("Sum", [], ["y"]))
    yield node("too many outputs", "the node has 2 outputs, Relu gives 1", make("Relu", ["x"], ["y", "z"], "here"))
    yield node("an input left out that is needed", "input B", make("Add", ["x", ""], ["y"], "here"))
    yield node("an attribute that is missing", "needs the attribute 'to'", make("Cast", ["x"], ["y"], "here"))
    yield node("text for a number", "is of type STRING, INT is needed", make("Softmax", ["x"], ["y"], axis="abc"))
    yield node("an attribute without a type", "UNDEFINED, FLOAT is needed", untyped)
    yield node("an attribute twice", "'alpha' is given 2 times (node 'here')", twice)
    yield _case(
        "an attribute of a custom operator twice", "GO-304", model_of([foreign], domains={"d": 1}), "'a' is given"
    )
    yield node("an attribute nobody knows", "Relu of opset 21 has no", make("Relu", ["x"], ["y"], foo=1))
    yield node("an attribute of an older opset", "no attribute 'ratio'", make("Dropout", ["x"], ["y"], ratio=0.5))
    yield node("a node without an operator", "the node has no operator (node 'here')", make("", ["x"], ["y"], "here"))
    body = _edited(lambda m: _first_body(m).node[0].input.append("x"), with_nested_bodies())
    yield _case("too many inputs in a body", "GO-304", body, "the node has")
    yield _case("no outputs", "GO-304", _edited(lambda m: m.graph.ClearField("output")), "no outputs")


def _first_body(model: onnx.ModelProto) -> onnx.GraphProto:
    return next(a.g for node in model.graph.node for a in node.attribute if a.type == AttributeProto.GRAPH)


def _functions() -> Iterator[Case]:
    def calling(*bodies: tuple[str, str]) -> onnx.ModelProto:
        model = model_of([helper.make_node("F", ["x"], ["y"], domain="f")], domains={"f": 1})
        for name, called in bodies:
            body = [helper.make_node(called, ["p"], ["q"], domain="f")]
            model.functions.append(helper.make_function("f", name, ["p"], ["q"], body, [helper.make_opsetid("f", 1)]))
        return model

    yield _case("a function that calls itself", "GO-304", calling(("F", "F")), "F -> F")
    yield _case("functions that call each other", "GO-304", calling(("F", "G"), ("G", "F")), "F -> G -> F")
    yield _case("two functions of one name", "GO-304", calling(("F", "H"), ("F", "H")), "same domain")


def _function_nodes() -> Iterator[Case]:
    def case(name: str, said: str, made: onnx.NodeProto, opset: int = 21) -> Case:
        return _case(name, "GO-304", with_function([made], opset), said)

    make = helper.make_node
    at = "(node 'here' of function 'F')"
    yield case("too many inputs in a function", f"Relu takes 1 {at}", make("Relu", ["p", "p"], ["q"], "here"))
    yield case("an input left out in a function", f"leaves it out {at}", make("Add", ["p", ""], ["q"], "here"))
    yield case("an attribute missing in a function", f"has none {at}", make("Cast", ["p"], ["q"], "here"))
    yield case("an attribute nobody knows in a function", f"'foo' {at}", make("Relu", ["p"], ["q"], "here", foo=1))
    yield case("text for a number in a function", f"is needed {at}", make("Softmax", ["p"], ["q"], "here", axis="abc"))
    newer = make("Unsqueeze", ["p", "p"], ["q"], "here")
    yield case("inputs of a newer opset in a function", f"Unsqueeze takes 1 {at}", newer, 11)
    ends = [[value(name)] for name in ("a", "b")]
    bodies = [helper.make_graph([make("Relu", ["p", "p"], [e.name], "here")], e.name, [], [e]) for (e,) in ends]
    inner = make("If", ["p"], ["q"], then_branch=bodies[0], else_branch=bodies[1])
    yield case("too many inputs in a body of a function", f"Relu takes 1 {at}", inner)


def _with_weight(tensor: TensorProto) -> onnx.ModelProto:
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[tensor])


def _tensor(**fields: Any) -> TensorProto:
    return TensorProto(**{"name": "w", "data_type": FLOAT, "dims": [4], **fields})


def _tensors() -> Iterator[Case]:
    def held(name: str, code: str, said: str, exit_code: int = 3, **fields: Any) -> Case:
        return _case(name, code, _with_weight(_tensor(**fields)), said, exit_code)

    yield held("too few raw bytes", "GO-304", "holds 4 bytes, 16 are needed", raw_data=bytes(4))
    yield held("too many raw bytes", "GO-304", "holds 20 bytes", raw_data=bytes(20))
    yield held("too many typed values", "GO-304", "'w'", float_data=[0.0] * 5)
    yield held("no values", "GO-304", "'w'")
    yield held("a negative dimension", "GO-304", "negative", dims=[-4], raw_data=bytes(16))
    yield held("dimensions that overflow", "GO-304", "overflow", dims=[2**62, 2**62], raw_data=bytes(16))
    yield held("no element type", "GO-304", "'w'", data_type=0, raw_data=bytes(16))
    yield held("an element type of the future", "GO-308", "type 99", data_type=99, raw_data=bytes(16))
    yield held("a tensor of a TiB", "GO-701", "max_tensor_bytes", 7, dims=[2**38], raw_data=bytes(16))
    index = helper.make_tensor("i", TensorProto.INT64, [1], [9])
    for name, code, dims in (("a sparse index out of range", "GO-304", 4), ("a sparse bomb", "GO-308", 2**40)):
        sparse = helper.make_sparse_tensor(helper.make_tensor("w", FLOAT, [1], [1.0]), index, [dims])
        model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], sparse_initializer=[sparse])
        yield _case(name, code, model, "'w'")


def _external() -> Iterator[Case]:
    def case(name: str, said: str, prepare: Callable[[Path], object] = lambda folder: None, **fields: object) -> Case:
        def write(path: Path) -> None:
            (path.parent / "good.bin").write_bytes(bytes(16))
            prepare(path.parent)
            tensor = _tensor(data_location=TensorProto.EXTERNAL, **special)
            for key, text in {"location": "good.bin", **fields}.items():
                if text is not None:
                    tensor.external_data.add(key=key, value=str(text).replace("FOLDER", str(path.parent)))
            path.write_bytes(_with_weight(tensor).SerializeToString())

        special = fields.pop("special", {})
        return bad_model(name, "GO-306", write, said)

    def outside(folder: Path) -> Path:
        target = folder.parent / "outside.bin"
        target.write_bytes(bytes(16))
        return target

    yield case("external data that is missing", "'none.bin' (tensor 'w'): there is no such file", location="none.bin")
    yield case("missing external data out of the folder", "..", location="../none.bin")
    yield case("an external link to nowhere", "'w'", lambda f: (f / "l.bin").symlink_to("none"), location="l.bin")
    yield case(
        "external data that is too short",
        "the file has 3",
        lambda f: (f / "s.bin").write_bytes(bytes(3)),
        location="s.bin",
    )
    yield case(
        "external data that is empty", "the file has 0", lambda f: (f / "s.bin").write_bytes(b""), location="s.bin"
    )
    yield case("an external range beyond the end", "the file has 16", offset=8)
    yield case("a negative external offset", "'w'", offset=-4)
    yield case("a huge external length", "16 are needed", length=2**62)
    yield case("a negative external length", "16 are needed", length=-1)
    yield case("an external offset that is no number", "not a number", offset="four")
    yield case("no external location", "location is missing", location=None)
    yield case("external strings", "string", special={"data_type": TensorProto.STRING})
    yield case("an absolute external path", "'w'", outside, location="FOLDER/good.bin")
    yield case("an external path out of the folder", "'w'", outside, location="../outside.bin")
    yield case("an external folder", "'w'", lambda f: (f / "d").mkdir(), location="d")
    yield case("an external link", "'w'", lambda f: (f / "l.bin").symlink_to(outside(f)), location="l.bin")
    yield case("an external hard link", "'w'", lambda f: os.link(outside(f), f / "h.bin"), location="h.bin")
