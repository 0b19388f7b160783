"""Gelu with the error function: what onnxruntime recognises stays, every other spelling is brought to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.passes.fuse.activations.gelu_erf import GeluErf
from graphopt.runtime.optimized import optimized_ops
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.sketch import Formula, Sketch, formula_model

ROOT_TWO = math.sqrt(2)
PLAIN = ["Add", "Div", "Erf", "Mul", "Mul", "Mul", "Neg"]


def gate(s: Sketch, x: str) -> str:
    return s.op("Add", s.op("Erf", s.op("Div", x, ROOT_TWO)), 1.0)


def gate_by_product(s: Sketch, x: str) -> str:
    return s.op("Add", 1.0, s.op("Erf", s.op("Mul", 0.70710677, x)))


RECOGNISED: dict[str, Formula] = {
    "PyTorch": lambda s, x: s.op("Mul", s.op("Mul", x, gate(s, x)), 0.5),
    "half at x": lambda s, x: s.op("Mul", s.op("Mul", x, 0.5), gate(s, x)),
    "swapped": lambda s, x: s.op("Mul", 0.5, s.op("Mul", gate(s, x), x)),
}
OTHERS: dict[str, Formula] = {
    "Keras, TensorFlow": lambda s, x: s.op("Mul", s.op("Mul", 0.5, x), gate_by_product(s, x)),
    "cdf": lambda s, x: s.op("Mul", x, s.op("Mul", 0.5, gate(s, x))),
    "cdf by product": lambda s, x: s.op("Mul", s.op("Mul", gate_by_product(s, x), 0.5), x),
    "Paddle": lambda s, x: s.op("Mul", s.op("Mul", x, gate_by_product(s, x)), 0.5),
    "ONNX's definition": lambda s, x: s.op(
        "Mul", s.op("Mul", 0.5, x), s.op("Sum", 1.0, s.op("Erf", s.op("Div", x, ROOT_TWO)))
    ),
    "halved": lambda s, x: s.op("Div", s.op("Mul", x, gate(s, x)), 2.0),
    "summed late": lambda s, x: s.op(
        "Mul", x, s.op("Add", s.op("Mul", s.op("Erf", s.op("Div", x, ROOT_TWO)), 0.5), 0.5)
    ),
}


@pytest.mark.parametrize("form", OTHERS)
def test_other_spellings_become_the_one_that_the_runtime_recognises(form: str) -> None:
    done = rewritten(formula_model(OTHERS[form]), GeluErf)
    assert sorted(done.ops) == PLAIN
    assert done.after.opset == 17
    assert "com.microsoft:Gelu" not in optimized_ops(done.before)
    assert optimized_ops(done.after)["com.microsoft:Gelu"] == 1
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize("form", RECOGNISED)
def test_what_the_runtime_recognises_stays(form: str) -> None:
    done = rewritten(formula_model(lambda s, x: RECOGNISED[form](s, s.op("Sin", x))), GeluErf)
    assert not done.sites
    assert not done.skips
    assert optimized_ops(done.after)["com.microsoft:Gelu"] == 1


def test_the_half_last_behind_a_product_is_not_recognised() -> None:
    done = rewritten(formula_model(RECOGNISED["PyTorch"]), GeluErf)
    assert "com.microsoft:Gelu" not in optimized_ops(done.before)
    assert optimized_ops(done.after)["com.microsoft:Gelu"] == 1
    assert distance(done) <= ROUNDING


def test_numbers_of_a_rank_that_the_runtime_does_not_take_are_brought_to_scalars() -> None:
    done = rewritten(formula_model(RECOGNISED["PyTorch"], number_shape=(1, 1, 1)), GeluErf)
    assert sorted(done.ops) == PLAIN
    assert optimized_ops(done.after)["com.microsoft:Gelu"] == 1


@pytest.mark.parametrize("form", RECOGNISED | OTHERS)
def test_from_opset_20_on_it_is_one_node(form: str) -> None:
    done = rewritten(formula_model((RECOGNISED | OTHERS)[form], opset=20), GeluErf)
    assert done.ops == ["Mul", "Gelu", "Neg"]
    assert distance(done) <= ROUNDING


NEAR_MISSES: dict[str, Formula] = {
    "1.4 for the root": lambda s, x: s.op(
        "Mul", x, s.op("Mul", 0.5, s.op("Add", s.op("Erf", s.op("Div", x, 1.4)), 1.0))
    ),
    "no half": lambda s, x: s.op("Mul", x, gate_by_product(s, x)),
    "0.9 for one": lambda s, x: s.op(
        "Mul", x, s.op("Mul", 0.5, s.op("Add", s.op("Erf", s.op("Div", x, ROOT_TWO)), 0.9))
    ),
    "one minus": lambda s, x: s.op("Mul", x, s.op("Mul", 0.5, s.op("Sub", 1.0, s.op("Erf", s.op("Div", x, ROOT_TWO))))),
    "another factor": lambda s, x: s.op("Mul", s.op("Sin", x), s.op("Mul", 0.5, gate(s, x))),
    "Tanh": lambda s, x: s.op("Mul", x, s.op("Mul", 0.5, s.op("Add", s.op("Tanh", s.op("Div", x, ROOT_TWO)), 1.0))),
    "an array": lambda s, x: s.op("Mul", s.op("Mul", x, gate(s, x)), np.full((3, 1, 1), 0.5, np.float32)),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_gelu_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), GeluErf)
    assert not done.sites
    assert not done.skips


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        inner = gate_by_product(s, x)
        return s.op("Add", s.op("Tanh", inner), s.op("Mul", s.op("Mul", x, inner), 0.5))

    done = rewritten(formula_model(form), GeluErf)
    assert not done.sites
    assert "another user" in done.reasons("gelu-erf")[0]


def test_an_inner_tensor_that_is_an_output_is_refused() -> None:
    done = rewritten(formula_model(OTHERS["Paddle"], also=["Erf"]), GeluErf)
    assert not done.sites
    assert "graph output" in done.reasons("gelu-erf")[0]


def test_a_number_that_enlarges_the_shape_is_refused() -> None:
    proto = formula_model(OTHERS["Paddle"], shape=(4, 5), number_shape=(1, 1, 1), result=(1, 4, 5))
    assert not rewritten(proto, GeluErf).sites


def test_float64_is_left_alone() -> None:
    one, half = np.array(1.0), np.array(0.5)

    def form(s: Sketch, x: str) -> str:
        inner = s.op("Erf", s.op("Mul", x, np.array(math.sqrt(0.5))))
        return s.op("Mul", s.op("Mul", x, s.op("Add", inner, one)), half)

    assert not rewritten(formula_model(form, dtype=TensorProto.DOUBLE), GeluErf).sites


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """x times one plus Erf, its numbers where and what they like: Gelu in about one of two."""
    exact = draw(st.booleans())
    root = ROOT_TWO if exact else draw(st.sampled_from((ROOT_TWO, 1.4142, 1.0, 0.001, 1e3)))
    one = 1.0 if exact else draw(st.sampled_from((1.0, 0.0, -1.0, 0.5)))
    place, how = draw(st.sampled_from(("x", "gate", "product"))), draw(st.sampled_from(("Mul", "Div")))
    swap, divide = draw(st.booleans()), draw(st.booleans())

    def halved(s: Sketch, t: str, here: str) -> str:
        if place != here:
            return t
        return s.op("Div", t, 2.0) if how == "Div" else s.op("Mul", t, 0.5)

    def formula(s: Sketch, x: str) -> str:
        inner = s.op("Div", x, root) if divide else s.op("Mul", x, 1 / root)
        terms = [s.op("Erf", inner), one]
        t = s.op("Add", *(reversed(terms) if swap else terms))
        operands = [halved(s, x, "x"), halved(s, t, "gate")]
        return halved(s, s.op("Mul", *(reversed(operands) if swap else operands)), "product")

    return formula


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((1e-3, 0.1, 1.0, 30.0)), st.sampled_from((9, 13, 17, 20)))
def test_random_formulas_stay_within_rounding(form: Formula, seed: int, scale: float, opset: int) -> None:
    done = rewritten(formula_model(form, opset=opset), GeluErf)
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING
