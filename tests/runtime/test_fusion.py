"""Which of the model's nodes each node of the optimized graph stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.model.model import Model
from graphopt.runtime.fusion import Attribution, attribute
from graphopt.runtime.labels import Labelled, label
from graphopt.runtime.optimized import OptimizedNode, optimized_nodes
from graphopt.runtime.session import open_session
from graphopt.testing.builders import residual
from graphopt.testing.draft import Draft


def attributed(proto: onnx.ModelProto) -> tuple[Labelled, list[tuple[OptimizedNode, Attribution]]]:
    labelled = label(Model.from_proto(proto))
    kernels = optimized_nodes(labelled.skeleton)
    return labelled, list(zip(kernels, attribute(kernels, labelled), strict=True))


def taken(labelled: Labelled, found: Attribution) -> list[str]:
    return [labelled.nodes[index].op for index in found.sources]


def test_a_convolution_takes_in_its_norm_and_activation() -> None:
    draft = Draft()
    draft.input("x", [1, 8, 16, 16])
    y = draft.conv_bn_relu("x", "a", 8, 16)
    draft.head(y, 16)
    labelled, found = attributed(draft.model("one"))
    (convolution,) = [a for k, a in found if k.op.endswith("Conv")]
    assert taken(labelled, convolution) == ["Conv", "BatchNormalization", "Relu"]
    assert labelled.nodes[convolution.sources[0]].name == "a.conv/Conv"


def test_a_convolution_that_adds_the_shortcut_takes_in_add_and_activation_behind_it() -> None:
    labelled, found = attributed(residual(0))
    every = [index for _, a in found for index in a.sources]
    assert sorted(every) == list(range(len(labelled.nodes)))
    assert len(every) == len(set(every))
    if any(k.op.startswith("com.microsoft.nchwc") for k, _ in found):
        added = [taken(labelled, a) for k, a in found if k.op.endswith("Conv") and len(k.inputs) > 3]
        assert added
        assert all("Add" in ops for ops in added)


def test_reorders_are_layout_and_take_in_nothing() -> None:
    draft = Draft()
    draft.input("x", [1, 16, 16, 16])
    y = draft.conv("x", "a", 16, 16)
    draft.node("Tanh", [y], "b")
    z = draft.conv("b", "c", 16, 16)
    draft.output(z, [1, 16, 16, 16])
    _, found = attributed(draft.model("reordered"))
    reorders = [a for k, a in found if "Reorder" in k.op]
    assert all(a == Attribution("layout") for a in reorders)


def test_transposes_of_the_model_are_its_own_and_others_are_layout() -> None:
    draft = Draft()
    draft.input("x", [2, 3, 4])
    draft.node("Transpose", ["x"], "y", perm=[0, 2, 1])
    draft.output("y", [2, 4, 3])
    labelled, ((kernel, own),) = attributed(draft.model("transposed"))
    assert (own.kind, taken(labelled, own)) == ("source", ["Transpose"])
    assert attribute([OptimizedNode("Transpose", "Transpose_token_3", kernel.inputs, ("z",))], labelled) == [
        Attribution("layout")
    ]


def test_what_is_computed_on_loading_belongs_to_no_node() -> None:
    draft = Draft()
    draft.input("x", [4])
    draft.const("c", np.ones(4, np.float32))
    draft.node("Neg", ["c"], "d")
    draft.node("Add", ["x", "d"], "y")
    draft.output("y", [4])
    labelled, ((_, addition),) = attributed(draft.model("folded"))
    assert taken(labelled, addition) == ["Add"]


def test_a_node_of_the_providers_making_is_called_added() -> None:
    draft = Draft()
    draft.input("x", [4])
    draft.node("Neg", ["x"], "y")
    draft.output("y", [4])
    labelled, found = attributed(draft.model("cast"))
    cast = OptimizedNode("Cast", "InsertedPrecisionFreeCast_x", ("x",), ("made_up",))
    assert [a.kind for a in attribute([cast, found[0][0]], labelled)] == ["added", "source"]


def test_names_of_the_model_are_found_again() -> None:
    draft = Draft()
    draft.input("x", [4], TensorProto.FLOAT)
    draft.node("Neg", ["x"], "inner")
    draft.node("Abs", ["inner"], "y")
    draft.output("y", [4])
    labelled = label(Model.from_proto(draft.model("named")))
    assert labelled.given_name("t0_0") == "inner"
    assert [labelled.given_name(name) for name in ("y", "t9_0", "t0_7")] == ["y", "t9_0", "t0_7"]


def test_a_body_may_give_its_own_tensors_names_of_the_models() -> None:
    """A Loop whose body hands its input ``carried`` through, a name that a node of the model writes too."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, [1]),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, [1]),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [4]),
        ],
    )
    draft = Draft()
    draft.input("x", [4])
    draft.node("Neg", ["x"], "carried")
    count, go = draft.const("count", np.array(2, np.int64)), draft.const("go_on", np.array(True))
    draft.node("Loop", [count, go, "carried"], "y", body=body)
    draft.output("y", [4])
    labelled = label(Model.from_proto(draft.model("loop")))
    given = {"x": np.ones(4, np.float32)}
    np.testing.assert_array_equal(open_session(labelled.skeleton).run(given)["y"], -given["x"])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mobilenet_v1", "orientation", "ppocr_v4_rec", "cifar10_resnet32"])
def test_every_node_of_a_real_model_is_taken_in_once(shared: Path, name: str) -> None:
    labelled = label(Model.open(shared / "models" / name / "model.onnx"))
    kernels = optimized_nodes(labelled.skeleton)
    found = attribute(kernels, labelled)
    every = [index for a in found for index in a.sources]
    assert len(every) == len(set(every))
    missing = {node.op for index, node in enumerate(labelled.nodes) if index not in set(every)}
    folded = {"Constant", "Cast", "ConstantOfShape", "Concat", "Reshape", "Slice", "Transpose", "Shape", "Gather"}
    assert missing <= folded
    for kernel, a in zip(kernels, found, strict=True):
        if kernel.op.endswith(":Conv"):
            assert taken(labelled, a).count("Conv") == 1
