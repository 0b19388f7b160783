"""Small models that use one feature of the file format each; see ``builders``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphopt.testing.draft import Draft


def dynamic_dims(seed: int = 0) -> onnx.ModelProto:
    """A convolutional classifier with named batch, height and width; input ``[batch, 3, height, width]``."""
    draft = Draft(seed)
    x = draft.conv_bn_relu(draft.input("input", ["batch", 3, "height", "width"]), "block1", 3, 32)
    x = draft.conv_bn_relu(x, "block2", 32, 32, stride=2)
    draft.head(x, 32, batch="batch")
    return draft.model("dynamic_dims")


def shared_weights(seed: int = 0) -> onnx.ModelProto:
    """Two Convs that read one weight and one bias; input ``[1, 32, 8, 8]``."""
    draft = Draft(seed)
    x = draft.input("input", [1, 32, 8, 8])
    shared = [draft.weight("shared.weight", 32, 32, 3, 3), draft.weight("shared.bias", 32, scale=0.1)]
    for name in ("first", "second"):
        y = draft.node("Conv", [x, *shared], f"{name}.conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = draft.node("Relu", [y], name)
    draft.head(x, 32)
    return draft.model("shared_weights")


def if_capturing_weight(seed: int = 0) -> onnx.ModelProto:
    """An If whose branches read a weight and a value of the outer graph; inputs ``[2, 16]`` and a bool."""
    draft = Draft(seed)
    x = draft.input("input", [2, 16])
    condition = draft.input("condition", [], TensorProto.BOOL)
    outer = draft.weight("outer.weight", 16, 8, scale=0.25)
    hidden = draft.node("Relu", [x], "hidden")
    then_graph = helper.make_graph(
        [helper.make_node("MatMul", [hidden, outer], ["then.y"], name="then/MatMul")],
        "then",
        [],
        [helper.make_tensor_value_info("then.y", TensorProto.FLOAT, [2, 8])],
    )
    else_graph = helper.make_graph(
        [
            helper.make_node("MatMul", [hidden, outer], ["else.product"], name="else/MatMul"),
            helper.make_node("Neg", ["else.product"], ["else.y"], name="else/Neg"),
        ],
        "else",
        [],
        [helper.make_tensor_value_info("else.y", TensorProto.FLOAT, [2, 8])],
    )
    draft.node("If", [condition], "output", then_branch=then_graph, else_branch=else_graph)
    draft.output("output", [2, 8])
    return draft.model("if_capturing_weight")


def quantized(seed: int = 0) -> onnx.ModelProto:
    """A Conv whose input and weight somebody already put through Q/DQ; input ``[1, 3, 8, 8]``."""
    draft = Draft(seed)
    x = draft.input("input", [1, 3, 8, 8])
    scale = draft.const("x.scale", np.array(0.03, np.float32))
    zero = draft.const("x.zero", np.array(128, np.uint8))
    x = draft.node("QuantizeLinear", [x, scale, zero], "x.q")
    x = draft.node("DequantizeLinear", [x, scale, zero], "x.dq")
    weight = draft.const("conv.weight.q", draft.rng.integers(-127, 128, (32, 3, 3, 3)).astype(np.int8))
    steps = draft.const("conv.weight.scale", draft.rng.uniform(0.002, 0.004, 32).astype(np.float32))
    zeros = draft.const("conv.weight.zero", np.zeros(32, np.int8))
    weight = draft.node("DequantizeLinear", [weight, steps, zeros], "conv.weight", axis=0)
    x = draft.node("Conv", [x, weight], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    draft.head(draft.node("Relu", [x], "act"), 32)
    return draft.model("quantized")


def opset8(seed: int = 0) -> onnx.ModelProto:
    """A classifier as exporters of 2018 wrote it: opset 8, IR 3, weights among the inputs, Reshape → Gemm."""
    draft = Draft(seed, opset=8, ir_version=3)
    x = draft.conv_bn_relu(draft.input("input", [1, 1, 8, 8]), "block", 1, 32)
    x = draft.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = draft.node("Reshape", [x, draft.const("shape", np.array([1, 512], np.int64))], "flat")
    names = [x, draft.weight("fc.weight", 512, 10, scale=0.06), draft.weight("fc.bias", 10, scale=0.1)]
    draft.node("Gemm", names, "output", alpha=1.0, beta=1.0)
    draft.output("output", [1, 10])
    _list_weights(draft)
    return draft.model("opset8")


def ir3(seed: int = 0) -> onnx.ModelProto:
    """IR 3: every initializer has to be a graph input too, and is a constant all the same."""
    draft = Draft(seed, opset=11, ir_version=3)
    x = draft.conv_bn_relu(draft.input("input", [1, 3, 8, 8]), "block", 3, 32)
    draft.head(x, 32)
    _list_weights(draft)
    return draft.model("ir3")


def overridable(seed: int = 0) -> onnx.ModelProto:
    """IR 8 with one of two weights listed as an input: a default one may override; input ``[2, 16]``."""
    draft = Draft(seed)
    x = draft.input("input", [2, 16])
    first = draft.weight("free.weight", 16, 32, scale=0.25)
    draft.input("free.weight", [16, 32])
    x = draft.node("Relu", [draft.node("MatMul", [x, first], "product")], "act")
    draft.node("MatMul", [x, draft.weight("fixed.weight", 32, 8, scale=0.18)], "output")
    draft.output("output", [2, 8])
    return draft.model("overridable")


def listed_weights(seed: int = 0, *, blocks: int = 2, size: int = 8, left_out: int = 0) -> onnx.ModelProto:
    """IR 4 with every initializer among the inputs, as exporters kept doing after IR 3; input ``[1, 32, size, size]``.

    Args:
        seed: of the weights.
        blocks: Conv 3x3 32 → 32, BatchNormalization, Relu; as many of them.
        size: height and width, in pixels.
        left_out: how many initializers, counted from the first, are not among the inputs.
    """
    draft = Draft(seed, opset=9, ir_version=4)
    x = draft.input("input", [1, 32, size, size])
    for index in range(blocks):
        x = draft.conv_bn_relu(x, "output" if index == blocks - 1 else f"block{index}", 32, 32)
    draft.output(x, [1, 32, size, size])
    _list_weights(draft, draft.initializers[left_out:])
    return draft.model("listed_weights")


def documented(seed: int = 0) -> onnx.ModelProto:
    """Metadata, doc strings, producer and value_info that a rewrite must not lose; input ``[2, 16]``."""
    draft = Draft(seed)
    x = draft.input("input", [2, 16])
    names = [x, draft.weight("fc.weight", 8, 16), draft.weight("fc.bias", 8, scale=0.1)]
    draft.node("Gemm", names, "hidden", transB=1, doc_string="the only layer")
    draft.node("Relu", ["hidden"], "output")
    draft.output("output", [2, 8])
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [2, 8], doc_string="before the Relu")
    proto = draft.model("documented", value_info=[hidden])
    helper.set_model_props(proto, {"task": "classification", "labels": "a,b,c"})
    proto.doc_string = "A model with papers."
    proto.domain = "org.example"
    proto.model_version = 7
    proto.producer_version = "1.2.3"
    proto.graph.doc_string = "Its graph."
    proto.graph.input[0].doc_string = "Sixteen features."
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _list_weights(draft: Draft, tensors: Sequence[onnx.TensorProto] | None = None) -> None:
    for tensor in draft.initializers if tensors is None else tensors:
        draft.input(tensor.name, list(tensor.dims), tensor.data_type)
