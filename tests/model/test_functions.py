"""Local functions: what is wrong with a node in one is told, and nothing is refused that onnxruntime takes."""

from __future__ import annotations

import onnx
import pytest
from onnx import AttributeProto, helper

from graphopt.errors import ModelError, RuntimeFailure
from graphopt.model.model import Model
from graphopt.runtime.session import open_session
from tests.model.probes import with_function

RELU = helper.make_node("Relu", ["p"], ["q"])
UNKNOWN = helper.make_node("Relu", ["p"], ["q"], foo=1)
TOO_MANY = helper.make_node("Relu", ["p", "p"], ["q"])


def referring(op: str, attribute: str, kind: int) -> onnx.NodeProto:
    node = helper.make_node(op, ["p"], ["q"])
    node.attribute.add(name=attribute, type=kind, ref_attr_name="given")
    return node


def through_another(inner: onnx.NodeProto) -> onnx.ModelProto:
    model = with_function([helper.make_node("G", ["p"], ["q"], domain="f")])
    model.functions.append(helper.make_function("f", "G", ["p"], ["q"], [inner], [helper.make_opsetid("", 21)]))
    return model


def newer_attribute() -> onnx.ModelProto:
    """An attribute that the function's version does not have, and the model's has."""
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[4])
    return with_function([shape, helper.make_node("Reshape", ["p", "shape"], ["q"], allowzero=0)], 13)


def calling(inputs: list[str], outputs: list[str], *, nested: bool = False) -> onnx.ModelProto:
    """A call of F, which takes an input that it needs and one that it does not, and gives two outputs."""
    call = helper.make_node("F", inputs, outputs, "call", domain="f")
    model = with_function([RELU])
    function = model.functions[0]
    function.input.append("unused")
    function.output.append("r")
    function.node.add().CopyFrom(helper.make_node("Neg", ["p"], ["r"]))
    if nested:
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
        model.functions.append(helper.make_function("f", "G", ["x"], ["y"], [call], imports))
        call = helper.make_node("G", ["x"], ["y"], domain="f")
    model.graph.node[0].CopyFrom(call)
    return model


TAKEN = {
    "a call that fits": calling(["x", "x"], ["y", "z"]),
    "a call that leaves inputs and outputs out": calling(["x"], ["y", ""]),
    "a call within a function": calling(["x"], ["y", "z"], nested=True),
    "a node that fits": with_function([RELU]),
    "an attribute that the call gives": with_function(
        [referring("LeakyRelu", "alpha", AttributeProto.FLOAT)], given=0.5
    ),
    "one that is needed": with_function([referring("Cast", "to", AttributeProto.INT)], given=1),
    "one whose type is not told": with_function([referring("LeakyRelu", "alpha", 0)], given=0.5),
    "an unknown attribute in a function that is not called": with_function([UNKNOWN], called=False),
    "one in a function that the runtime has an operator for": with_function([UNKNOWN], name=("com.microsoft", "Gelu")),
    "an attribute that only the model's version has": newer_attribute(),
}
REFUSED = {
    "a call with too many inputs": calling(["x", "x", ""], ["y", ""]),
    "a call with too many outputs": calling(["x"], ["y", "", ""]),
    "a call with too few outputs": calling(["x"], ["y"]),
    "a call with too many inputs within a function": calling(["x", "x", "x"], ["y", ""], nested=True),
    "too many inputs": with_function([TOO_MANY]),
    "too many inputs in a function that is not called": with_function([TOO_MANY], called=False),
    "inputs of a newer version": with_function([helper.make_node("Unsqueeze", ["p", "p"], ["q"])], 11, called=False),
    "an unknown attribute": with_function([UNKNOWN]),
    "an unknown attribute in a function that a function calls": through_another(UNKNOWN),
    "an input that is left out": with_function([helper.make_node("Add", ["p", ""], ["q"])]),
    "an attribute that is missing": with_function([helper.make_node("Cast", ["p"], ["q"])]),
    "text for a number": with_function([helper.make_node("Softmax", ["p"], ["q"], axis="abc")]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_onnxruntime_takes_is_taken(name: str) -> None:
    open_session(TAKEN[name].SerializeToString())
    Model.from_proto(TAKEN[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_onnxruntime_refuses_too(name: str) -> None:
    with pytest.raises(RuntimeFailure):
        open_session(REFUSED[name].SerializeToString())
    with pytest.raises(ModelError, match=r"function '[FG]'") as raised:
        Model.from_proto(REFUSED[name])
    assert raised.value.code == "GO-304"


def test_a_function_without_a_version_is_left_to_the_runtime() -> None:
    model = with_function([TOO_MANY], called=False)
    del model.functions[0].opset_import[:]
    Model.from_proto(model)
