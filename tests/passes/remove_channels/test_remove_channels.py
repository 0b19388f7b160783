"""The pass `remove-channels`: what is cut equals what was masked, what stays has a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from pydantic import ValidationError

from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.passes.remove_channels import RemoveChannels
from graphopt.passes.remove_channels.importance import strongest
from graphopt.passes.remove_channels.widths import kept_width
from graphopt.pipeline.contract import Refusal
from graphopt.runtime.session import open_session
from graphopt.testing import builders, formats
from graphopt.testing.draft import Draft
from tests.passes.remove_channels.channel_cases import feeds, gap, made, nets, outputs, removed, shapes


def reasons(result: Any) -> str:
    return "\n".join(f"{skip.where}: {skip.reason}" for skip in result.skipped)


# The masked oracle


@settings(max_examples=40, deadline=None, derandomize=True)
@given(proto=nets(), ratio=st.sampled_from([0.25, 0.5, 0.75]))
def test_the_cut_model_equals_the_masked_one(proto: onnx.ModelProto, ratio: float) -> None:
    candidate, result = removed(proto, ratio=ratio)
    if result.oracle is None:
        assert result.skipped and not result.modified
        return
    assert gap(result.oracle, candidate) <= 1e-5
    assert candidate.parameter_count < result.oracle.parameter_count
    assert candidate.interface == Model.of(proto).interface


@pytest.mark.parametrize("name", sorted(builders.ALL))
def test_every_builder_is_cut_exactly_or_left_alone(name: str) -> None:
    proto = builders.ALL[name](0)
    try:
        candidate, result = removed(proto)
    except Refusal:
        assert not any(n.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose") for n in proto.graph.node)
        return
    if not result.modified:
        assert result.skipped and not result.applied
    elif name != "if_capturing_weight":
        assert result.oracle is not None and gap(result.oracle, candidate) <= 1e-5


def test_masking_only_writes_zeros() -> None:
    source = builders.residual(0)
    _, result = removed(source)
    assert result.oracle is not None
    before = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in result.oracle.to_proto().graph.initializer}
    assert before.keys() == after.keys()
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert {"stem.conv.weight", "back.conv.weight", "back.scale", "back.bias"} <= set(changed)
    assert not any("mean" in name or "var" in name for name in changed)
    assert all((after[name][before[name] != after[name]] == 0).all() for name in changed)


def test_the_oracle_is_the_source_with_producer_rows_zeroed_where_zero_stays_zero() -> None:
    proto = builders.flatten_gemm(0)
    candidate, _ = removed(proto)
    by_hand = onnx.ModelProto()
    by_hand.CopyFrom(proto)
    values = {t.name: t for t in by_hand.graph.initializer}
    stays = {tuple(row) for row in shapes_of(candidate, "block.conv.weight").reshape(16, -1).tolist()}
    weight = numpy_helper.to_array(values["block.conv.weight"])
    lost = [i for i, row in enumerate(weight.reshape(32, -1)) if tuple(row.tolist()) not in stays]
    assert len(lost) == 16
    for name in ("block.conv.weight", "block.bn.scale", "block.bn.bias"):
        array = numpy_helper.to_array(values[name]).copy()
        array[lost] = 0
        values[name].CopyFrom(numpy_helper.from_array(array, name))
    assert gap(Model.from_proto(by_hand), candidate) <= 1e-5


def shapes_of(model: Model, name: str) -> Any:
    return next(numpy_helper.to_array(t) for t in model.to_proto().graph.initializer if t.name == name)


# What shrinks to what


def test_residual_connections_shrink_together() -> None:
    candidate, _ = removed(builders.residual(0))
    found = shapes(candidate)
    assert found["stem.conv.weight"] == (16, 3, 3, 3)
    assert found["inner.conv.weight"] == (32, 16, 3, 3)
    assert found["back.conv.weight"] == (16, 32, 3, 3)
    assert found["back.scale"] == found["back.var"] == (16,)
    assert found["fc.weight"] == (10, 16) and found["fc.bias"] == (10,)


def test_a_depthwise_layer_follows_its_input() -> None:
    candidate, _ = removed(builders.depthwise(0))
    found = shapes(candidate)
    assert found["depthwise.conv.weight"] == (16, 1, 3, 3)
    node = next(n for n in candidate.editor.nodes() if n.name == "depthwise.conv/Conv")
    assert node.attrs["group"] == 16


def test_a_concatenation_keeps_its_parts_apart() -> None:
    candidate, result = removed(builders.concat(0), ratio=0.25)
    found = shapes(candidate)
    assert (found["left.conv.weight"][0], found["right.conv.weight"][0]) == (24, 48)
    assert found["merge.conv.weight"] == (24, 72, 1, 1)
    assert result.summary["channels_removed"] == 8 + 8 + 16 + 8


def test_a_channel_of_a_feature_map_is_a_block_of_gemm_columns() -> None:
    candidate, _ = removed(builders.flatten_gemm(0))
    assert shapes(candidate)["fc.weight"] == (10, 256)


def test_heads_are_found_without_a_hint() -> None:
    candidate, result = removed(builders.attention(0))
    found = shapes(candidate)
    assert found["query.weight"] == found["key.weight"] == (32, 16)
    assert found["value.weight"] == (32, 16) and found["proj.weight"] == (16, 32)
    assert found["up.weight"] == (32, 32)
    assert "8 channels" not in reasons(result)


def test_a_gate_is_cut_with_what_it_gates() -> None:
    candidate, _ = removed(builders.squeeze_excite(0))
    found = shapes(candidate)
    assert found["reduce.weight"] == (4, 16, 1, 1) and found["expand.weight"] == (16, 4, 1, 1)


def test_a_transposed_convolution_is_cut_on_both_sides() -> None:
    candidate, _ = removed(builders.conv_transpose(0))
    assert shapes(candidate)["up.weight"] == (16, 16, 2, 2)


def test_one_weight_shared_by_two_layers_is_sliced_for_each() -> None:
    candidate, result = removed(formats.shared_weights(0))
    assert result.modified and result.oracle is not None
    assert gap(result.oracle, candidate) <= 1e-5


def test_a_weight_that_stays_whole_elsewhere_is_not_copied_to_cut_it() -> None:
    proto = builders.mlp(0)
    weight = next(w for w in proto.graph.initializer if w.name == "fc2.weight")
    proto.graph.output.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    candidate, result = removed(proto)
    assert not result.modified and candidate.parameter_count == Model.from_proto(proto).parameter_count
    assert "weight 'fc2.weight' is read elsewhere, where it stays whole" in reasons(result)


def test_a_small_weight_that_stays_elsewhere_does_not_keep_a_large_one() -> None:
    proto = builders.mlp(0)
    bias = next(w for w in proto.graph.initializer if w.name == "fc1.bias")
    proto.graph.output.append(onnx.helper.make_tensor_value_info(bias.name, bias.data_type, bias.dims))
    candidate, result = removed(proto)
    assert result.modified
    assert candidate.parameter_count < Model.from_proto(proto).parameter_count


def test_shapes_that_the_graph_computes_are_followed() -> None:
    draft = Draft(0)
    x = draft.conv(draft.input("input", ["n", 3, 4, 4]), "c", 3, 8)
    sizes = draft.node("Shape", [x], "sizes")
    first = draft.node("Gather", [sizes, draft.const("zero", np.array([0], np.int64))], "first")
    shape = draft.node("Concat", [first, draft.const("rest", np.array([128], np.int64))], "shape", axis=0)
    flat = draft.node("Reshape", [x, shape], "flat")
    draft.node("MatMul", [flat, draft.weight("w", 128, 5)], "output")
    draft.output("output", ["n", 5])
    candidate, result = removed(draft.model("computed"))
    assert shapes(candidate)["w"] == (64, 5)
    assert result.oracle is not None and gap(result.oracle, candidate) <= 1e-5


def test_pads_computed_from_constants_freeze_nothing() -> None:
    draft = Draft(0)
    x = draft.conv(draft.input("input", ["n", 3, 6, 6]), "c", 3, 8)
    zeros = draft.node(
        "ConstantOfShape",
        [draft.const("four", np.array([4], np.int64))],
        "zeros",
        value=numpy_helper.from_array(np.array([0], np.int64)),
    )
    half = draft.node("Concat", [draft.const("ends", np.array([0, 1, 0, 1], np.int64)), zeros], "half", axis=0)
    table = draft.node("Reshape", [half, draft.const("pairs", np.array([-1, 2], np.int64))], "table")
    turned = draft.node(
        "Slice",
        [
            table,
            *(draft.const(n, np.array([v], np.int64)) for n, v in (("s", -1), ("e", -(2**62)), ("a", 0), ("p", -1))),
        ],
        "turned",
    )
    flipped = draft.node("Transpose", [turned], "flipped", perm=[1, 0])
    pads = draft.node("Reshape", [flipped, draft.const("line", np.array([-1], np.int64))], "pads")
    x = draft.node("Pad", [x, pads], "wide")
    draft.head(draft.conv(x, "d", 8, 6, kernel=1), 6, batch="n")
    candidate, _ = removed(draft.model("pads"))
    assert shapes(candidate)["d.weight"] == (3, 4, 1, 1)


def picking_net(indices: list[int]) -> onnx.ModelProto:
    """Two convolutions, channels picked by constant indices, two convolutions."""
    draft = Draft(5)
    x = draft.conv(draft.input("input", [1, 3, 8, 8]), "a", 3, 8)
    x = draft.conv(draft.node("Relu", [x], "a.relu"), "b", 8, 8)
    x = draft.node("Gather", [x, draft.const("indices", np.array(indices, np.int64))], "picked", axis=1)
    x = draft.conv(draft.node("Relu", [x], "p.relu"), "c", len(indices), 8)
    draft.head(draft.conv(draft.node("Relu", [x], "c.relu"), "d", 8, 6, kernel=1), 6)
    return draft.model("picking")


@pytest.mark.parametrize("indices", [[7, 6, 5, 4, 3, 2, 1, 0], [3, 1, 2], [0, 0, 1, 1], [-1, 0, 4, -3, 2]])
def test_channels_picked_in_another_order_stay_and_the_others_are_cut(indices: list[int]) -> None:
    candidate, result = removed(picking_net(indices))
    assert result.oracle is not None and gap(result.oracle, candidate) <= 1e-5
    found = shapes(candidate)
    assert found["a.weight"][0] == found["c.weight"][0] == 4
    assert found["b.weight"][0] == 8 and found["c.weight"][1] == len(indices)
    assert "picks some of its entries" in reasons(result)


SHUFFLE = [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("indices", "picked"), [(SHUFFLE, 4), ([4, 5, 6, 7, 0, 1, 2, 3], 4), ([-4, -3, -2, -1], 2), ([5, 6, 7, 1, 2, 3], 4)]
)
def test_indices_that_move_channels_in_runs_or_shuffle_them_are_followed(indices: list[int], picked: int) -> None:
    proto = picking_net(indices)
    candidate, result = removed(proto)
    assert result.oracle is not None and gap(result.oracle, candidate) <= 1e-5
    found = shapes(candidate)
    assert found["b.weight"][0] < 8
    assert found["c.weight"][1] == found["indices"][0] == picked


# A removed channel that is not zero


def sigmoid_net(kernel: int) -> onnx.ModelProto:
    draft = Draft(3)
    x = draft.conv(draft.input("input", [1, 3, 8, 8]), "before", 3, 8, bias=True)
    x = draft.node("Sigmoid", [x], "gate")
    draft.head(draft.conv(x, "after", 8, 8, kernel=kernel, bias=True), 8)
    return draft.model("sigmoid")


def test_a_constant_left_behind_goes_into_the_bias() -> None:
    proto = sigmoid_net(1)
    candidate, result = removed(proto)
    assert result.oracle is not None and gap(result.oracle, candidate) <= 1e-5
    assert shapes(candidate)["before.weight"][0] == 4
    # zeroed producer rows mean sigmoid(0) = 0.5 behind them, not 0
    kept = shapes_of(candidate, "before.weight").reshape(4, -1)
    source = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    lost = [i for i, row in enumerate(source["before.weight"].reshape(8, -1)) if not (row == kept).all(1).any()]
    push = 0.5 * source["after.weight"][:, lost, 0, 0].sum(1)
    rows = shapes_of(candidate, "after.weight").reshape(4, 4)
    stays = [
        i for i in range(8) if any(np.array_equal(np.delete(source["after.weight"][i, :, 0, 0], lost), r) for r in rows)
    ]
    np.testing.assert_allclose(shapes_of(candidate, "after.bias"), (source["after.bias"] + push)[stays], rtol=1e-5)


def test_a_constant_at_a_padded_border_is_a_reason_to_stay() -> None:
    candidate, result = removed(sigmoid_net(3))
    assert shapes(candidate)["before.weight"][0] == 8
    assert "before/Conv: 8 channels stay: a removed channel is 0.5 at after/Conv" in reasons(result)


# What stays, and why


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (builders.mlp, "it feeds the graph output output"),
        (builders.attention, "it is an axis of the graph input input"),
        (formats.quantized, "quantized already (Q/DQ)"),
        (formats.overridable, "can be overridden by a graph input"),
    ],
)
def test_what_stays_has_a_reason(build: Any, words: str) -> None:
    _, result = removed(build(0))
    assert words in reasons(result)


def test_an_unknown_operator_freezes_what_it_touches() -> None:
    draft = Draft(0)
    x = draft.conv(draft.input("input", [1, 3, 8, 8]), "c", 3, 8)
    x = draft.node("LpNormalization", [x], "normal", axis=1)
    draft.head(draft.conv(x, "d", 8, 8), 8)
    candidate, result = removed(draft.model("unknown"))
    assert shapes(candidate)["c.weight"] == (8, 3, 3, 3)
    assert "c/Conv: 8 channels stay: no rule for the operator LpNormalization" in reasons(result)


def test_layer_normalisation_keeps_its_channels() -> None:
    draft = Draft(0)
    x = draft.node("MatMul", [draft.input("input", [2, 5, 6]), draft.weight("w", 6, 8)], "h")
    names = [x, draft.const("scale", np.ones(8, np.float32)), draft.const("shift", np.zeros(8, np.float32))]
    x = draft.node("LayerNormalization", names, "normal", axis=-1)
    draft.node("MatMul", [x, draft.weight("v", 8, 3)], "output")
    draft.output("output", [2, 5, 3])
    _, result = removed(draft.model("norm"))
    assert "h/MatMul: 8 channels stay: normal/LayerNormalization takes its statistics over the channels" in reasons(
        result
    )


def test_a_body_that_reads_a_feature_map_keeps_its_channels() -> None:
    draft = Draft(0)
    x = draft.conv(draft.input("input", [1, 3, 8, 8]), "c", 3, 8)
    branches = {}
    for branch in ("then", "else"):
        info = onnx.helper.make_tensor_value_info(f"{branch}.out", onnx.TensorProto.FLOAT, [1, 8, 8, 8])
        node = onnx.helper.make_node("Relu" if branch == "then" else "Neg", [x], [f"{branch}.out"])
        branches[f"{branch}_branch"] = onnx.helper.make_graph([node], branch, [], [info])
    draft.inputs.append(onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    y = draft.node("If", ["flag"], "picked", **branches)
    draft.head(draft.conv(y, "d", 8, 8), 8)
    candidate, result = removed(draft.model("body"))
    assert shapes(candidate)["c.weight"] == (8, 3, 3, 3)
    assert "c/Conv: 8 channels stay: the body of an If, Loop or Scan reads c" in reasons(result)


def test_skip_and_only_hold_for_whole_groups() -> None:
    candidate, result = removed(builders.conv_bn_relu(0), skip=("block2.conv/Conv",))
    assert shapes(candidate) == shapes(Model.of(builders.conv_bn_relu(0)))
    assert "only or skip leaves out block2.conv/Conv" in reasons(result)


def test_scope_inner_leaves_residual_streams() -> None:
    candidate, result = removed(builders.residual(0), scope="inner")
    assert shapes(candidate)["stem.conv.weight"][0] == 32
    assert shapes(candidate)["inner.conv.weight"][0] == 32
    assert "residual connection" in reasons(result)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(Refusal, match="no Conv"):
        removed(builders.nothing_to_do(0))


# Widths


@given(size=st.integers(1, 4096), ratio=st.floats(0, 0.999), unit=st.sampled_from([1, 4, 8, 16]))
def test_kept_widths_are_rounded_up(size: int, ratio: float, unit: int) -> None:
    kept = kept_width(size, ratio, unit)
    assert 1 <= kept <= size
    assert kept == size or kept % unit == 0
    assert kept >= size * (1 - ratio) - 1e-6
    assert kept - unit < max(1, size * (1 - ratio) + 1)


def test_the_default_keeps_multiples_of_16_and_leaves_narrow_layers_whole() -> None:
    assert [kept_width(n, 0.5, 16) for n in (8, 16, 17, 24, 32, 40, 64, 96)] == [8, 16, 16, 16, 16, 32, 32, 48]
    candidate, result = removed(builders.squeeze_excite(0), round_to=16)
    assert shapes(candidate)["reduce.weight"] == (8, 16, 1, 1)
    assert "kept widths are multiples of 16" in reasons(result)
    assert result.summary["ratio_requested"] == 0.5
    assert result.summary["ratio_achieved"] == pytest.approx(32 / 72)


def test_equal_scores_keep_the_earlier_channel() -> None:
    assert strongest(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"ratio": -0.1}, {"round_to": 0}, {"importance": "l3"}, {"x": 1}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RemoveChannels.Options(**options)


def test_ratio_zero_changes_nothing() -> None:
    candidate, result = removed(builders.residual(0), ratio=0.0)
    assert not result.modified and not result.applied
    assert candidate.fingerprint() == Model.of(builders.residual(0)).fingerprint()


def test_equal_calls_give_equal_bytes_and_a_second_run_cuts_again() -> None:
    samples = made(builders.residual(0))
    first, _ = removed(builders.residual(0), samples=samples)
    again, _ = removed(builders.residual(0), samples=samples)
    assert first.fingerprint() == again.fingerprint()
    twice, result = removed(first, samples=samples)
    assert result.modified and twice.parameter_count < first.parameter_count
    assert not RemoveChannels.idempotent


# Real models


def test_the_embedded_network_keeps_its_accuracy_at_half_its_channels(embedded: Path) -> None:
    with np.load(embedded / "digits_cnn" / "calib.npz") as held:
        samples = Samples.of([{"image": x[None]} for x in held["image"][:120]])
    source = Model.open(embedded / "digits_cnn" / "model.onnx")
    candidate, result = removed(source, samples=samples, round_to=16, positions=32)
    assert result.summary["ratio_achieved"] == 0.5
    with np.load(embedded / "digits_cnn" / "eval.npz") as held:
        pictures, labels = held["image"], held["labels"]
    session = open_session(candidate)
    found = session.run({"image": pictures})["logits"].argmax(1)
    assert (found == labels).mean() >= 0.9908 - 0.01


CNNS = ["mobilenet_v1", "efficientnet_lite0", "cifar10_resnet32", "fmnist_resnet8", "mnist_opset8"]


@pytest.mark.shared
@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("name", CNNS)
def test_real_networks_are_cut_exactly(shared: Path, name: str, ratio: float) -> None:
    source = Model.open(shared / "models" / name / "model.onnx")
    candidate, result = removed(source, ratio=ratio)
    assert result.modified and result.oracle is not None
    noise = 0.0
    given = feeds(source, 1)
    for fast, plain in zip(open_session(source).run(given[0]).values(), outputs(source, given), strict=True):
        noise = max(noise, float(np.abs(fast - plain).max() / np.abs(plain).max()))
    assert gap(result.oracle, candidate) <= max(1e-5, 4 * noise)
    assert result.summary["ratio_achieved"] == pytest.approx(ratio, abs=0.01)
    assert open_session(candidate).output_names == open_session(source).output_names
