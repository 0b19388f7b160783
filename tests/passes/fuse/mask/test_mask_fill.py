"""Rule `mask-fill`, and what has to hold before softer masks are kept."""

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
from graphopt.passes.fuse.mask.mask_check import accept, mask_inputs, places, variations, worst_gap
from graphopt.passes.fuse.mask.mask_fill import MaskFill, softened
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


def soft_constants(done: Done) -> list[float]:
    """The scalar constants that nodes of the result read."""
    values = [done.after.editor.constant(t) for n in done.after.editor.nodes() for t in n.inputs if not t.is_empty()]
    return [float(v.reshape(-1)[0]) for v in values if v is not None and v.dtype.kind == "f" and v.size == 1]


SUMMED = (added_product, added_difference)  # 0 · -inf is NaN: nobody writes this with -inf


@pytest.mark.parametrize(
    ("join", "fill"), [(j, f) for j in FORMS for f in (LEAST, -1e9, -1e4, -np.inf) if np.isfinite(f) or j not in SUMMED]
)
def test_every_form_gets_a_softer_fill_and_computes_the_same(join: Joined, fill: float) -> None:
    done = rewritten(attention(join, fill), MaskFill)
    assert done.rules == {"mask-fill": 1}
    assert -60.0 in soft_constants(done)
    assert distance(done, feed(PARTLY)) <= ROUNDING
    assert distance(done, feed(FULLY)) <= ROUNDING


def test_fully_masked_rows_are_as_before_bit_for_bit() -> None:
    for join in FORMS:
        done = rewritten(attention(join), MaskFill)
        given = feed([[0] * POSITIONS])
        before, after = (open_session(m, optimization="none").run(given)["y"] for m in (done.before, done.after))
        np.testing.assert_array_equal(before, after)


def test_the_softmax_is_no_longer_handed_large_numbers() -> None:
    done = rewritten(attention(added_where), MaskFill)
    name = next(n.inputs[0].name for n in done.after.editor.nodes() if n.op == "Softmax")
    seen = open_session(done.after, optimization="none", extra_outputs=[name]).run(feed(PARTLY))[name]
    assert -80 < seen.min() < -50


def test_a_mask_that_several_layers_read_is_softened_once() -> None:
    draft = Draft()
    q, k = draft.input("q", [2, POSITIONS, 4]), draft.input("k", [2, 4, POSITIONS])
    seen = draft.input("seen", [2, 1, POSITIONS], TensorProto.BOOL)
    mask = draft.node("Where", [seen, number(draft, 0.0), number(draft, LEAST)], "m")
    ends = []
    for layer in range(3):
        scores = draft.node("MatMul", [q, k], f"scores{layer}")
        ends.append(draft.node("Softmax", [draft.node("Add", [scores, mask], f"s{layer}")], f"y{layer}", axis=-1))
    for end in ends:
        draft.output(end, [2, POSITIONS, POSITIONS])
    done = rewritten(draft.model("layers"), MaskFill)
    assert done.ops.count("ReduceMax") == 1
    assert [site.figures["layers"] for site in done.sites] == [3]


def test_other_readers_of_the_mask_keep_it() -> None:
    def also_read(draft: Draft, scores: str, mask: str, fill: float) -> str:
        masked = added_where(draft, scores, mask, fill)
        draft.output(draft.node("Neg", ["m"], "also"), ["b", 1, POSITIONS])
        return masked

    done = rewritten(attention(also_read), MaskFill)
    assert done.rules == {"mask-fill": 1}
    after = open_session(done.after, optimization="none").run(feed(PARTLY))
    assert after["also"].max() == -LEAST


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_every_opset(opset: int) -> None:
    draft = Draft(opset=opset, ir_version=10)
    x, y = draft.input("x", [2, POSITIONS, 4]), draft.input("y", [4, POSITIONS])
    seen = draft.input("seen", [2, 1, POSITIONS], TensorProto.BOOL)
    mask = draft.node("Where", [seen, number(draft, 0.0), number(draft, -1e4)], "m")
    masked = draft.node("Add", [draft.node("MatMul", [x, y], "scores"), mask], "s")
    draft.output(draft.node("Softmax", [masked], "p", axis=2), [2, POSITIONS, POSITIONS])
    done = rewritten(draft.model("old"), MaskFill)
    assert done.rules == {"mask-fill": 1}
    assert distance(done) <= ROUNDING


def test_float16_masks() -> None:
    draft = Draft()
    x, y = (
        draft.input(name, shape, TensorProto.FLOAT16)
        for name, shape in (("x", [2, POSITIONS, 4]), ("y", [4, POSITIONS]))
    )
    seen = draft.input("seen", [2, 1, POSITIONS], TensorProto.BOOL)
    zero, fill = (draft.const(n, np.asarray(v, np.float16)) for n, v in (("zero", 0), ("fill", -65504)))
    masked = draft.node(
        "Add", [draft.node("MatMul", [x, y], "scores"), draft.node("Where", [seen, zero, fill], "m")], "s"
    )
    draft.output(draft.node("Softmax", [masked], "p", axis=-1), [2, POSITIONS, POSITIONS], TensorProto.FLOAT16)
    done = rewritten(draft.model("half"), MaskFill)
    assert done.rules == {"mask-fill": 1}
    assert distance(done) <= ROUNDING


def constant_mask(value: Any) -> Joined:
    def join(draft: Draft, scores: str, mask: str, fill: float) -> str:
        return draft.node("Add", [scores, draft.const("m", np.asarray(value, np.float32))], "s")

    return join


def causal(fill: float) -> np.ndarray:
    return np.where(np.triu(np.ones((POSITIONS, POSITIONS), bool), 1), np.float32(fill), np.float32(0))


@pytest.mark.parametrize("fill", [LEAST, -np.inf])
def test_a_constant_mask_is_computed_here(fill: float) -> None:
    done = rewritten(attention(constant_mask(causal(fill))), MaskFill)
    assert done.rules == {"mask-fill": 1}
    assert done.ops == [n.op for n in done.before.editor.nodes()]
    assert distance(done, feed(PARTLY)) <= ROUNDING


def test_constant_rows_without_an_unmasked_position_stay() -> None:
    value = causal(LEAST)
    value[2] = LEAST
    softer = softened(value)
    assert softer is not None
    np.testing.assert_array_equal(softer[2], value[2])
    assert softer[[0, 1, 3, 4]].min() == -60.0
    assert softened(softer) is None


def test_nothing_more_is_found_in_the_result() -> None:
    for join in (*FORMS, constant_mask(causal(LEAST))):
        done = rewritten(attention(join), MaskFill)
        assert not rewritten(done.after.to_proto(), MaskFill).sites


def twice(draft: Draft, scores: str, mask: str, fill: float) -> str:
    """A causal mask, and one of the padding on top of it."""
    seen = draft.const("triangle", np.tril(np.ones((POSITIONS, POSITIONS), bool)))
    inner = draft.node("Where", [seen, scores, number(draft, fill)], "inner")
    return added_where(draft, inner, mask, fill)


def twice_added(draft: Draft, scores: str, mask: str, fill: float) -> str:
    inner = draft.node("Add", [scores, draft.const("triangle", causal(fill))], "inner")
    return added_where(draft, inner, mask, fill)


@pytest.mark.parametrize("join", [twice, twice_added])
def test_scores_with_a_mask_of_their_own_are_refused(join: Joined) -> None:
    done = rewritten(attention(join), MaskFill)
    assert not done.sites
    assert done.reasons("mask-fill") == [
        "the scores may hold another mask: a row might have no position that neither masks"
    ]


def test_masks_that_are_added_up_first_are_one_mask() -> None:
    def summed(draft: Draft, scores: str, mask: str, fill: float) -> str:
        seen = raised(draft, mask, TensorProto.BOOL)
        padding = draft.node("Where", [seen, number(draft, 0.0), number(draft, fill)], "padding")
        both = draft.node("Add", [padding, draft.const("triangle", causal(fill))], "both")
        return draft.node("Add", [scores, both], "s")

    done = rewritten(attention(summed), MaskFill)
    assert done.rules == {"mask-fill": 1}
    for mask in (PARTLY, FULLY):
        assert distance(done, feed(mask)) <= ROUNDING


def test_masked_scores_that_something_else_reads_are_refused() -> None:
    def also_read(draft: Draft, scores: str, mask: str, fill: float) -> str:
        masked = added_where(draft, scores, mask, fill)
        draft.output(draft.node("Neg", [masked], "also"), ["b", POSITIONS, POSITIONS])
        return masked

    def an_output(draft: Draft, scores: str, mask: str, fill: float) -> str:
        masked = added_where(draft, scores, mask, fill)
        draft.output(masked, ["b", POSITIONS, POSITIONS])
        return masked

    for join in (also_read, an_output):
        done = rewritten(attention(join), MaskFill)
        assert not done.sites
        assert done.reasons("mask-fill") == ["the masked scores have another user or are a graph output"]


def test_a_fill_that_may_be_a_bias_is_refused() -> None:
    done = rewritten(attention(added_where, -100.0), MaskFill)
    assert not done.sites
    assert done.reasons("mask-fill") == ["a fill of -100 may be a part of the scores: it is above -1000"]


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
    done = rewritten(attention(join), MaskFill)
    assert not done.sites
    assert not done.skips


def test_another_axis_is_left_alone() -> None:
    done = rewritten(attention(added_where, axis=1), MaskFill)
    assert not done.sites


def test_a_softmax_that_is_left_out_keeps_its_mask() -> None:
    model = Model.from_proto(attention(added_where))
    scope = Scope(model, Selection.of(model, (), ("softmax",)), Limits(0))
    assert apply_families(scope, [Family("mask", "", (MaskFill,))]) == ([], [])


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    form=st.sampled_from(FORMS),
    fill=st.sampled_from([LEAST, -1e9, -65504.0, -1e4]),
    masks=st.lists(st.lists(st.integers(0, 1), min_size=POSITIONS, max_size=POSITIONS), min_size=1, max_size=3),
    scale=st.sampled_from([1e-3, 1.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_random_masks(form: Joined, fill: float, masks: list[list[int]], scale: float, seed: int) -> None:
    done = rewritten(attention(form, fill), MaskFill)
    assert done.rules == {"mask-fill": 1}
    assert distance(done, feed(masks, seed, scale)) <= ROUNDING


# The family's own judgement.


def judged(proto: onnx.ModelProto, *feeds: dict[str, Any]) -> str | None:
    done = rewritten(proto, MaskFill)
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
    assert judged(attention(added_where)) == "softer masks are believed only where the model can be run"


def test_masked_scores_far_above_the_others_are_found() -> None:
    reason = judged(attention(added_where), feed(PARTLY, scale=30.0))
    assert reason is not None
    assert "softer masks leave output y" in reason or "masked scores exceed the others by" in reason


def test_a_close_call_is_found_although_the_outputs_are_the_same() -> None:
    given = feed([1, 1, 1, 0, 0, 0], scale=0.0)
    given["q"][:], given["k"][:] = 0, 0
    given["q"][0, :, 0], given["k"][0, 5, 0] = 1.0, 2 * 44.0
    reason = judged(attention(added_where), given)
    assert reason is not None
    assert reason.startswith("masked scores exceed the others by 44.0, at softmax")


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
    assert reason == "softer masks leave output y at -inf dB, 100 dB are asked for (the feed as it is)"


def test_inputs_of_masks_are_found_through_values_not_shapes() -> None:
    model = Model.from_proto(attention(added_where))
    scope = Scope(model, Selection.of(model, (), ()), Limits(0))
    assert mask_inputs(model, list(places(scope))) == ["mask"]


def test_masks_are_varied_and_nothing_else() -> None:
    given = feed(PARTLY)
    found = dict(variations(given, ["mask"]))
    assert [value["mask"].mean() for value in found.values()] == [pytest.approx(8 / 12), 0, 1, 0.5, 0.5]
    assert all(value["q"] is given["q"] for value in found.values())


def test_the_gap_is_the_largest_over_the_rows_that_are_partly_masked() -> None:
    scores = np.array([[1.0, 5.0, 3.0], [9.0, 9.0, 9.0], [0.0, 0.0, 2.0]], np.float32)
    masked = scores + np.array([[0, -1e9, 0], [-1e9] * 3, [0, 0, -1e9]], np.float32)
    assert worst_gap(scores, masked, added=True) == pytest.approx(2.0)
    assert worst_gap(scores, scores, added=True) == -np.inf
    replaced_by = np.array([[1.0, -1e9, 3.0]], np.float32)
    assert worst_gap(scores[:1], replaced_by, added=False) == pytest.approx(-3.0)


def test_the_pass_asks_the_family_and_says_what_it_answered() -> None:
    """Scores of ± 1 are accepted, scores of ± 100 are not, and synthetic inputs say too little."""
    unknown = optimize(attention(added_where), passes=["fuse:families=mask"], measure=False)
    assert any("real samples only" in note for note in unknown.report.passes[0].notes)
    fine = optimize(
        attention(added_where), passes=["fuse:families=mask"], data=[feed(PARTLY, scale=1.0)] * 2, measure=False
    )
    assert fine.report.passes[0].summary["rules"] == {"mask-fill": 1}
    steep = optimize(
        attention(added_where), passes=["fuse:families=mask"], data=[feed(PARTLY, scale=60.0)] * 2, measure=False
    )
    assert steep.report.passes[0].applied == ()
    assert any(note.startswith("taken back: mask (") for note in steep.report.passes[0].notes)
