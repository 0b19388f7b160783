"""LayerNormalization is found however mean, variance, scale and shift are written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.model.weights import Array
from graphopt.passes.fuse.norms.instance_norm import InstanceNorm
from graphopt.passes.fuse.norms.layer_norm import LayerNorm
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.norms.norm_forms import (
    QUOTIENTS,
    SQUARES,
    affine,
    divided,
    inverse,
    mean,
    multiplied_out,
    normed,
    some,
    squared,
)
from tests.passes.fuse.sketch import Formula, Sketch, formula_model

WIDTH = 5
SPELLINGS = [(square, quotient) for square in SQUARES for quotient in QUOTIENTS]
FOUND = ["Mul", "LayerNormalization", "Neg"]


def flax(s: Sketch, x: str) -> str:
    """The scale at the reciprocal."""
    difference = s.op("Sub", x, mean(s, x))
    factor = inverse(s, s.op("Add", mean(s, s.op("Mul", difference, difference)), 1e-6))
    return s.op("Add", s.op("Mul", difference, s.op("Mul", factor, some(WIDTH))), some(WIDTH, seed=2))


FORMS: dict[str, Formula] = {
    "PyTorch": lambda s, x: affine(s, normed(s, x), some(WIDTH), some(WIDTH, seed=2)),
    "difference twice": lambda s, x: affine(s, normed(s, x, twice=True), some(WIDTH), some(WIDTH, seed=2)),
    "Keras": lambda s, x: multiplied_out(s, x, some(WIDTH), some(WIDTH, seed=2)),
    "Keras without scale": lambda s, x: multiplied_out(s, x, None, some(WIDTH)),
    "Flax": flax,
    "no scale": lambda s, x: affine(s, normed(s, x), None, some(WIDTH)),
    "no shift": lambda s, x: affine(s, normed(s, x), some(WIDTH), None),
    "neither": lambda s, x: normed(s, x),
    "over two axes": lambda s, x: affine(s, normed(s, x, (-2, -1)), some(4, WIDTH), some(WIDTH), swap=True),
    "over all but the batch": lambda s, x: affine(s, normed(s, x, (1, 2, 3)), some(3, 4, 5), some(1, 3, 4, 5)),
    "parameters of more axes": lambda s, x: affine(s, normed(s, x), some(1, 1, WIDTH), some(1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opset", [13, 17, 18])
def test_every_form_becomes_one_node(form: str, opset: int) -> None:
    done = rewritten(formula_model(FORMS[form], opset=opset), LayerNorm)
    assert done.ops == FOUND
    assert done.after.opset == max(opset, 17)
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize(("square", "quotient"), SPELLINGS)
def test_every_spelling_of_square_and_quotient_is_read(square: str, quotient: str) -> None:
    def form(s: Sketch, x: str) -> str:
        return affine(s, normed(s, x, square=square, quotient=quotient), some(WIDTH), some(WIDTH, seed=2))

    done = rewritten(formula_model(form), LayerNorm)
    assert done.ops == FOUND
    assert distance(done) <= ROUNDING


def test_axis_and_epsilon_are_kept() -> None:
    done = rewritten(formula_model(lambda s, x: normed(s, x, (-2, -1), epsilon=0.01)), LayerNorm)
    node = next(n for n in done.after.editor.nodes() if n.op == "LayerNormalization")
    assert node.attrs["axis"] == -2
    assert node.attrs["epsilon"] == pytest.approx(0.01)


def test_the_result_may_be_a_graph_output() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], last=True), LayerNorm)
    assert done.ops == ["Mul", "LayerNormalization"]
    assert distance(done) <= ROUNDING


def fast_variance(s: Sketch, x: str) -> str:
    """The variance as a difference of means."""
    centre = mean(s, x)
    variance = s.op("Sub", mean(s, s.op("Mul", x, x)), s.op("Mul", centre, centre))
    return divided(s, s.op("Sub", x, centre), s.op("Add", variance, 1e-5))


NEAR_MISSES: dict[str, Formula] = {
    "a variance that cancels": fast_variance,
    "not the last axis": lambda s, x: normed(s, x, (1,)),
    "with a gap": lambda s, x: normed(s, x, (1, 3)),
    "no epsilon": lambda s, x: (lambda d: s.op("Div", d, s.op("Sqrt", mean(s, s.op("Mul", d, d)))))(
        s.op("Sub", x, mean(s, x))
    ),
    "another mean below": lambda s, x: (lambda d, e: divided(s, d, s.op("Add", mean(s, squared(s, e)), 1e-5)))(
        s.op("Sub", x, mean(s, x)), s.op("Sub", x, mean(s, x, (-2,)))
    ),
    "a variance over another axis": lambda s, x: (
        lambda d: divided(s, d, s.op("Add", mean(s, squared(s, d), (-2,)), 1e-5))
    )(s.op("Sub", x, mean(s, x))),
    "another tensor's mean": lambda s, x: (lambda d: divided(s, d, s.op("Add", mean(s, squared(s, d)), 1e-5)))(
        s.op("Sub", x, mean(s, s.op("Sin", x)))
    ),
    "mean less x": lambda s, x: (lambda d: divided(s, d, s.op("Add", mean(s, squared(s, d)), 1e-5)))(
        s.op("Sub", mean(s, x), x)
    ),
    "no mean at all": lambda s, x: divided(s, x, s.op("Add", mean(s, squared(s, x)), 1e-5)),
    "a third power": lambda s, x: (lambda d: divided(s, d, s.op("Add", mean(s, s.op("Pow", d, 3.0)), 1e-5)))(
        s.op("Sub", x, mean(s, x))
    ),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_a_layer_normalisation_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), LayerNorm)
    assert not done.sites
    assert not done.skips


def test_a_scale_of_another_axis_stays_behind() -> None:
    done = rewritten(formula_model(lambda s, x: affine(s, normed(s, x), some(4, 1), some(WIDTH))), LayerNorm)
    assert done.ops == ["Mul", "LayerNormalization", "Mul", "Add", "Neg"]
    assert distance(done) <= ROUNDING


def test_a_computed_scale_stays_behind() -> None:
    done = rewritten(formula_model(lambda s, x: s.op("Mul", normed(s, x), s.op("Sin", x))), LayerNorm)
    assert sorted(done.ops) == ["LayerNormalization", "Mul", "Mul", "Neg", "Sin"]
    assert distance(done) <= ROUNDING


def test_a_shift_that_enlarges_the_shape_stays_behind() -> None:
    proto = formula_model(
        lambda s, x: affine(s, normed(s, x), None, some(1, 4, WIDTH)), shape=(4, WIDTH), result=(1, 4, WIDTH)
    )
    assert rewritten(proto, LayerNorm).ops == ["Mul", "LayerNormalization", "Add", "Neg"]


@pytest.mark.parametrize(
    ("scale", "shift", "shape", "result"),
    [
        (some(1, 1, WIDTH), some(WIDTH), (4, WIDTH), (1, 4, WIDTH)),
        (some(WIDTH), some(1, 1, WIDTH), (4, WIDTH), (1, 4, WIDTH)),
        (None, some(WIDTH), (4, 1), (4, WIDTH)),
    ],
    ids=["scale, rank", "shift, rank", "shift, extent"],
)
def test_parameters_inside_that_enlarge_the_shape_are_refused(
    scale: Array | None, shift: Array, shape: tuple[int, ...], result: tuple[int, ...]
) -> None:
    proto = formula_model(lambda s, x: multiplied_out(s, x, scale, shift), shape=shape, result=result)
    done = rewritten(proto, LayerNorm)
    assert not done.sites
    assert distance(done) == 0


def test_an_unknown_extent_is_refused() -> None:
    done = rewritten(formula_model(FORMS["neither"], shape=(2, "n")), LayerNorm)
    assert not done.sites
    assert "extents" in done.reasons("layer-norm")[0]


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        difference = s.op("Sub", x, mean(s, x))
        variance = s.op("Add", mean(s, squared(s, difference)), 1e-5)
        return s.op("Add", divided(s, difference, variance), s.op("Sin", difference))

    done = rewritten(formula_model(form), LayerNorm)
    assert not done.sites
    assert "another user" in done.reasons("layer-norm")[0]


def test_an_inner_tensor_that_is_an_output_is_refused() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], also=["Sub"]), LayerNorm)
    assert not done.sites
    assert "graph output" in done.reasons("layer-norm")[0]


def test_the_normalised_tensor_may_be_an_output_itself() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], also=["Div"]), LayerNorm)
    assert done.ops == ["Mul", "LayerNormalization", "Mul", "Add", "Neg"]
    assert distance(done) <= ROUNDING


def test_an_opset_that_cannot_be_raised_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        return s.op("Resize", FORMS["PyTorch"](s, x), s.input("scales", [4]), mode="nearest")

    done = rewritten(formula_model(form, opset=10, result=(2, 3, "h", "w")), LayerNorm)
    assert not done.sites
    assert "opset 17" in done.reasons("layer-norm")[0]


def test_float64_is_left_alone() -> None:
    def form(s: Sketch, x: str) -> str:
        difference = s.op("Sub", x, mean(s, x))
        variance = s.op("Add", mean(s, s.op("Mul", difference, difference)), np.array(1e-5))
        return s.op("Div", difference, s.op("Sqrt", variance))

    assert not rewritten(formula_model(form, dtype=TensorProto.DOUBLE), LayerNorm).sites


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """Spellings of a normalisation over some axes, with parameters that often fit."""
    square, quotient = draw(st.sampled_from(SQUARES)), draw(st.sampled_from(QUOTIENTS))
    epsilon, twice = draw(st.sampled_from((1e-3, 0.01, 1.0))), draw(st.booleans())
    axes = draw(st.sampled_from(((-1,), (3,), (2, 3), (1, 2, 3), (1,), (2,), (0, 3))))
    shapes = st.sampled_from((None, (5,), (1, 5), (4, 5), (3, 4, 5), (1,), (3, 1, 1), (1, 3, 1, 1)))
    scale, shift, swap = draw(shapes), draw(shapes), draw(st.booleans())

    def formula(s: Sketch, x: str) -> str:
        y = normed(s, x, axes, square=square, quotient=quotient, epsilon=epsilon, twice=twice)
        parameters = [None if shape is None else some(*shape, seed=i) for i, shape in enumerate((scale, shift))]
        return affine(s, y, *parameters, swap=swap)

    return formula


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((0.01, 1.0, 30.0)), st.sampled_from((9, 17, 18)))
def test_random_formulas_stay_within_rounding(form: Formula, seed: int, scale: float, opset: int) -> None:
    done = rewritten(formula_model(form, opset=opset), InstanceNorm, LayerNorm)
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING
