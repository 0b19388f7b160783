"""Rule `softmax-floor`, and what has to hold before it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.analysis.cache import Analyses
from graphopt.api import optimize
from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.passes.fuse.mask.mask_check import accept, mask_inputs, variations
from graphopt.passes.fuse.mask.masks import places
from graphopt.passes.fuse.mask.softmax_floor import SoftmaxFloor
from graphopt.pipeline.contract import PassContext
from graphopt.pipeline.families import Family, apply_families
from graphopt.pipeline.rules import Limits, Scope
from graphopt.pipeline.selection import Selection
from graphopt.runtime.session import open_session
from graphopt.runtime.target import Target
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import ROUNDING, Done, distance, examples, rewritten

LEAST = float(np.finfo(np.float32).min)
POSITIONS = 6
Joined = Callable[[Draft, str, str, float], str]
"""Masks scores: draft, scores, mask input (int64 [b, positions], 1: unmasked) and fill → what Softmax reads."""


def number(draft: Draft, value: float) -> str:
    return draft.const(f"c{len(draft.initializers)}", np.asarray(value, np.float32))


def raised(draft: Draft, mask: str, to: int) -> str:
    """The mask as [b, 1, positions], of another type."""
    axes = draft.const("axes", np.array([1], np.int64))
    return draft.node("Cast", [draft.node("Unsqueeze", [mask, axes], "raised")], "typed", to=to)


def added_where(draft: Draft, scores: str, mask: str, fill: float) -> str:
    seen = raised(draft, mask, TensorProto.BOOL)
    return draft.node("Add", [scores, draft.node("Where", [seen, number(draft, 0.0), number(draft, fill)], "m")], "s")


def added_where_inverted(draft: Draft, scores: str, mask: str, fill: float) -> str:
    hidden = draft.node("Not", [raised(draft, mask, TensorProto.BOOL)], "hidden")
    return draft.node("Add", [draft.node("Where", [hidden, number(draft, fill), number(draft, 0.0)], "m"), scores], "s")


def added_product(draft: Draft, scores: str, mask: str, fill: float) -> str:
    rest = draft.node("Sub", [number(draft, 1.0), raised(draft, mask, TensorProto.FLOAT)], "rest")
    return draft.node("Add", [scores, draft.node("Mul", [rest, number(draft, fill)], "m")], "s")


def added_difference(draft: Draft, scores: str, mask: str, fill: float) -> str:
    rest = draft.node("Sub", [raised(draft, mask, TensorProto.FLOAT), number(draft, 1.0)], "rest")
    return draft.node("Add", [scores, draft.node("Mul", [number(draft, -fill), rest], "m")], "s")


def replaced(draft: Draft, scores: str, mask: str, fill: float) -> str:
    hidden = draft.node("Not", [raised(draft, mask, TensorProto.BOOL)], "hidden")
    return draft.node("Where", [hidden, number(draft, fill), scores], "s")


def replaced_inverted(draft: Draft, scores: str, mask: str, fill: float) -> str:
    return draft.node("Where", [raised(draft, mask, TensorProto.BOOL), scores, number(draft, fill)], "s")


def added_expanded(draft: Draft, scores: str, mask: str, fill: float) -> str:
    seen = raised(draft, mask, TensorProto.BOOL)
    small = draft.node("Where", [seen, number(draft, 0.0), number(draft, fill)], "small")
    shape = draft.const("whole", np.array([1, POSITIONS, POSITIONS], np.int64))
    return draft.node("Add", [scores, draft.node("Expand", [small, shape], "m")], "s")


FORMS: tuple[Joined, ...] = (
    added_where,
    added_where_inverted,
    added_product,
    added_difference,
    added_expanded,
    replaced,
    replaced_inverted,
)


def attention(join: Joined, fill: float = LEAST, *, opset: int = 17, **softmax: Any) -> onnx.ModelProto:
    """Softmax(mask(q · kᵀ / 2)) · v over ``POSITIONS`` positions."""
    draft = Draft(opset=opset)
    q, k, v = (draft.input(name, ["b", POSITIONS, 4]) for name in "qkv")
    mask = draft.input("mask", ["b", POSITIONS], TensorProto.INT64)
    product = draft.node("MatMul", [q, draft.node("Transpose", [k], "kt", perm=[0, 2, 1])], "product")
    scores = draft.node("Div", [product, number(draft, 2.0)], "scores")
    weights = draft.node("Softmax", [join(draft, scores, mask, fill)], "p", name="softmax", **{"axis": -1, **softmax})
    draft.output(draft.node("MatMul", [weights, v], "y"), ["b", POSITIONS, 4])
    return draft.model("attention")


def feed(mask: Any, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rows = np.atleast_2d(np.asarray(mask, np.int64))
    values = {name: rng.standard_normal((len(rows), POSITIONS, 4)).astype(np.float32) for name in "qkv"}
    values["q"] *= np.float32(scale)
    return {**values, "mask": rows}


PARTLY = [[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]]
FULLY = [[0] * POSITIONS, [1, 0, 0, 0, 0, 0]]


SUMMED = (added_product, added_difference)  # 0 · -inf is NaN: nobody writes this with -inf


@pytest.mark.parametrize(
    ("join", "fill"),
    [(j, f) for j in FORMS for f in (LEAST, -1e9, -1e4, -100.0, -np.inf) if np.isfinite(f) or j not in SUMMED],
)
def test_every_form_gets_a_floor_and_computes_the_same(join: Joined, fill: float) -> None:
    done = rewritten(attention(join, fill), SoftmaxFloor)
    assert done.rules == {"softmax-floor": 1}
    for mask in (PARTLY, FULLY):
        for scale in (1.0, 100.0):
            assert distance(done, feed(mask, scale=scale)) <= ROUNDING


@pytest.mark.parametrize("fill", [LEAST, -np.inf])
@pytest.mark.parametrize("join", [form for form in FORMS if form not in SUMMED])
def test_fully_masked_rows_are_as_before_bit_for_bit(join: Joined, fill: float) -> None:
    done = rewritten(attention(join, fill), SoftmaxFloor)
    before, after = both(done, feed([[0] * POSITIONS]))
    np.testing.assert_array_equal(before["y"], after["y"])


def test_a_row_that_masks_only_what_is_far_larger_is_right_too() -> None:
    """Where a constant fill of -60 would let masked positions back in."""
    given = feed([1, 1, 1, 0, 0, 0], scale=0.0)
    given["q"][:], given["k"][:] = 0, 0
    given["q"][0, :, 0], given["k"][0, 5, 0] = 1.0, 2 * 300.0
    for join in FORMS:
        before, after = both(rewritten(attention(join), SoftmaxFloor), given)
        np.testing.assert_array_equal(before["y"], after["y"])


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(special: float) -> None:
    given = feed(PARTLY)
    given["k"][0, 1, 2] = special
    for join in FORMS:
        before, after = both(rewritten(attention(join), SoftmaxFloor), given)
        np.testing.assert_array_equal(before["y"], after["y"])


@pytest.mark.parametrize("fill", [LEAST, -1e9, -1e4, -100.0])
def test_the_softmax_writes_no_denormals(fill: float) -> None:
    done = rewritten(attention(added_where, fill), SoftmaxFloor)
    weights = open_session(done.after, optimization="none", extra_outputs=["p"]).run(feed(PARTLY))["p"]
    assert 1e-30 < weights.min() < 1e-25
    weights = open_session(done.before, optimization="none", extra_outputs=["p"]).run(feed(PARTLY))["p"]
    assert weights.min() < 1e-37


def both(done: Done, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the model computes before and after."""
    before, after = (open_session(m, optimization="none").run(given) for m in (done.before, done.after))
    return before, after


def test_others_read_the_masked_scores_as_they_were() -> None:
    def also_read(draft: Draft, scores: str, mask: str, fill: float) -> str:
        masked = added_where(draft, scores, mask, fill)
        draft.output(draft.node("Neg", [masked], "also"), ["b", POSITIONS, POSITIONS])
        draft.output(masked, ["b", POSITIONS, POSITIONS])
        return masked

    done = rewritten(attention(also_read), SoftmaxFloor)
    assert done.rules == {"softmax-floor": 1}
    before, after = both(done, feed(PARTLY))
    for name in ("also", "s"):
        np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_every_opset(opset: int) -> None:
    draft = Draft(opset=opset, ir_version=10)
    x, y = draft.input("x", [2, POSITIONS, 4]), draft.input("y", [4, POSITIONS])
    seen = draft.input("seen", [2, 1, POSITIONS], TensorProto.BOOL)
    mask = draft.node("Where", [seen, number(draft, 0.0), number(draft, -1e4)], "m")
    masked = draft.node("Add", [draft.node("MatMul", [x, y], "scores"), mask], "s")
    draft.output(draft.node("Softmax", [masked], "p", axis=2), [2, POSITIONS, POSITIONS])
    done = rewritten(draft.model("old"), SoftmaxFloor)
    assert done.rules == {"softmax-floor": 1}
    assert distance(done) <= ROUNDING


def test_half_precision_is_left_alone() -> None:
    draft = Draft()
    x, y = (
        draft.input(name, shape, TensorProto.FLOAT16)
        for name, shape in (("x", [2, POSITIONS, 4]), ("y", [4, POSITIONS]))
    )
    fill = draft.const("fill", np.full((POSITIONS,), -65504, np.float16))
    masked = draft.node("Add", [draft.node("MatMul", [x, y], "scores"), fill], "s")
    draft.output(draft.node("Softmax", [masked], "p", axis=-1), [2, POSITIONS, POSITIONS], TensorProto.FLOAT16)
    assert not rewritten(draft.model("half"), SoftmaxFloor).sites


def constant_mask(value: Any) -> Joined:
    def join(draft: Draft, scores: str, mask: str, fill: float) -> str:
        return draft.node("Add", [scores, draft.const("m", np.asarray(value, np.float32))], "s")

    return join


def causal(fill: float) -> np.ndarray:
    return np.where(np.triu(np.ones((POSITIONS, POSITIONS), bool), 1), np.float32(fill), np.float32(0))


def test_nothing_more_is_found_in_the_result() -> None:
    for join in (*FORMS, constant_mask(causal(LEAST))):
        done = rewritten(attention(join), SoftmaxFloor)
        assert not rewritten(done.after.to_proto(), SoftmaxFloor).sites


def twice(draft: Draft, scores: str, mask: str, fill: float) -> str:
    """A causal mask, and one of the padding on top of it."""
    seen = draft.const("triangle", np.tril(np.ones((POSITIONS, POSITIONS), bool)))
    inner = draft.node("Where", [seen, scores, number(draft, fill)], "inner")
    return added_where(draft, inner, mask, fill)


def twice_added(draft: Draft, scores: str, mask: str, fill: float) -> str:
    inner = draft.node("Add", [scores, draft.const("triangle", causal(fill))], "inner")
    return added_where(draft, inner, mask, fill)


def three(draft: Draft, scores: str, mask: str, fill: float) -> str:
    """A mask inside scores, behind arithmetic that hides it."""
    inner = draft.node("Mul", [twice(draft, scores, mask, fill), number(draft, 0.5)], "halved")
    return draft.node("Add", [inner, draft.const("again", causal(fill))], "third")


@pytest.mark.parametrize(
    "join", [twice, twice_added, three, constant_mask(causal(LEAST)), constant_mask(causal(-np.inf))]
)
def test_other_masks_inside_do_not_matter(join: Joined) -> None:
    done = rewritten(attention(join), SoftmaxFloor)
    assert done.rules == {"softmax-floor": 1}
    for mask in (PARTLY, FULLY):
        before, after = both(done, feed(mask))
        np.testing.assert_allclose(before["y"], after["y"], rtol=1e-6)


def test_masks_that_are_added_up_first_are_one_mask() -> None:
    def summed(draft: Draft, scores: str, mask: str, fill: float) -> str:
        seen = raised(draft, mask, TensorProto.BOOL)
        padding = draft.node("Where", [seen, number(draft, 0.0), number(draft, fill)], "padding")
        both = draft.node("Add", [padding, draft.const("triangle", causal(fill))], "both")
        return draft.node("Add", [scores, both], "s")

    done = rewritten(attention(summed), SoftmaxFloor)
    assert done.rules == {"softmax-floor": 1}
    for mask in (PARTLY, FULLY):
        assert distance(done, feed(mask)) <= ROUNDING


def computed_fill(draft: Draft, scores: str, mask: str, fill: float) -> str:
    low = draft.input("low", [])
    seen = raised(draft, mask, TensorProto.BOOL)
    return draft.node("Add", [scores, draft.node("Where", [seen, number(draft, 0.0), low], "m")], "s")


def no_softmax(draft: Draft, scores: str, mask: str, fill: float) -> str:
    return draft.node("Sigmoid", [added_where(draft, scores, mask, fill)], "sigmoid")


def small_bias(draft: Draft, scores: str, mask: str, fill: float) -> str:
    return added_where(draft, scores, mask, -5.0)


@pytest.mark.parametrize("join", [computed_fill, no_softmax, small_bias])
def test_what_is_no_mask_is_left_alone(join: Joined) -> None:
    done = rewritten(attention(join), SoftmaxFloor)
    assert not done.sites
    assert not done.skips


def test_another_axis_is_left_alone() -> None:
    done = rewritten(attention(added_where, axis=1), SoftmaxFloor)
    assert not done.sites


def test_a_softmax_that_is_left_out_stays() -> None:
    model = Model.from_proto(attention(added_where))
    scope = Scope(model, Selection.of(model, (), ("softmax",)), Limits(0))
    assert apply_families(scope, [Family("mask", "", (SoftmaxFloor,))]) == ([], [])


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    form=st.sampled_from(FORMS),
    fill=st.sampled_from([LEAST, -1e9, -65504.0, -1e4]),
    masks=st.lists(st.lists(st.integers(0, 1), min_size=POSITIONS, max_size=POSITIONS), min_size=1, max_size=3),
    scale=st.sampled_from([1e-3, 1.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_random_masks(form: Joined, fill: float, masks: list[list[int]], scale: float, seed: int) -> None:
    done = rewritten(attention(form, fill), SoftmaxFloor)
    assert done.rules == {"softmax-floor": 1}
    assert distance(done, feed(masks, seed, scale)) <= ROUNDING


# The family's own judgement.


def judged(proto: onnx.ModelProto, *feeds: dict[str, Any]) -> str | None:
    done = rewritten(proto, SoftmaxFloor)
    assert done.sites
    ctx = PassContext(
        model=done.after,
        source=done.before,
        analyses=Analyses(done.before),
        selection=Selection.of(done.before, (), ()),
        samples=None,
        target=Target(),
        feeds=Samples.of(feeds) if feeds else None,
    )
    return accept(ctx, done.before, done.after)


@pytest.mark.parametrize("join", FORMS)
def test_good_masks_are_accepted(join: Joined) -> None:
    assert judged(attention(join), feed(PARTLY), feed(FULLY)) is None


def test_nothing_is_believed_that_cannot_be_run() -> None:
    assert judged(attention(added_where)) == "believed only where the model can be run"


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_scores_of_any_size_are_accepted(scale: float) -> None:
    assert judged(attention(added_where), feed(PARTLY, scale=scale)) is None


def test_outputs_that_are_all_zero_have_to_stay_zero() -> None:
    draft = Draft()
    q, k = draft.input("q", [1, POSITIONS, 4]), draft.input("k", [1, 4, POSITIONS])
    mask = draft.input("mask", ["b", POSITIONS], TensorProto.INT64)
    masked = added_where(draft, draft.node("MatMul", [q, k], "scores"), mask, LEAST)
    weights = draft.node("Softmax", [masked], "p", axis=-1)
    hidden = draft.const("last", np.array([POSITIONS - 1], np.int64))
    draft.output(draft.node("Gather", [weights, hidden], "y", axis=2), ["b", POSITIONS, 1])
    zeros = {"q": np.zeros((1, POSITIONS, 4), np.float32), "k": np.zeros((1, 4, POSITIONS), np.float32)}
    reason = judged(draft.model("last weight"), {**zeros, "mask": np.array([[1, 1, 1, 1, 1, 0]], np.int64)})
    assert reason == "the floor leaves output y at -inf dB, 100 dB are asked for (the feed as it is)"


def test_inputs_of_masks_are_found_through_values_not_shapes() -> None:
    model = Model.from_proto(attention(added_where))
    scope = Scope(model, Selection.of(model, (), ()), Limits(0))
    assert mask_inputs(model, list(places(scope))) == ["mask"]


def test_masks_are_varied_and_nothing_else() -> None:
    given = feed(PARTLY)
    found = dict(variations(given, ["mask"]))
    assert [value["mask"].mean() for value in found.values()] == [pytest.approx(8 / 12), 0, 1, 0.5, 0.5]
    assert all(value["q"] is given["q"] for value in found.values())


def test_the_pass_needs_no_samples() -> None:
    found = optimize(attention(added_where), passes=["fuse:families=mask"], measure=False)
    assert found.report.passes[0].summary["rules"] == {"softmax-floor": 1}
