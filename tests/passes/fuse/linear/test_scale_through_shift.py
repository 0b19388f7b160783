"""Rule `scale-through-shift`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.fuse.linear.scale_shift_before import ScaleShiftBefore
from graphopt.passes.fuse.linear.scale_through_shift import ScaleThroughShift
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.layers import ALL, FORMS, PADDED, SCALES, Array, arithmetic, finished, spread

SHIFTS = tuple(form for form in FORMS if form not in SCALES)
MAP = ["n", 6, 5, 4]
Step = tuple[str, Array | Sequence[float] | float]


def chained(*steps: Step, layers: Sequence[str] = ("padded",), also: str = "") -> onnx.ModelProto:
    """Arithmetic in a row, read by layers; ``also``: what else reads the first (``first``) or the last (``last``)."""
    draft = Draft()
    x = draft.input("x", MAP)
    made = []
    for index, (form, value) in enumerate(steps):
        x = arithmetic(draft, form, x, np.asarray(value, np.float32), f"x{index}")
        made.append(x)
    results = [ALL[name].build(draft, x, f"y{i}") for i, name in enumerate(layers)]
    if also:
        results.append(draft.node("Relu", [made[0 if also == "first" else -1]], "also", name="relu"))
    return finished(draft, *results)


A = np.float32([2, -0.5, 3, 0.25, 1, -4]).reshape(6, 1, 1)
B = np.float32([1, 0, -7, 0.125, 100, 3]).reshape(1, 6, 1, 1)


@pytest.mark.parametrize("layer", PADDED)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_the_scale_goes_past_the_shift(layer: str, scale: str, shift: str) -> None:
    done = rewritten(chained((scale, A), (shift, B), layers=[layer]), ScaleShiftBefore, ScaleThroughShift)
    assert done.ops == [FORMS[shift][0], PADDED[layer].op]
    assert done.rules == {"scale-through-shift": 1}
    assert distance(done, n=2) <= ROUNDING


@pytest.mark.parametrize(("a", "b"), [([2.0], 1.0), (A, [5.0]), ([0.5], B), (2.0, -3.0)])
def test_numbers_and_vectors_mix(a: Array, b: Array) -> None:
    done = rewritten(chained(("x * c", a), ("x + c", b)), ScaleThroughShift)
    assert done.ops == ["Add", "Conv"]
    assert distance(done, n=2) <= ROUNDING


def test_the_shift_that_stays_is_the_quotient() -> None:
    done = rewritten(chained(("x * c", 4.0), ("c - x", 2.0)), ScaleThroughShift)
    node = done.after.editor.nodes()[0]
    assert node.op == "Sub" and node.inputs[0].name == "x"
    constant = done.after.editor.constant(node.inputs[1])
    assert constant is not None and constant.shape == () and constant == 0.5  # 2 - 4x = -4 · (x - 0.5)


def test_two_shifts_become_one() -> None:
    done = rewritten(chained(("x + c", A), ("x - c", B)), ScaleThroughShift)
    assert done.ops == ["Sub", "Conv"]
    assert distance(done, n=2) <= ROUNDING


def test_a_long_chain_keeps_one_shift() -> None:
    steps: list[Step] = [("x * c", A), ("x + c", B), ("x / c", 3.0), ("c - x", 1.0), ("x + c", A), ("c * x", B + 200)]
    done = rewritten(chained(*steps), ScaleShiftBefore, ScaleThroughShift)
    assert len(done.ops) == 2
    assert distance(done, n=2) <= ROUNDING


def test_several_layers_share_the_shift() -> None:
    done = rewritten(chained(("x * c", A), ("x + c", B), layers=["padded", "conv", "same"]), ScaleThroughShift)
    assert done.ops == ["Add", "Conv", "Conv", "Conv"]
    assert distance(done, n=2) <= ROUNDING


ZERO = A.copy()
ZERO[3] = 0
RATIO = "its shift divided by its scale is not below 1000 everywhere"
OTHER = "the output of x0.node has another user or is a graph output"
READER = "relu reads it too and is no layer with a constant weight"
FIT = "its constants are not one number per input channel of y0.layer"


@pytest.mark.parametrize(
    ("steps", "also", "reason"),
    [
        ([("x * c", ZERO), ("x + c", B)], "", RATIO),
        ([("x * c", 1e-3), ("x + c", 1.01)], "", RATIO),
        ([("x / c", 2.0), ("x - c", 501.0)], "", RATIO),
        ([("x * c", A), ("x + c", B)], "first", OTHER),
        ([("x * c", A), ("x + c", B)], "last", READER),
        ([("x * c", np.ones(4)), ("x + c", B)], "", FIT),
        ([("x * c", A), ("x + c", np.ones((5, 1)))], "", FIT),
    ],
)
def test_near_misses_stay_with_a_reason(steps: list[Step], also: str, reason: str) -> None:
    done = rewritten(chained(*steps, also=also), ScaleThroughShift)
    assert not done.sites
    assert done.reasons("scale-through-shift") == [reason]


def test_just_inside_the_bound_it_goes() -> None:
    for steps in ([("x * c", 1e-3), ("x + c", 0.999)], [("x * c", 1000.0), ("x + c", -1000.0)]):
        assert rewritten(chained(*steps), ScaleThroughShift).ops == ["Add", "Conv"]


def test_another_order_is_not_its_business() -> None:
    assert not rewritten(chained(("x + c", B), ("x * c", A)), ScaleThroughShift).sites
    assert not rewritten(chained(("x + c", B)), ScaleThroughShift).sites


def test_a_scale_from_outside_stays() -> None:
    draft = Draft()
    x = draft.node("Mul", [draft.input("x", MAP), draft.input("c", [6, 1, 1])], "scaled")
    x = arithmetic(draft, "x + c", x, B, "shifted")
    assert not rewritten(finished(draft, ALL["padded"].build(draft, x, "y")), ScaleThroughShift).sites


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    names=st.lists(st.sampled_from([n for n in sorted(ALL) if ALL[n].x == tuple(MAP)]), min_size=1, max_size=2),
    chain=st.lists(st.tuples(st.sampled_from(sorted(FORMS)), st.booleans()), min_size=2, max_size=4),
)
def test_random_graphs_stay_within_rounding(seed: int, names: list[str], chain: list[tuple[str, bool]]) -> None:
    draft = Draft(seed)
    x = draft.input("x", MAP)
    for index, (form, wide) in enumerate(chain):
        value = spread(draft.rng, (6, 1, 1) if wide else (1,), 0.0 if form in SCALES else 0.1)
        x = arithmetic(draft, form, x, value, f"x{index}")
    proto = finished(draft, *(ALL[n].build(draft, x, f"y{i}") for i, n in enumerate(names)))
    assert distance(rewritten(proto, ScaleThroughShift), n=2) <= ROUNDING
    assert distance(rewritten(proto, ScaleShiftBefore, ScaleThroughShift), n=2) <= ROUNDING
