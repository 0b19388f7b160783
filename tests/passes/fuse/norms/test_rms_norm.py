"""Root mean square normalisation: the runtime's spelling below opset 23, the operator from there on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.model.weights import Array
from graphopt.passes.fuse.norms.rms_norm import RmsNorm
from graphopt.runtime.optimized import optimized_ops
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.norms.norm_forms import QUOTIENTS, SQUARES, inverse, mean, rms, some, squared
from tests.passes.fuse.sketch import Formula, Sketch, formula_model

WIDTH = 5
PLAIN = Counter(["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Mul", "Neg"])
SPELLINGS = [(square, quotient) for square in SQUARES for quotient in QUOTIENTS]


def spelled(square: str, quotient: str) -> Formula:
    return lambda s, x: s.op("Mul", some(WIDTH), rms(s, x, square=square, quotient=quotient))


@pytest.mark.parametrize(("square", "quotient"), SPELLINGS)
@pytest.mark.parametrize("opset", [12, 17, 18])
def test_the_runtime_recognises_every_spelling_afterwards(square: str, quotient: str, opset: int) -> None:
    done = rewritten(formula_model(spelled(square, quotient), opset=opset), RmsNorm)
    assert optimized_ops(done.after)["SimplifiedLayerNormalization"] == 1
    assert done.after.opset == opset
    assert bool(done.sites) == (optimized_ops(done.before)["SimplifiedLayerNormalization"] == 0)
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize(("square", "quotient"), SPELLINGS)
def test_from_opset_23_on_it_is_one_node(square: str, quotient: str) -> None:
    done = rewritten(formula_model(spelled(square, quotient), opset=23), RmsNorm)
    assert done.ops == ["Mul", "RMSNormalization", "Neg"]
    assert distance(done) <= ROUNDING


def test_without_a_scale_it_gets_ones() -> None:
    done = rewritten(formula_model(lambda s, x: rms(s, x)), RmsNorm)
    assert Counter(done.ops) == PLAIN
    assert optimized_ops(done.after)["SimplifiedLayerNormalization"] == 1
    assert distance(done) <= ROUNDING


def test_a_scale_at_the_reciprocal_is_taken_along() -> None:
    def form(s: Sketch, x: str) -> str:
        factor = inverse(s, s.op("Add", mean(s, squared(s, x)), 1e-6))
        return s.op("Mul", s.op("Mul", factor, some(WIDTH)), x)

    done = rewritten(formula_model(form), RmsNorm)
    assert Counter(done.ops) == PLAIN
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize(
    ("scale", "shape", "result"),
    [(some(1, 1, 1, 1, WIDTH), (2, 3, 4, WIDTH), (1, 2, 3, 4, WIDTH)), (some(WIDTH), (2, 3, 4, 1), (2, 3, 4, WIDTH))],
    ids=["rank", "extent"],
)
@pytest.mark.parametrize("opset", [17, 23])
def test_a_scale_at_the_reciprocal_that_enlarges_the_shape_is_refused(
    scale: Array, shape: tuple[int, ...], result: tuple[int, ...], opset: int
) -> None:
    def form(s: Sketch, x: str) -> str:
        return s.op("Mul", s.op("Mul", inverse(s, s.op("Add", mean(s, squared(s, x)), 1e-6)), scale), x)

    done = rewritten(formula_model(form, opset=opset, shape=shape, result=result), RmsNorm)
    assert not done.sites
    assert distance(done) == 0


NEAR_MISSES: dict[str, Formula] = {
    "another axis": lambda s, x: s.op("Mul", rms(s, x, square="Mul", axes=(1,)), some(3, 1, 1)),
    "two axes": lambda s, x: rms(s, x, square="Mul", axes=(-2, -1)),
    "no epsilon": lambda s, x: s.op("Div", x, s.op("Sqrt", mean(s, s.op("Mul", x, x)))),
    "a large epsilon": lambda s, x: rms(s, x, square="Mul", epsilon=2.0),
    "a cube": lambda s, x: s.op("Div", x, s.op("Sqrt", s.op("Add", mean(s, s.op("Pow", x, 3.0)), 1e-6))),
    "the square of another": lambda s, x: s.op(
        "Div", x, s.op("Sqrt", s.op("Add", mean(s, s.op("Mul", s.op("Sin", x), s.op("Sin", x))), 1e-6))
    ),
    "a sum": lambda s, x: s.op(
        "Div", x, s.op("Sqrt", s.op("Add", s.op("ReduceSum", s.op("Mul", x, x), np.array([-1])), 1e-6))
    ),
    "upside down": lambda s, x: s.op("Div", s.op("Sqrt", s.op("Add", mean(s, s.op("Mul", x, x)), 1e-6)), x),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_an_rms_normalisation_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), RmsNorm)
    assert not done.sites
    assert not done.skips


def test_a_scale_of_another_axis_stays_behind() -> None:
    done = rewritten(formula_model(lambda s, x: s.op("Mul", rms(s, x, square="Mul"), some(3, 1, 1))), RmsNorm)
    assert Counter(done.ops) == PLAIN + Counter(["Mul"])
    assert distance(done) <= ROUNDING


def test_an_unknown_extent_is_refused() -> None:
    proto = formula_model(lambda s, x: rms(s, x, square="Mul"), shape=(2, "n"))
    done = rewritten(proto, RmsNorm)
    assert not done.sites
    assert "extent" in done.reasons("rms-norm")[0]


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        variance = s.op("Add", mean(s, s.op("Mul", x, x)), 1e-6)
        return s.op("Add", s.op("Div", x, s.op("Sqrt", variance)), variance)

    done = rewritten(formula_model(form), RmsNorm)
    assert not done.sites
    assert "another user" in done.reasons("rms-norm")[0]


def test_float64_is_left_alone() -> None:
    def form(s: Sketch, x: str) -> str:
        return s.op("Div", x, s.op("Sqrt", s.op("Add", mean(s, s.op("Mul", x, x)), np.array(1e-6))))

    assert not rewritten(formula_model(form, dtype=TensorProto.DOUBLE), RmsNorm).sites


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """Spellings of the normalisation, sometimes over another axis or with a scale that does not fit."""
    square, quotient = draw(st.sampled_from(SQUARES)), draw(st.sampled_from(QUOTIENTS))
    epsilon, axis = draw(st.sampled_from((1e-3, 0.01, 1.0))), draw(st.sampled_from((-1, -1, 3, 1)))
    scale = draw(st.sampled_from((None, (5,), (1, 5), (1, 1, 1, 5), (1,), (3, 1, 1), (4, 5))))
    swap = draw(st.booleans())

    def formula(s: Sketch, x: str) -> str:
        y = rms(s, x, square=square, quotient=quotient, epsilon=epsilon, axes=(axis,))
        if scale is None:
            return y
        return s.op("Mul", *((some(*scale), y) if swap else (y, some(*scale))))

    return formula


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((0.01, 1.0, 30.0)), st.sampled_from((9, 13, 18, 23)))
def test_random_formulas_stay_within_rounding(form: Formula, seed: int, scale: float, opset: int) -> None:
    done = rewritten(formula_model(form, opset=opset), RmsNorm)
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING
