"""InstanceNormalization is found at rank 3 to 5; what is better read as LayerNormalization is left to that."""

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
from tests.passes.fuse.norms.norm_forms import QUOTIENTS, SQUARES, affine, inverse, mean, normed, some
from tests.passes.fuse.sketch import Formula, Sketch, formula_model

FOUND = ["Mul", "InstanceNormalization", "Neg"]
PLANE = (2, 3)
FORMS: dict[str, Formula] = {
    "PyTorch": lambda s, x: affine(s, normed(s, x, PLANE), some(1, 3, 1, 1), some(1, 3, 1, 1, seed=2)),
    "negative axes": lambda s, x: affine(s, normed(s, x, (-1, -2)), some(3, 1, 1), some(3, 1, 1, seed=2)),
    "no scale": lambda s, x: affine(s, normed(s, x, PLANE), None, some(3, 1, 1)),
    "no shift": lambda s, x: affine(s, normed(s, x, PLANE), some(3, 1, 1), None, swap=True),
    "neither": lambda s, x: normed(s, x, PLANE),
    "numbers": lambda s, x: affine(s, normed(s, x, PLANE), np.float32(2), np.ones(1, np.float32)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opset", [9, 17, 18])
def test_every_form_becomes_one_node(form: str, opset: int) -> None:
    done = rewritten(formula_model(FORMS[form], opset=opset), InstanceNorm)
    assert done.ops == FOUND
    assert done.after.opset == opset
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("quotient", QUOTIENTS)
def test_every_spelling_of_square_and_quotient_is_read(square: str, quotient: str) -> None:
    done = rewritten(formula_model(lambda s, x: normed(s, x, PLANE, square=square, quotient=quotient)), InstanceNorm)
    assert done.ops == FOUND
    assert distance(done) <= ROUNDING


def test_unknown_height_and_width_do_not_matter() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], shape=(2, 3, "h", "w")), InstanceNorm, LayerNorm)
    assert done.ops == FOUND
    assert distance(done, h=4, w=5) <= ROUNDING


def test_the_plane_may_be_flattened_around_it() -> None:
    def form(s: Sketch, x: str) -> str:
        flat = s.op("Reshape", x, np.array([0, 3, -1]))
        return s.op("Reshape", normed(s, flat, (2,)), np.array([0, 3, -1, 5]))

    done = rewritten(formula_model(form, shape=(2, 3, "h", 5)), InstanceNorm, LayerNorm)
    assert done.ops == ["Mul", "Reshape", "InstanceNormalization", "Reshape", "Neg"]
    assert distance(done, h=4) <= ROUNDING


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (lambda s, x: affine(s, normed(s, x), some(5), some(5)), (2, 4, 5)),
        (lambda s, x: normed(s, x), (2, 4, 5)),
        (lambda s, x: affine(s, normed(s, x, PLANE), some(4, 5), some(4, 5)), (2, 3, 4, 5)),
    ],
    ids=["a transformer's", "of rank 3 alone", "a scale for each pixel"],
)
def test_a_layer_normalisation_is_left_to_its_rule(form: Formula, shape: tuple[int, ...]) -> None:
    done = rewritten(formula_model(form, shape=shape), InstanceNorm, LayerNorm)
    assert done.ops == ["Mul", "LayerNormalization", "Neg"]
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_a_scale_for_each_channel_makes_it_one_at_every_rank(shape: tuple[int, ...]) -> None:
    parameter = some(3, *[1] * (len(shape) - 2))
    axes = tuple(range(2, len(shape)))
    done = rewritten(
        formula_model(lambda s, x: affine(s, normed(s, x, axes), parameter, parameter), shape=shape),
        InstanceNorm,
        LayerNorm,
    )
    assert done.ops == FOUND
    assert distance(done) <= ROUNDING


def scaled_at_the_reciprocal(s: Sketch, x: str, scale: Array) -> str:
    """The form with a scale inside, and a shift behind."""
    difference = s.op("Sub", x, mean(s, x, PLANE))
    variance = s.op("Add", mean(s, s.op("Mul", difference, difference), PLANE), 1e-5)
    return s.op("Add", s.op("Mul", difference, s.op("Mul", inverse(s, variance), scale)), some(3, 1, 1, seed=2))


def test_a_scale_at_the_reciprocal_is_taken_along() -> None:
    done = rewritten(formula_model(lambda s, x: scaled_at_the_reciprocal(s, x, some(3, 1, 1))), InstanceNorm)
    assert done.ops == FOUND
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize(
    ("scale", "shape", "result"),
    [
        (some(3, 1, 1), (2, 1, 4, 5), (2, 3, 4, 5)),
        (some(2, 3, 1, 1), (1, 3, 4, 5), (2, 3, 4, 5)),
        (some(1, 1, 3, 1, 1), (2, 3, 4, 5), (1, 2, 3, 4, 5)),
    ],
    ids=["channels", "batch", "rank"],
)
def test_a_scale_inside_that_enlarges_the_shape_is_left_alone(
    scale: Array, shape: tuple[int, ...], result: tuple[int, ...]
) -> None:
    proto = formula_model(lambda s, x: scaled_at_the_reciprocal(s, x, scale), shape=shape, result=result)
    done = rewritten(proto, InstanceNorm, LayerNorm)
    assert not done.sites
    assert distance(done) == 0


def test_the_result_may_be_a_graph_output() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], last=True), InstanceNorm)
    assert done.ops == ["Mul", "InstanceNormalization"]
    assert distance(done) <= ROUNDING


NEAR_MISSES: dict[str, Formula] = {
    "one axis of two": lambda s, x: normed(s, x, (2,)),
    "the channels too": lambda s, x: normed(s, x, (1, 2, 3)),
    "the batch too": lambda s, x: normed(s, x, (0, 2, 3)),
    "no epsilon": lambda s, x: (lambda d: s.op("Div", d, s.op("Sqrt", mean(s, s.op("Mul", d, d), PLANE))))(
        s.op("Sub", x, mean(s, x, PLANE))
    ),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_an_instance_normalisation_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), InstanceNorm)
    assert not done.sites
    assert not done.skips


def test_rank_2_is_left_alone() -> None:
    assert not rewritten(formula_model(lambda s, x: normed(s, x), shape=(4, 5)), InstanceNorm).sites


def test_an_unknown_number_of_channels_is_refused() -> None:
    done = rewritten(formula_model(FORMS["neither"], shape=(2, "c", 4, 5)), InstanceNorm)
    assert not done.sites
    assert "channels" in done.reasons("instance-norm")[0]


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        difference = s.op("Sub", x, mean(s, x, PLANE))
        variance = s.op("Add", mean(s, s.op("Mul", difference, difference), PLANE), 1e-5)
        return s.op("Add", s.op("Div", difference, s.op("Sqrt", variance)), s.op("Sin", difference))

    done = rewritten(formula_model(form), InstanceNorm)
    assert not done.sites
    assert "another user" in done.reasons("instance-norm")[0]


def test_an_inner_tensor_that_is_an_output_is_refused() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], also=["Sub"]), InstanceNorm)
    assert not done.sites
    assert "graph output" in done.reasons("instance-norm")[0]


def test_float64_is_left_alone() -> None:
    def form(s: Sketch, x: str) -> str:
        difference = s.op("Sub", x, mean(s, x, PLANE))
        variance = s.op("Add", mean(s, s.op("Mul", difference, difference), PLANE), np.array(1e-5))
        return s.op("Div", difference, s.op("Sqrt", variance))

    assert not rewritten(formula_model(form, dtype=TensorProto.DOUBLE), InstanceNorm).sites


@st.composite
def formulas(draw: st.DrawFn) -> tuple[Formula, tuple[int, ...]]:
    """Spellings of a normalisation over the plane or near it, with parameters that often fit."""
    square, quotient = draw(st.sampled_from(SQUARES)), draw(st.sampled_from(QUOTIENTS))
    epsilon, twice = draw(st.sampled_from((1e-3, 0.01, 1.0))), draw(st.booleans())
    shape = draw(st.sampled_from(((2, 3, 4, 5), (2, 3, 5), (1, 3, 1, 5), (2, 3, 2, 2, 5))))
    axes = draw(st.sampled_from((tuple(range(2, len(shape))), tuple(range(2, len(shape))), (2,), (1, 2))))
    shapes = st.sampled_from((None, (3, *[1] * (len(shape) - 2)), (1,), (5,), (1, 3, *[1] * (len(shape) - 2))))
    scale, shift, swap = draw(shapes), draw(shapes), draw(st.booleans())

    def formula(s: Sketch, x: str) -> str:
        y = normed(s, x, axes, square=square, quotient=quotient, epsilon=epsilon, twice=twice)
        parameters = [None if given is None else some(*given, seed=i) for i, given in enumerate((scale, shift))]
        return affine(s, y, *parameters, swap=swap)

    return formula, shape


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((0.01, 1.0, 30.0)), st.sampled_from((9, 17, 18)))
def test_random_formulas_stay_within_rounding(
    drawn: tuple[Formula, tuple[int, ...]], seed: int, scale: float, opset: int
) -> None:
    form, shape = drawn
    done = rewritten(formula_model(form, opset=opset, shape=shape), InstanceNorm)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING
