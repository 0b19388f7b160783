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

from graphopt.api import optimize
from graphopt.model.model import Model
from graphopt.passes.fuse.mask.softmax_floor import SoftmaxFloor
from graphopt.pipeline.families import Family, apply_families
from graphopt.pipeline.rules import Limits, Scope
from graphopt.pipeline.selection import Selection
from graphopt.runtime.session import open_session
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
    weights = draft.node("Softmax", [masked], "p", axis=2)
    draft.output(draft.node("MatMul", [weights, draft.input("v", [2, POSITIONS, 3])], "z"), [2, POSITIONS, 3])
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


def read_by(*ops: str, attention_mask: bool = True) -> onnx.ModelProto:
    """Masked weights that go through these operators, one behind the other, to the output."""
    draft = Draft()
    scores = draft.input("x", ["b", POSITIONS, POSITIONS])
    mask = draft.input("mask", ["b", POSITIONS], TensorProto.INT64)
    tensor = draft.node("Softmax", [added_where(draft, scores, mask, LEAST)], "p", axis=-1)
    for i, op in enumerate(ops):
        others = {"MatMul": [draft.input(f"v{i}", ["b", POSITIONS, POSITIONS])], "Pow": [number(draft, 0.1)]}
        tensor = draft.node(op, [tensor, *others.get(op, [])], f"r{i}")
    draft.output(tensor, ["b", POSITIONS, POSITIONS])
    return draft.model("read")


@pytest.mark.parametrize(
    "ops", [("MatMul",), ("Transpose", "Transpose", "MatMul"), ("Dropout", "Identity", "MatMul", "Log")]
)
def test_weights_that_are_summed_up_get_a_floor(ops: tuple[str, ...]) -> None:
    assert rewritten(read_by(*ops), SoftmaxFloor).rules == {"softmax-floor": 1}


@pytest.mark.parametrize(
    "ops", [(), ("Log",), ("Pow",), ("Sqrt",), ("Transpose",), ("Identity", "Log"), ("Shrink", "MatMul")]
)
def test_weights_that_show_how_small_they_are_stay(ops: tuple[str, ...]) -> None:
    done = rewritten(read_by(*ops), SoftmaxFloor)
    assert not done.sites
    assert done.reasons("softmax-floor") == ["its weights are read by more than products"]


def test_a_guard_against_nan_is_no_reader_that_counts() -> None:
    draft = Draft()
    scores, v = draft.input("x", ["b", POSITIONS, POSITIONS]), draft.input("v", ["b", POSITIONS, 4])
    mask = draft.input("mask", ["b", POSITIONS], TensorProto.INT64)
    weights = draft.node("Softmax", [added_where(draft, scores, mask, -np.inf)], "p", axis=-1)
    guarded = draft.node("Where", [draft.node("IsNaN", [weights], "nan"), number(draft, 0.0), weights], "g")
    draft.output(draft.node("MatMul", [guarded, v], "y"), ["b", POSITIONS, 4])
    done = rewritten(draft.model("guarded"), SoftmaxFloor)
    assert done.rules == {"softmax-floor": 1}
    rng = np.random.default_rng(0)
    given = {
        "x": rng.standard_normal((2, POSITIONS, POSITIONS)).astype(np.float32),
        "v": rng.standard_normal((2, POSITIONS, 4)).astype(np.float32),
        "mask": np.asarray([[0] * POSITIONS, [1, 1, 0, 0, 0, 0]]),
    }
    before, after = both(done, given)
    np.testing.assert_array_equal(before["y"], after["y"])


def test_masks_put_together_in_many_ways_are_read_once() -> None:
    draft = Draft()
    scores, v = draft.input("x", [POSITIONS, POSITIONS]), draft.input("v", [POSITIONS, 4])
    mask = draft.input("m", [POSITIONS, 1])
    for level in range(40):
        mask = draft.node("Add", [mask, mask], f"m{level}")
    weights = draft.node("Softmax", [draft.node("Add", [scores, mask], "s")], "p", axis=-1)
    draft.output(draft.node("MatMul", [weights, v], "y"), [POSITIONS, 4])
    assert not rewritten(draft.model("deep"), SoftmaxFloor).sites


def test_the_pass_needs_no_samples() -> None:
    found = optimize(attention(added_where), passes=["fuse:families=mask"], measure=False)
    assert found.report.passes[0].summary["rules"] == {"softmax-floor": 1}
