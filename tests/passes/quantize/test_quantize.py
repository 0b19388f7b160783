"""The pass `quantize` as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.passes.quantize import Quantize, QuantizeOptions
from graphopt.passes.quantize.choose import WORTH, Bench, Trial, decide
from graphopt.passes.quantize.fused import LEFT_FLOAT
from graphopt.passes.quantize.plan import Plan
from graphopt.passes.quantize.prepare import prepare
from graphopt.passes.quantize.search import Search
from graphopt.passes.quantize.units import find_units
from graphopt.pipeline.contract import Broken, Refusal
from graphopt.runtime.latency import LatencyStats, PairedLatency
from graphopt.runtime.session import open_session
from graphopt.runtime.target import ProviderSpec, Target
from graphopt.testing import builders
from graphopt.testing.draft import Draft
from graphopt.testing.formats import opset8
from graphopt.testing.formats import quantized as quantized_model
from tests.passes.quantize.harness import context, feeds, outliers, quantized, simplified, sqnr


def trial(label: str, sqnr_db: float, ratio: float) -> Trial:
    return Trial(label, Plan(frozenset({label})), sqnr_db, ratio)


def test_the_fastest_accurate_placement_wins() -> None:
    found = decide([trial("a", 25, 1.5), trial("b", 21, 1.8), trial("c", 12, 2.5)], 20)
    assert found is not None and found.label == "b"


def test_what_hardly_misses_the_target_wins_by_clearly_more_speed() -> None:
    near, accurate = trial("near", 19.5, 2.2), trial("accurate", 21, 1.9)
    assert decide([near, accurate], 20) == near
    assert decide([near, accurate], 21) == accurate


def test_below_the_target_noise_is_weighed_against_speed() -> None:
    found = decide([trial("a", 12, 2.0), trial("b", 18, 1.5), trial("c", 18.5, 1.05)], 20)
    assert found is not None and found.label == "b"


def test_what_is_not_faster_than_float_is_not_worth_its_error() -> None:
    assert decide([trial("a", 60, WORTH - 0.01)], 20) is None


class FakeBench:
    """A bench whose direct timings are given: (first, second) → ratio with a half-width of 1 %."""

    target_db = 20.0

    def __init__(self, trials: list[Trial], ratios: dict[tuple[str, str], float]) -> None:
        self.trials, self.ratios = trials, ratios

    def side_by_side(self, first: Trial, second: Trial) -> PairedLatency:
        ratio = self.ratios[first.label, second.label]
        stats = LatencyStats(1.0, 1.0, 10, (1.0,))
        return PairedLatency(ratio, ratio - 0.01, ratio + 0.01, stats, stats, 10, 1, "thread-cpu", conclusive=True)


@pytest.mark.parametrize(
    ("direct", "accuracy", "winner"),
    [(1.08, 21.0, "cut"), (0.92, 30.0, "all"), (1.0, 30.0, "cut"), (1.0, 21.0, "all")],
)
def test_close_placements_are_timed_against_each_other(direct: float, accuracy: float, winner: str) -> None:
    trials = [trial("all", 25.0, 1.42), trial("cut", accuracy, 1.35), trial("slow", 60.0, 1.1), trial("bad", 5.0, 1.4)]
    bench = FakeBench(trials, {("all", "cut"): direct})
    search = Search(bench, None, frozenset(), None, {}, frozenset())  # type: ignore[arg-type]
    best = search._best_side_by_side(trials[0])
    assert best is not None
    assert best.label == winner


def test_a_measured_decision_is_written_down_and_repeats_to_the_same_bytes() -> None:
    model = simplified(wide())
    samples = feeds(model, 24)
    candidate, result = quantized(model, samples, seconds=4.0)
    assert result.modified and result.resolved is not None
    assert result.resolved.placement == "explicit" and result.resolved.integer_nodes  # type: ignore[attr-defined]
    assert result.resolved.overflow in ("avoid", "ignore")  # type: ignore[attr-defined]
    again, _ = quantized(model, samples, **result.resolved.model_dump())
    assert again.fingerprint() == candidate.fingerprint()


def test_a_model_whose_channels_reach_unequally_far_is_smoothed_and_repeats_to_the_same_bytes() -> None:
    model = Model.from_proto(outliers())
    samples = feeds(model, 24)
    options = {"measure": False, "rounding": "on", "smoothing": "on"}
    plain, _ = quantized(model, samples)
    smooth, result = quantized(model, samples, **options)
    assert result.summary["smoothed_tensors"] == 1 and result.summary["compensated_rounding"] == 2
    held = feeds(model, 8, seed=9)
    assert sqnr(model, smooth, held) > sqnr(model, plain, held) + 6
    assert result.resolved is not None
    again, _ = quantized(model, samples, **result.resolved.model_dump())
    assert again.fingerprint() == smooth.fingerprint()


def test_what_had_nothing_to_smooth_is_not_smoothed_again() -> None:
    model = Model.from_proto(outliers(far=1.0))
    _, result = quantized(model, feeds(model, 24), smoothing="on")
    assert result.resolved is not None
    assert result.resolved.smoothing == "off"  # type: ignore[attr-defined]


def wide() -> onnx.ModelProto:
    """Convolutions large enough that integers pay."""
    draft = Draft(0)
    x = draft.conv_bn_relu(draft.input("input", [1, 8, 16, 16]), "a", 8, 128)
    x = draft.conv_bn_relu(x, "b", 128, 128)
    draft.head(draft.conv_bn_relu(x, "c", 128, 128), 128)
    return draft.model("wide")


def test_a_pad_by_named_axes_becomes_one_by_all_axes() -> None:
    draft = Draft(1, opset=18)
    x = draft.conv(draft.input("input", [1, 4, 8, 8]), "before", 4, 16, bias=True)
    pads = draft.const("pads", np.array([2, 1, 0, 1], np.int64))
    axes = draft.const("axes", np.array([-1, 2], np.int64))
    draft.conv(draft.node("Pad", [x, pads, "", axes], "padded"), "after", 16, 16)
    draft.head("after", 16)
    model = Model.from_proto(draft.model("pad"))
    prepared = model.clone()
    prepare(prepared)
    (pad,) = (n for n in prepared.editor.nodes() if n.op == "Pad")
    whole = prepared.editor.constant(pad.inputs[1])
    assert whole is not None
    assert whole.tolist() == [0, 0, 1, 2, 0, 0, 1, 0]
    assert prepared.interface == model.interface


def test_a_second_run_has_nothing_to_do() -> None:
    candidate, _ = quantized(simplified(builders.residual(0)))
    with pytest.raises(Refusal, match="quantized already"):
        quantized(candidate)


def test_existing_integers_are_left_alone() -> None:
    with pytest.raises(Refusal, match="quantized already"):
        quantized(Model.from_proto(quantized_model(0)))


def test_another_provider_is_refused() -> None:
    model = simplified(builders.residual(0))
    rewrite = Quantize(QuantizeOptions())
    target = Target(providers=(ProviderSpec("CUDAExecutionProvider"),))
    with pytest.raises(Refusal, match="CUDAExecutionProvider"):
        rewrite.requires(context(model, feeds(model), rewrite.options, target=target))


def test_half_precision_is_refused_with_the_reason() -> None:
    draft = Draft(0)
    x = draft.input("input", [1, 16], 10)
    draft.const("w", np.ones((16, 8), np.float16))
    draft.node("MatMul", [x, "w"], "output")
    draft.output("output", [1, 8], 10)
    model = Model.from_proto(draft.model("half"))
    with pytest.raises(Refusal, match="float16"):
        quantized(model, Samples.of([{"input": np.ones((1, 16), np.float16)}]))


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(Refusal, match="no convolution or linear layer"):
        quantized(Model.from_proto(builders.nothing_to_do(0)))


def test_the_reasons_name_the_layers_that_come_closest() -> None:
    draft = Draft(0)
    x = draft.input("x", [1, 3, 8, 8])
    for name in "abcd":
        draft.output(draft.conv(x, name, 3, 4), [1, 4, 8, 8])
    draft.node("Conv", [x, draft.input("w", [4, 3, 1, 1])], "e", name="e")
    draft.output("e", [1, 4, 8, 8])
    with pytest.raises(Refusal) as caught:
        quantized(Model.from_proto(draft.model("outputs")))
    names = [node.name for node in draft.nodes]
    assert caught.value.reason == (
        "no layer can be made integer: "
        f"its result is a graph output, which stays float ({', '.join(names[:3])} and 1 more); "
        "its weight is not constant (e)"
    )


def with_a_loose_layer(*, also: bool) -> onnx.ModelProto:
    """A product whose sum with an activation onnxruntime makes a float Gemm of; ``also``: a layer before it."""
    draft = Draft(0)
    x = draft.input("x", [64, 32])
    if also:
        x = draft.node("Relu", [draft.node("MatMul", [x, draft.weight("w0", 32, 32)], "first", name="first")], "relu")
    product = draft.node("MatMul", [x, draft.weight("w1", 32, 32)], "product", name="loose")
    draft.node("Add", [product, draft.node("Sin", [x], "sine")], "y")
    draft.output("y", [64, 32])
    return draft.model("loose")


@pytest.mark.parametrize("placement", [{}, {"placement": "explicit", "integer_nodes": ("first", "loose")}])
def test_a_layer_that_does_not_fuse_is_left_float_and_the_rest_is_kept(placement: dict[str, Any]) -> None:
    model = Model.from_proto(with_a_loose_layer(also=True))
    _, result = quantized(model, **placement)
    assert [site.where for site in result.applied] == ["first"]
    assert [(skip.where, skip.reason) for skip in result.skipped] == [("loose", LEFT_FLOAT)]
    assert result.resolved is not None and result.resolved.integer_nodes == ("first",)  # type: ignore[attr-defined]


def test_measured_placements_leave_it_float_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[frozenset[str]] = []

    def first(bench: Bench, label: str, integer: frozenset[str]) -> Trial | None:
        tried.append(integer)
        return None

    monkeypatch.setattr(Bench, "try_out", first)
    _, result = quantized(Model.from_proto(with_a_loose_layer(also=True)), seconds=1.0)
    assert tried and not any("loose" in integer for integer in tried)
    assert [(skip.where, skip.reason) for skip in result.skipped] == [("loose", LEFT_FLOAT)]


def test_a_model_of_nothing_but_layers_that_do_not_fuse_stays_as_it_is() -> None:
    model = Model.from_proto(with_a_loose_layer(also=False))
    candidate, result = quantized(model)
    assert not result.modified and candidate.fingerprint() == model.fingerprint()
    assert [(skip.where, skip.reason) for skip in result.skipped] == [("loose", LEFT_FLOAT)]


def test_nodes_that_the_user_skips_stay_float() -> None:
    model = simplified(builders.residual(0))
    name = next(n.name for n in model.editor.nodes() if n.op == "Conv")
    _, result = quantized(model, skip=(name,))
    assert result.applied and name not in {site.where for site in result.applied}
    _, only = quantized(model, only=(name,))
    assert {site.where for site in only.applied} == {name}


def test_a_tensor_of_zeros_keeps_its_layer_float_with_a_reason() -> None:
    model = simplified(builders.conv_bn_relu(0))
    shape = [d if isinstance(d, int) else 1 for d in model.interface.inputs[0].shape or ()]
    _, result = quantized(model, Samples.of([{"input": np.zeros(shape, np.float32)}] * 2))
    assert any("zero on every calibration sample" in skip.reason for skip in result.skipped)


def conv_and_branches() -> onnx.ModelProto:
    """A convolution, then an If whose branches multiply by one of two matrices."""
    draft = Draft(0)
    x = draft.conv(draft.input("input", [1, 4, 8, 8]), "conv", 4, 16, bias=True)
    x = draft.node("Flatten", [draft.node("GlobalAveragePool", [x], "pooled")], "flat")
    draft.weight("one", 16, 8)
    draft.weight("two", 16, 8)
    bodies = []
    for name in ("one", "two"):
        result = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1, 8])
        product = helper.make_node("MatMul", [x, name], [f"{name}_out"])
        bodies.append(helper.make_graph([product], name, [], [result]))
    draft.input("choice", [], TensorProto.BOOL)
    draft.node("If", ["choice"], "output", name="branches", then_branch=bodies[0], else_branch=bodies[1])
    draft.output("output", [1, 8])
    return draft.model("branches")


def test_bodies_stay_float_and_are_named() -> None:
    model = Model.from_proto(conv_and_branches())
    candidate, result = quantized(model)
    assert result.modified
    assert [skip.where for skip in result.skipped if "bodies of this If" in skip.reason] == ["branches"]
    inside = [n.op for n, graph in candidate.editor.all_nodes() if graph is not candidate.graph]
    assert "MatMul" in inside and "DequantizeLinear" not in inside


def test_an_old_opset_is_raised() -> None:
    model = simplified(opset8(0))
    candidate, result = quantized(model)
    assert candidate.opset >= 13 and "raised from 8" in result.notes[0]
    assert sqnr(model, candidate, feeds(model)) > 20


@pytest.mark.parametrize(("opset", "then"), [(12, 14), (13, 14), (17, 17)])
def test_a_linear_layer_takes_empty_dimensions_as_before(opset: int, then: int) -> None:
    model = Model.from_proto(open_rows(opset))
    rows = np.random.default_rng(0).standard_normal((1, 5, 32)).astype(np.float32)
    candidate, _ = quantized(model, Samples.of([{"x": rows}]))
    assert [n.op for n in candidate.editor.nodes()].count("Gemm") == 2
    assert candidate.opset == then
    assert_same_shapes(model, candidate)


def test_a_bias_stays_float_where_the_opset_has_no_way_to_state_an_empty_dimension() -> None:
    proto = open_rows(13)
    # Its second output is a mask before opset 14, and running statistics after: no adapter brings it over.
    stats = [helper.make_tensor(n, TensorProto.FLOAT, [5], np.ones(5, np.float32)) for n in ("g", "h", "m", "v")]
    proto.graph.initializer.extend(stats)
    outputs = ["kept", "m2", "v2", "s1", "s2"]
    proto.graph.node.append(helper.make_node("BatchNormalization", ["x", "g", "h", "m", "v"], outputs))
    proto.graph.output.append(helper.make_tensor_value_info("m2", TensorProto.FLOAT, [5]))
    model = Model.from_proto(proto)
    prepare(model)
    assert model.opset == 13
    assert all(unit.bias_add is None for unit in find_units(model).all)


def open_rows(opset: int) -> onnx.ModelProto:
    """Two linear layers over rows that lie along two dimensions which the run decides."""
    draft = Draft(0, opset=opset)
    x = draft.input("x", ["b", "s", 32])
    for index, (rows, columns) in enumerate(((32, 32), (32, 8))):
        product = draft.node("MatMul", [x, draft.weight(f"w{index}", rows, columns)], f"product{index}")
        x = draft.node("Add", [product, draft.weight(f"b{index}", columns)], f"sum{index}")
    draft.output(x, ["b", "s", 8])
    return draft.model("open_rows")


def assert_same_shapes(model: Model, candidate: Model) -> None:
    sessions = [open_session(m) for m in (model, candidate)]
    for rows in ((1, 5), (0, 5), (2, 0), (0, 0)):
        found = [s.run({"x": np.zeros((*rows, 32), np.float32)})["sum1"].shape for s in sessions]
        assert found == [(*rows, 8)] * 2


def test_an_explicit_node_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Refusal, match="cannot be made integer"):
        quantized(simplified(builders.residual(0)), placement="explicit", integer_nodes=("nobody",))


def test_percentiles_cut_outliers_off() -> None:
    model = simplified(builders.conv_bn_relu(0))
    usual = list(feeds(model, 12))
    outlier = {"input": usual[0]["input"] * np.where(np.arange(8) == 0, 40.0, 1.0).astype(np.float32)}
    samples = Samples.of([*usual, outlier])
    both = [quantized(model, samples, calibration=c, percentile=99.0)[0] for c in ("min-max", "percentile")]
    judged = Samples.of(usual)
    assert sqnr(model, both[1], judged) > sqnr(model, both[0], judged)


def test_a_spoiled_model_breaks_its_own_check() -> None:
    model = simplified(builders.residual(0))
    rewrite = Quantize(QuantizeOptions())
    ctx = context(model.clone(), feeds(model), rewrite.options)
    result = rewrite.run(ctx)
    ctx.model.finish()
    node = next(n for n in ctx.editor.nodes() if n.op == "Conv")
    bias = ctx.editor.producer(node.inputs[2])
    assert bias is not None
    scale = ctx.editor.constant(bias.inputs[1])
    assert scale is not None
    # onnxruntime leaves a convolution in float whose bias is more than about 1 % off the canonical scale.
    ctx.editor.set_constant(bias, 1, scale * np.float32(1.5))
    with pytest.raises(Broken) as broken:
        rewrite.ensures(ctx, result)
    assert broken.value.check == "fusion count"


@pytest.mark.shared
@pytest.mark.parametrize(("name", "least"), [("mnist_opset8", 25.0), ("fmnist_resnet8", 25.0)])
def test_real_models_keep_their_accuracy(shared: Path, name: str, least: float) -> None:
    folder = shared / "models" / name
    model = simplified(Model.open(folder / "model.onnx").to_proto())
    key = model.interface.inputs[0].name
    with np.load(folder / "calib.npz") as data:
        pictures = data["x"][:48]
    batch = [{key: (x[None, None] if x.ndim == 2 else x[None]).astype(np.float32)} for x in pictures]
    samples = Samples.of(batch)
    candidate, _ = quantized(model, samples.take(range(32)))
    assert sqnr(model, candidate, samples.take(range(32, 48))) > least
