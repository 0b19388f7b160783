"""The pass `prune-weights`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from graphopt.analysis.cache import Analyses
from graphopt.model.model import Model
from graphopt.passes.prune_weights import Loss, PruneWeights, exact_count, lamp_scores
from graphopt.pipeline.contract import PassContext, PassResult, Refusal
from graphopt.pipeline.selection import Selection
from graphopt.runtime.target import Target
from graphopt.testing.builders import conv_bn_relu, mlp
from graphopt.testing.draft import Draft
from graphopt.testing.formats import overridable, quantized


def pruned(proto: onnx.ModelProto, **options: Any) -> tuple[Model, PassResult]:
    """Run the pass and tidy up, as the manager would."""
    source = Model.from_proto(proto)
    candidate = source.clone()
    chosen = PruneWeights.Options(**{"min_elements": 0, **options})
    ctx = PassContext(
        model=candidate,
        source=source,
        analyses=Analyses(candidate),
        selection=Selection.of(candidate, chosen.only, chosen.skip),
        samples=None,
        target=Target(),
    )
    rewrite = PruneWeights(chosen)
    rewrite.requires(ctx)
    result = rewrite.run(ctx)
    candidate.finish()
    return candidate, result


def weights(model: Model) -> dict[str, np.ndarray[Any, Any]]:
    """Initializers by name."""
    return {t.name: numpy_helper.to_array(t) for t in model.to_proto().graph.initializer}


def chain(*values: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """MatMuls by these matrices, one after the other; weights w0, w1, …, nodes m0, m1, …."""
    draft = Draft()
    kind = helper.np_dtype_to_tensor_dtype(values[0].dtype)
    x = draft.input("x", [1, values[0].shape[0]], kind)
    for index, value in enumerate(values):
        name = "y" if index == len(values) - 1 else f"h{index}"
        x = draft.node("MatMul", [x, draft.const(f"w{index}", value)], name, name=f"m{index}")
    draft.output("y", [1, values[-1].shape[1]], kind)
    return draft.model("chain")


def gaussian(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """N(0, 1) in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("sparsity", "decibels"), [(0.1, 32.80), (0.25, 20.82), (0.5, 11.47), (0.75, 5.585)])
def test_gaussian_weights_lose_what_kuzmin_computed(sparsity: float, decibels: float) -> None:
    _, result = pruned(chain(gaussian(1000, 1000)), sparsity=sparsity)
    assert result.applied[0].figures["sqnr_db"] == pytest.approx(decibels, abs=0.06)


def test_sqnr_of_nothing_lost_is_not_a_number() -> None:
    assert Loss(signal=3.0).sqnr_db is None
    assert Loss().sqnr_db is None
    assert Loss(signal=10.0, noise=1.0).sqnr_db == pytest.approx(10.0)


@given(share=st.decimals(0, 1, places=3), count=st.integers(0, 10**6))
def test_the_count_is_exact_in_decimal(share: Any, count: int) -> None:
    assert exact_count(float(share), count) == int(share * 1000) * count // 1000


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-8, 8, width=32)))
def test_lamp_keeps_the_order_and_ends_at_one(values: Any) -> None:
    scores = lamp_scores(values)
    order = np.argsort(np.square(values.astype(np.float64)), kind="stable")
    assert (np.diff(scores[order]) >= 0).all()
    if np.any(values):
        assert scores[order[-1]] == 1


def test_lamp_by_hand() -> None:
    np.testing.assert_allclose(lamp_scores(np.array([2.0, -1.0, 0.0, 1.0])), [1, 1 / 6, 0, 1 / 5])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sparsity=st.floats(0, 1),
    scope=st.sampled_from(["local", "global"]),
    normalize=st.sampled_from(["none", "std", "lamp"]),
)
def test_counts_are_exact_and_a_second_run_changes_nothing(
    seed: int, sparsity: float, scope: str, normalize: str
) -> None:
    rng = np.random.default_rng(seed)
    values = [np.round(rng.standard_normal(shape) * 4).astype(np.float32) / 4 for shape in ((7, 11), (11, 5))]
    options = {"sparsity": sparsity, "scope": scope, "normalize": normalize}
    model, result = pruned(chain(*values), **options)
    after = weights(model)
    found = [after["w0"], after["w1"]]
    before_zeros = [int(np.sum(v == 0)) for v in values]
    zeros = [int(np.sum(v == 0)) for v in found]
    if scope == "local":
        for value, before, count in zip(values, before_zeros, zeros, strict=True):
            assert count == max(before, exact_count(sparsity, value.size))
    else:
        assert sum(zeros) == max(sum(before_zeros), exact_count(sparsity, 77 + 55))
    for value, new in zip(values, found, strict=True):
        np.testing.assert_array_equal(new[new != 0], value[new != 0])
        if scope == "local":
            assert np.abs(value[new == 0]).max(initial=0) <= np.abs(value[new != 0]).min(initial=np.inf)
    again, second = pruned(model.to_proto(), **options)
    assert not second.modified
    assert again.fingerprint() == model.fingerprint()
    assert result.summary["zeros"] == sum(zeros)


def test_ties_go_to_the_earlier_element() -> None:
    model, _ = pruned(chain(np.ones((2, 4), np.float32)), sparsity=0.4)
    np.testing.assert_array_equal(weights(model)["w0"], [[0, 0, 0, 1], [1, 1, 1, 1]])


def test_global_ranking_takes_from_the_smaller_layer() -> None:
    model, result = pruned(chain(gaussian(20, 20), gaussian(20, 20, seed=1) * 0.01), scope="global")
    sparsities = [site.figures["sparsity"] for site in result.applied]
    assert sparsities[-1] > 0.9 > 0.1 > sparsities[0]
    assert result.summary["sparsity"] == 0.5
    assert sum(np.count_nonzero(value) for value in weights(model).values()) == 400


@pytest.mark.parametrize("normalize", ["std", "lamp"])
def test_normalization_evens_that_out(normalize: str) -> None:
    values = gaussian(20, 20), gaussian(20, 20, seed=1) * np.float32(0.01)
    _, result = pruned(chain(*values), scope="global", normalize=normalize)
    for site in result.applied:
        assert site.figures["sparsity"] == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_are_kept(dtype: Any) -> None:
    model, _ = pruned(chain(gaussian(8, 8).astype(dtype)))
    assert weights(model)["w0"].dtype == dtype


def test_every_layer_type_is_pruned_and_biases_are_not() -> None:
    draft = Draft()
    x = draft.conv(draft.input("x", [1, 4, 6, 6]), "c", 4, 8, bias=True)
    x = draft.node("ConvTranspose", [x, draft.weight("t", 8, 4, 2, 2), draft.weight("tb", 4)], "up")
    x = draft.node("Flatten", [x], "flat")
    x = draft.node("Gemm", [x, draft.weight("g", 196, 8), draft.weight("gb", 8)], "dense")
    draft.node("MatMul", [draft.weight("left", 3, 1), x], "y")
    draft.output("y", [3, 8])
    model, result = pruned(draft.model("layers"), sparsity=0.67)
    after = weights(model)
    assert {site.figures["tensor"] for site in result.applied} == {"c.weight", "t", "g", "left"}
    assert all(np.count_nonzero(after[name]) == after[name].size for name in ("c.bias", "tb", "gb"))
    assert np.count_nonzero(after["left"]) == 1


def test_op_types_and_selection_confine_it() -> None:
    proto = chain(gaussian(8, 8), gaussian(8, 8, seed=1))
    _, only = pruned(proto, only=("m1",))
    assert [site.where for site in only.applied] == ["m1"]
    with pytest.raises(Refusal, match="no constant floating-point weight"):
        pruned(proto, op_types=("Conv",))


def _shared(other: str) -> onnx.ModelProto:
    draft = Draft()
    weight = draft.weight("w", 8, 8)
    h = draft.node("MatMul", [draft.input("x", [1, 8]), weight], "h", name="m0")
    draft.node(other, [h, weight], "y", name="second")
    draft.output("y", [8, 8] if other == "Add" else [1, 8])
    return draft.model("shared")


def test_a_shared_weight_is_pruned_once_and_stays_shared() -> None:
    model, result = pruned(_shared("MatMul"))
    assert len(result.applied) == 1
    assert result.summary["weights"] == 64
    assert result.applied[0].what == "32 of 64 weights are zero (shared by 2 layers)"
    assert np.count_nonzero(weights(model)["w"]) == 32
    assert list(weights(model)) == ["w"]


@pytest.mark.parametrize(("proto", "options"), [(_shared("Add"), {}), (_shared("MatMul"), {"skip": ("second",)})])
def test_a_weight_with_a_use_that_is_not_to_be_pruned_stays(proto: onnx.ModelProto, options: Any) -> None:
    with pytest.raises(Refusal, match="w is also used by second, which is not to be pruned"):
        pruned(proto, **options)


def test_small_tensors_stay_with_a_reason() -> None:
    _, result = pruned(chain(gaussian(8, 8), gaussian(8, 2)), min_elements=17)
    assert [site.where for site in result.applied] == ["m0"]
    assert [skip.reason for skip in result.skipped] == ["w1 has 16 elements, fewer than min_elements = 17"]


def test_not_a_number_stays_with_a_reason() -> None:
    broken = gaussian(8, 8)
    broken[3, 3] = np.nan
    _, result = pruned(chain(gaussian(8, 8), broken))
    assert [skip.reason for skip in result.skipped] == ["w1 holds NaN or infinity"]


def test_quantized_weights_stay_with_a_reason() -> None:
    _, result = pruned(quantized())
    reasons = [skip.reason for skip in result.skipped]
    assert reasons == ["its weight is quantized already (DequantizeLinear) and is left alone"]


def test_overridable_weights_stay_with_a_reason() -> None:
    model, result = pruned(overridable())
    assert [site.figures["tensor"] for site in result.applied] == ["fixed.weight"]
    assert [skip.reason for skip in result.skipped] == [
        "free.weight may be overridden at run time: it is a graph input too"
    ]
    assert model.interface.overridable[0].name == "free.weight"


def test_integers_stay_with_a_reason() -> None:
    draft = Draft()
    weight = draft.const("w", np.ones((4, 4), np.int32))
    draft.node("MatMul", [draft.input("x", [1, 4], TensorProto.INT32), weight], "y")
    draft.output("y", [1, 4], TensorProto.INT32)
    with pytest.raises(Refusal, match="w is not of a floating-point type"):
        pruned(draft.model("integers"))


def test_a_model_without_weights_is_refused() -> None:
    draft = Draft()
    draft.node("MatMul", [draft.input("a", [4, 4]), draft.input("b", [4, 4])], "y")
    draft.output("y", [4, 4])
    with pytest.raises(Refusal, match="no constant floating-point weight"):
        pruned(draft.model("activations"))


def test_it_says_that_zeros_are_not_fast() -> None:
    _, result = pruned(mlp())
    assert any("do not make onnxruntime faster" in note for note in result.notes)
    _, nothing = pruned(mlp(), sparsity=0.0)
    assert not nothing.modified
    assert nothing.notes == ()


def test_the_source_keeps_its_weights() -> None:
    proto = conv_bn_relu()
    before = weights(Model.from_proto(proto))
    pruned(proto)
    for name, value in weights(Model.from_proto(proto)).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("options", [{"sparsity": 1.5}, {"sparsity": -0.1}, {"scope": "all"}, {"op_types": ()}])
def test_bad_options_are_refused(options: Any) -> None:
    with pytest.raises(ValidationError):
        PruneWeights.Options(**options)
