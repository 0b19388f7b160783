"""The logistic function becomes Sigmoid; SiLU becomes a product that the runtime fuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.passes.fuse.activations.sigmoid import Sigmoid
from graphopt.runtime.optimized import optimized_ops
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.sketch import Formula, Sketch, formula_model


def below(s: Sketch, x: str) -> str:
    return s.op("Add", s.op("Exp", s.op("Neg", x)), 1.0)


FORMS: dict[str, Formula] = {
    "Tanh": lambda s, x: s.op("Add", s.op("Mul", s.op("Tanh", s.op("Mul", x, 0.5)), 0.5), 0.5),
    "Tanh, halved last": lambda s, x: s.op("Div", s.op("Add", 1.0, s.op("Tanh", s.op("Div", x, 2.0))), 2.0),
}
EXACT_NEAR_ZERO: dict[str, Formula] = {
    "quotient": lambda s, x: s.op("Div", 1.0, below(s, x)),
    "Reciprocal": lambda s, x: s.op("Reciprocal", s.op("Add", 1.0, s.op("Exp", s.op("Mul", x, -1.0)))),
    "subtracted": lambda s, x: s.op("Div", 1.0, s.op("Sub", s.op("Exp", s.op("Sub", 0.0, x)), -1.0)),
    "another numerator": lambda s, x: s.op("Div", s.op("Sin", x), below(s, x)),
}
"""The runtime's Sigmoid is 0 from -18 on: a Log behind these would be -inf."""


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_becomes_one_node(form: str) -> None:
    done = rewritten(formula_model(FORMS[form]), Sigmoid)
    assert done.ops == ["Mul", "Sigmoid", "Neg"]
    assert distance(done) <= ROUNDING


def test_silu_becomes_what_the_runtime_fuses() -> None:
    done = rewritten(formula_model(lambda s, x: s.op("Div", x, below(s, x))), Sigmoid)
    assert done.ops == ["Mul", "Sigmoid", "Mul", "Neg"]
    assert optimized_ops(done.after)["com.microsoft:QuickGelu"] == 1
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize("form", EXACT_NEAR_ZERO)
def test_a_quotient_that_is_exact_near_zero_stays(form: str) -> None:
    assert not rewritten(formula_model(EXACT_NEAR_ZERO[form]), Sigmoid).sites


def test_a_numerator_made_of_the_denominator_stays_and_the_work_ends() -> None:
    def form(s: Sketch, x: str) -> str:
        curve = s.op("Exp", s.op("Neg", x))
        return s.op("Div", curve, s.op("Add", curve, 1.0))

    assert not rewritten(formula_model(form), Sigmoid).sites


@pytest.mark.parametrize("form", FORMS)
def test_far_out_it_is_still_the_same(form: str) -> None:
    done = rewritten(formula_model(FORMS[form]), Sigmoid)
    x = np.float32([-3e4, -1e3, -30, -29.5, -10, -6, -1, 0, 1, 6, 10, 29.5, 30, 1e3, 3e4])
    assert distance(done, {"x": np.resize(x, (2, 3, 4, 5))}) <= ROUNDING


NEAR_MISSES: dict[str, Formula] = {
    "no sign": lambda s, x: s.op("Div", 1.0, s.op("Add", s.op("Exp", x), 1.0)),
    "2 for 1": lambda s, x: s.op("Div", 1.0, s.op("Add", s.op("Exp", s.op("Neg", x)), 2.0)),
    "2 above": lambda s, x: s.op("Div", 2.0, below(s, x)),
    "shifted": lambda s, x: s.op("Div", 1.0, s.op("Add", s.op("Exp", s.op("Sub", 0.5, x)), 1.0)),
    "upside down": lambda s, x: s.op("Div", below(s, x), 3.0),
    "a steep Tanh": lambda s, x: s.op("Add", s.op("Mul", s.op("Tanh", x), 0.5), 0.5),
    "Tanh alone": lambda s, x: s.op("Mul", s.op("Tanh", s.op("Mul", x, 0.5)), 0.5),
    "an array above": lambda s, x: s.op("Div", np.ones((3, 1, 1), np.float32), below(s, x)),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_a_sigmoid_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), Sigmoid)
    assert not done.sites
    assert not done.skips


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        inner = below(s, x)
        return s.op("Add", s.op("Div", x, inner), s.op("Log", inner))

    done = rewritten(formula_model(form), Sigmoid)
    assert not done.sites
    assert "another user" in done.reasons("sigmoid")[0]


def test_an_inner_tensor_that_is_an_output_is_refused() -> None:
    done = rewritten(formula_model(lambda s, x: s.op("Div", x, below(s, x)), also=["Exp"]), Sigmoid)
    assert not done.sites
    assert "graph output" in done.reasons("sigmoid")[0]


def test_a_number_that_enlarges_the_shape_is_refused() -> None:
    proto = formula_model(FORMS["Tanh"], shape=(4, 5), number_shape=(1, 1, 1), result=(1, 4, 5))
    assert not rewritten(proto, Sigmoid).sites


def test_float64_is_left_alone() -> None:
    one = np.array(1.0)
    proto = formula_model(
        lambda s, x: s.op("Div", x, s.op("Add", s.op("Exp", s.op("Neg", x)), one)), dtype=TensorProto.DOUBLE
    )
    assert not rewritten(proto, Sigmoid).sites


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """Quotients and curves with numbers that often make a logistic function."""
    number = st.sampled_from((1.0, 1.0, 1.0, 0.5, -1.0, 2.0, 0.001, 1e3))
    above, one, slope = draw(number), draw(number), draw(st.sampled_from((-1.0, -1.0, -1.0, 1.0, -2.0)))
    kind, swap = draw(st.sampled_from(("Div", "Reciprocal", "SiLU", "other", "Tanh"))), draw(st.booleans())

    def formula(s: Sketch, x: str) -> str:
        if kind == "Tanh":
            t = s.op("Tanh", s.op("Mul", x, 0.5 * -slope))
            return s.op("Add", *((0.5, s.op("Mul", 0.5 * above, t)) if swap else (s.op("Mul", t, 0.5 * above), 0.5)))
        curve = s.op("Exp", s.op("Neg", x) if slope == -1.0 and swap else s.op("Mul", x, slope))
        t = s.op("Add", *((one, curve) if swap else (curve, one)))
        if kind == "Reciprocal":
            return s.op("Reciprocal", t)
        numerator = {"Div": above, "SiLU": x, "other": s.op("Sin", x)}[kind]
        return s.op("Div", numerator, t)

    return formula


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((1e-3, 0.1, 1.0, 10.0)), st.sampled_from((9, 13, 18)))
def test_random_formulas_stay_within_rounding(form: Formula, seed: int, scale: float, opset: int) -> None:
    done = rewritten(formula_model(form, opset=opset), Sigmoid)
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING
