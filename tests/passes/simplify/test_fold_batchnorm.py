"""Rule `fold-batchnorm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from graphopt.testing.draft import Draft

from .harness import constant, distance, multi_output, simplified

Layer = Callable[[Draft], tuple[str, int]]


def conv(group: int = 1, bias: bool = False, pads: int = 1) -> Layer:
    """A Conv of 6 to 8 channels."""

    def make(draft: Draft) -> tuple[str, int]:
        names = [draft.input("x", ["n", 6, 5, 5]), draft.weight("w", 8, 6 // group, 3, 3)]
        names += [draft.weight("b", 8)] if bias else []
        return draft.node("Conv", names, "z", name="layer", pads=[pads] * 4, group=group), 8

    return make


def conv_transpose(group: int = 1, bias: bool = False) -> Layer:
    """A ConvTranspose of 6 to 8 channels."""

    def make(draft: Draft) -> tuple[str, int]:
        names = [draft.input("x", ["n", 6, 5, 5]), draft.weight("w", 6, 8 // group, 3, 3)]
        names += [draft.weight("b", 8)] if bias else []
        return draft.node("ConvTranspose", names, "z", name="layer", strides=[2, 2], group=group), 8

    return make


def gemm(bias_shape: tuple[int, ...] | None = (8,), **attributes: Any) -> Layer:
    """A Gemm of 6 to 8 features."""

    def make(draft: Draft) -> tuple[str, int]:
        weight = draft.weight("w", *((8, 6) if attributes.get("transB") else (6, 8)))
        names = [draft.input("x", ["n", 6]), weight]
        if bias_shape is not None:
            names.append(constant(draft, "b", draft.rng.standard_normal(bias_shape).astype(np.float32)))
        return draft.node("Gemm", names, "z", name="layer", **attributes), 8

    return make


def normalized(layer: Layer, opset: int = 17, seed: int = 0) -> onnx.ModelProto:
    """The layer with a BatchNormalization behind it."""
    draft = Draft(seed, opset=opset)
    z, channels = layer(draft)
    draft.batch_norm(z, "y", channels)
    rank = 2 if draft.nodes[0].op_type == "Gemm" else 4
    draft.output("y", ["n", channels, None, None][:rank])
    return draft.model("normalized")


LAYERS = {
    "conv": conv(),
    "conv with bias": conv(bias=True),
    "grouped conv": conv(group=2),
    "conv without padding": conv(pads=0),
    "transposed": conv_transpose(),
    "transposed with bias": conv_transpose(bias=True),
    "grouped transposed": conv_transpose(group=2, bias=True),
    "gemm": gemm(),
    "gemm without bias": gemm(None),
    "gemm transB": gemm(transB=1),
    "gemm alpha beta": gemm(alpha=0.5, beta=2.0),
    "gemm beta zero": gemm(beta=0.0),
    "gemm scalar bias": gemm((), beta=3.0),
    "gemm one-row bias": gemm((1, 8)),
    "gemm one-element bias": gemm((1,)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("opset", [9, 17])
def test_it_folds(name: str, opset: int) -> None:
    if opset == 9 and name == "gemm without bias":
        pytest.skip("C is required before opset 11")
    done = simplified(normalized(LAYERS[name], opset))
    assert len(done.ops) == 1
    assert done.rules == {"fold-batchnorm": 1}
    assert 0 < distance(done, n=2) < 2e-6
    assert not simplified(normalized(LAYERS[name], opset), exact_only=True).result.modified


def test_depthwise() -> None:
    draft = Draft()
    z = draft.conv(draft.input("x", [1, 8, 5, 5]), "z", 8, 8, group=8)
    draft.batch_norm(z, "y", 8)
    draft.output("y", [1, 8, 5, 5])
    done = simplified(draft.model("depthwise"))
    assert done.ops == ["Conv"]
    assert distance(done) < 2e-6


def test_two_in_a_row_both_fold() -> None:
    draft = Draft()
    z = draft.conv(draft.input("x", [1, 3, 5, 5]), "z", 3, 8, bias=True)
    draft.batch_norm(draft.batch_norm(z, "first", 8), "y", 8)
    draft.output("y", [1, 8, 5, 5])
    done = simplified(draft.model("twice"))
    assert done.ops == ["Conv"]
    assert distance(done) < 4e-6


def test_half_precision_is_folded_in_double_and_rounded_once() -> None:
    proto = normalized(conv())
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    done = simplified(proto)
    assert done.ops == ["Conv"]
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    factor = values["y.scale"] / np.sqrt(values["y.var"] + np.float32(1e-5))
    weight = done.after.editor.constant(done.after.editor.nodes()[0].inputs[1])
    assert weight is not None and weight.dtype == np.float16
    np.testing.assert_array_equal(weight, (values["w"] * factor[:, None, None, None]).astype(np.float16))


def test_a_shared_weight_is_copied() -> None:
    draft = Draft()
    x = draft.input("x", [1, 4, 5, 5])
    weight = draft.weight("w", 4, 4, 3, 3)
    first = draft.batch_norm(draft.node("Conv", [x, weight], "z1", pads=[1] * 4), "n1", 4)
    second = draft.batch_norm(draft.node("Conv", [first, weight], "z2", pads=[1] * 4), "n2", 4)
    draft.node("Conv", [second, weight], "y", pads=[1] * 4)
    draft.output("y", [1, 4, 5, 5])
    done = simplified(draft.model("shared"))
    assert done.ops == ["Conv"] * 3
    assert done.rules["fold-batchnorm"] == 2
    assert distance(done) < 4e-6


def _with(change: Callable[[Draft, str], None]) -> onnx.ModelProto:
    draft = Draft()
    z = draft.conv(draft.input("x", [1, 3, 4, 4]), "z", 3, 4)
    draft.output("y", [1, 4, 4, 4])
    change(draft, z)
    return draft.model("near miss")


def _other_user(draft: Draft, z: str) -> None:
    draft.node("Add", [draft.batch_norm(z, "n", 4), z], "y")


def _graph_output(draft: Draft, z: str) -> None:
    draft.batch_norm(z, "y", 4)
    draft.output("z", [1, 4, 4, 4])


def _parameters(draft: Draft) -> list[str]:
    return [draft.const(name, np.ones(4, np.float32)) for name in ("scale", "bias", "mean", "var")]


def _training(draft: Draft, z: str) -> None:
    multi_output(draft, "BatchNormalization", [z, *_parameters(draft)], ["y", "new_mean", "new_var"], training_mode=1)


def _scale_from_outside(draft: Draft, z: str) -> None:
    names = [draft.input("s", [4]), *_parameters(draft)[1:]]
    draft.initializers = [t for t in draft.initializers if t.name != "scale"]
    draft.node("BatchNormalization", [z, *names], "y")


def _negative_variance(draft: Draft, z: str) -> None:
    names = [*_parameters(draft)[:3], draft.const("minus", np.full(4, -1, np.float32))]
    draft.initializers = [t for t in draft.initializers if t.name != "var"]
    draft.node("BatchNormalization", [z, *names], "y")


def _overflow(draft: Draft, z: str) -> None:
    names = [draft.const("huge", np.full(4, 3e38, np.float32)), *_parameters(draft)[1:3]]
    names.append(draft.const("tiny", np.full(4, 1e-30, np.float32)))
    draft.initializers = [t for t in draft.initializers if t.name not in ("scale", "var")]
    draft.node("BatchNormalization", [z, *names], "y", epsilon=1e-30)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_user, "the output of z/Conv has another user or is a graph output"),
        (_graph_output, "the output of z/Conv has another user or is a graph output"),
        (_training, "BatchNormalization in training mode is left alone"),
        (_scale_from_outside, "scale, bias, mean or variance is not constant"),
        (_negative_variance, "the statistics do not fit the weights of z/Conv"),
        (_overflow, "the folded weights of z/Conv are out of the range of float32"),
    ],
)
def test_near_misses_stay_with_a_reason(change: Callable[[Draft, str], None], reason: str) -> None:
    done = simplified(_with(change))
    assert not done.result.modified
    assert done.reasons("fold-batchnorm") == [reason]


def test_weights_from_outside_stay() -> None:
    draft = Draft()
    x, weight = draft.input("x", [1, 3, 4, 4]), draft.input("w", [4, 3, 1, 1])
    draft.batch_norm(draft.node("Conv", [x, weight], "z", name="layer"), "y", 4)
    draft.output("y", [1, 4, 4, 4])
    done = simplified(draft.model("weights from outside"))
    assert done.reasons("fold-batchnorm") == ["weight or bias of layer is not a floating-point constant"]


def test_an_overridable_weight_is_not_a_constant() -> None:
    draft = Draft()
    x, weight = draft.input("x", [1, 3, 4, 4]), draft.input("w", [4, 3, 1, 1])
    draft.weight("w", 4, 3, 1, 1)
    draft.batch_norm(draft.node("Conv", [x, weight], "z", name="layer"), "y", 4)
    draft.output("y", [1, 4, 4, 4])
    assert not simplified(draft.model("overridable")).result.modified


def test_a_full_gemm_bias_stays() -> None:
    draft = Draft()
    names = [draft.input("x", [2, 6]), draft.weight("w", 6, 8), draft.weight("b", 2, 8)]
    draft.batch_norm(draft.node("Gemm", names, "z", name="layer"), "y", 8)
    draft.output("y", [2, 8])
    assert not simplified(draft.model("full bias")).result.modified


def test_behind_an_activation_it_stays() -> None:
    draft = Draft()
    z = draft.node("Relu", [draft.conv(draft.input("x", [1, 3, 4, 4]), "z", 3, 4)], "r")
    draft.batch_norm(z, "y", 4)
    draft.output("y", [1, 4, 4, 4])
    assert not simplified(draft.model("behind relu")).result.modified


@pytest.mark.parametrize("skip", ["layer", "op:BatchNormalization"])
def test_a_selection_holds_for_both_nodes(skip: str) -> None:
    assert not simplified(normalized(conv()), skip=(skip,)).result.modified


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    name=st.sampled_from(sorted(LAYERS)),
    epsilon=st.sampled_from([1e-5, 1e-3, 0.1]),
    spread=st.floats(1e-3, 1e3),
)
def test_random_statistics_stay_within_rounding(seed: int, name: str, epsilon: float, spread: float) -> None:
    proto = normalized(LAYERS[name], seed=seed)
    proto.graph.node[-1].attribute[0].f = epsilon
    for tensor in proto.graph.initializer:
        if tensor.name.endswith((".var", ".mean")):
            value = numpy_helper.to_array(tensor) * np.float32(spread)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    done = simplified(proto)
    assert len(done.ops) == 1
    assert distance(done, n=2) <= 1e-5
