"""The tanh approximation of Gelu becomes one node, however the polynomial is written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.passes.fuse.activations.gelu_erf import GeluErf
from graphopt.passes.fuse.activations.gelu_tanh import GeluTanh
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.sketch import Formula, Sketch, formula_model

LINEAR = 0.7978845608


def by_pow(s: Sketch, x: str) -> str:
    return s.op("Mul", s.op("Add", x, s.op("Mul", s.op("Pow", x, 3.0), 0.044715)), LINEAR)


def by_products(s: Sketch, x: str) -> str:
    return s.op("Mul", LINEAR, s.op("Add", x, s.op("Mul", x, s.op("Mul", x, s.op("Mul", 0.044715, x)))))


def cubed(s: Sketch, x: str) -> str:
    return s.op("Mul", s.op("Mul", x, x), x)


def factored(s: Sketch, x: str) -> str:
    return s.op("Mul", s.op("Mul", x, LINEAR), s.op("Add", s.op("Mul", s.op("Mul", 0.044715, x), x), 1.0))


def summed(s: Sketch, x: str) -> str:
    cube = s.op("Mul", cubed(s, x), 0.044715 * LINEAR)
    return s.op("Add", s.op("Mul", x, LINEAR), cube)


POLYNOMIALS = {"Pow": by_pow, "products": by_products, "factored": factored, "summed": summed}


def gate(s: Sketch, u: str) -> str:
    return s.op("Add", s.op("Tanh", u), 1.0)


PRODUCTS: dict[str, Formula] = {
    "PyTorch": lambda s, x: s.op("Mul", s.op("Mul", x, 0.5), gate(s, by_pow(s, x))),
    "BERT": lambda s, x: s.op("Mul", x, s.op("Mul", 0.5, gate(s, by_pow(s, x)))),
    "JAX": lambda s, x: s.op("Mul", x, s.op("Mul", 0.5, s.op("Add", 1.0, s.op("Tanh", by_products(s, x))))),
    "Keras": lambda s, x: s.op("Mul", s.op("Mul", 0.5, x), gate(s, by_products(s, x))),
    "ONNX's definition": lambda s, x: s.op(
        "Mul",
        s.op("Mul", 0.5, x),
        s.op("Sum", 1.0, s.op("Tanh", s.op("Mul", LINEAR, s.op("Sum", x, s.op("Mul", 0.044715, s.op("Pow", x, 3.0)))))),
    ),
    "halved": lambda s, x: s.op("Div", s.op("Mul", gate(s, factored(s, x)), x), 2.0),
}


@pytest.mark.parametrize("form", PRODUCTS)
def test_every_spelling_becomes_one_node(form: str) -> None:
    done = rewritten(formula_model(PRODUCTS[form]), GeluTanh, GeluErf)
    assert done.ops == ["Mul", "Gelu", "Neg"]
    assert done.after.opset == 20
    gelu = next(node for node in done.after.editor.nodes() if node.op == "Gelu")
    assert gelu.attrs["approximate"] == "tanh"
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize("inner", POLYNOMIALS)
@pytest.mark.parametrize("opset", [7, 13, 20])
def test_every_polynomial_is_read(inner: str, opset: int) -> None:
    done = rewritten(
        formula_model(lambda s, x: s.op("Mul", x, s.op("Mul", gate(s, POLYNOMIALS[inner](s, x)), 0.5)), opset=opset),
        GeluTanh,
    )
    assert done.ops == ["Mul", "Gelu", "Neg"]
    assert distance(done) <= ROUNDING


def test_the_result_may_be_a_graph_output() -> None:
    done = rewritten(formula_model(PRODUCTS["PyTorch"], last=True), GeluTanh)
    assert done.ops == ["Mul", "Gelu"]
    assert distance(done) <= ROUNDING


@pytest.mark.shared
def test_both_in_a_real_classifier_are_found(shared: Path) -> None:
    done = rewritten(onnx.load(shared / "models" / "magika" / "model.onnx"), GeluTanh)
    assert done.rules["gelu-tanh"] == 2
    assert not done.skips
    assert "Tanh" not in done.ops


NEAR_MISSES: dict[str, Formula] = {
    "0.8 for the root": lambda s, x: s.op(
        "Mul", s.op("Mul", x, 0.5), gate(s, s.op("Mul", s.op("Add", x, s.op("Mul", cubed(s, x), 0.044715)), 0.8))
    ),
    "0.0447 for the cube": lambda s, x: s.op(
        "Mul", s.op("Mul", x, 0.5), gate(s, s.op("Mul", s.op("Add", x, s.op("Mul", cubed(s, x), 0.0447)), LINEAR))
    ),
    "a square": lambda s, x: s.op(
        "Mul",
        s.op("Mul", x, 0.5),
        gate(s, s.op("Mul", s.op("Add", x, s.op("Mul", s.op("Pow", x, 2.0), 0.044715)), LINEAR)),
    ),
    "an offset": lambda s, x: s.op("Mul", s.op("Mul", x, 0.5), gate(s, s.op("Add", by_products(s, x), 0.001))),
    "the fifth power": lambda s, x: s.op(
        "Mul", s.op("Mul", x, 0.5), gate(s, s.op("Add", by_pow(s, x), s.op("Mul", cubed(s, x), s.op("Mul", x, x))))
    ),
    "another factor": lambda s, x: s.op("Mul", s.op("Sin", x), s.op("Mul", 0.5, gate(s, by_pow(s, x)))),
    "Erf": lambda s, x: s.op("Mul", s.op("Mul", x, 0.5), s.op("Add", s.op("Erf", by_pow(s, x)), 1.0)),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_gelu_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), GeluTanh)
    assert not done.sites
    assert not done.skips


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        inner = by_products(s, x)
        return s.op("Add", inner, s.op("Mul", x, s.op("Mul", gate(s, inner), 0.5)))

    done = rewritten(formula_model(form), GeluTanh)
    assert not done.sites
    assert "another user" in done.reasons("gelu-tanh")[0]


def test_an_inner_tensor_that_is_an_output_is_refused() -> None:
    done = rewritten(formula_model(PRODUCTS["JAX"], also=["Tanh"]), GeluTanh)
    assert not done.sites
    assert "graph output" in done.reasons("gelu-tanh")[0]


def test_an_opset_that_cannot_be_raised_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        return s.op("Resize", PRODUCTS["JAX"](s, x), s.input("scales", [4]), mode="nearest")

    done = rewritten(formula_model(form, opset=10, result=(2, 3, "h", "w")), GeluTanh)
    assert not done.sites
    assert "opset 20" in done.reasons("gelu-tanh")[0]
    assert done.after.opset == 10


def test_float64_is_left_alone() -> None:
    def form(s: Sketch, x: str) -> str:
        cube = s.op("Mul", s.op("Mul", s.op("Mul", x, x), x), np.array(0.044715))
        curve = s.op("Tanh", s.op("Mul", s.op("Add", x, cube), np.array(math.sqrt(2 / math.pi))))
        return s.op("Mul", x, s.op("Mul", s.op("Add", curve, np.array(1.0)), np.array(0.5)))

    assert not rewritten(formula_model(form, dtype=TensorProto.DOUBLE), GeluTanh).sites


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """x times one plus Tanh of a cubic, its numbers where and what they like: Gelu in about one of two."""
    exact = draw(st.booleans())
    linear = LINEAR if exact else draw(st.sampled_from((LINEAR, 0.8, 0.001, -1.0)))
    cubic = 0.044715 if exact else draw(st.sampled_from((0.044715, 0.0447, 1.0, -0.02)))
    power, swap = draw(st.sampled_from(("Pow", "left", "right"))), draw(st.booleans())
    outer, half = draw(st.booleans()), draw(st.sampled_from(("x", "gate", "product")))

    def halved(s: Sketch, t: str, here: str) -> str:
        return s.op("Mul", 0.5, t) if half == here else t

    def formula(s: Sketch, x: str) -> str:
        if power == "Pow":
            cube = s.op("Mul", cubic, s.op("Pow", x, 3.0))
        elif power == "left":
            cube = s.op("Mul", s.op("Mul", s.op("Mul", x, cubic), x), x)
        else:
            cube = s.op("Mul", x, s.op("Mul", s.op("Mul", x, x), cubic))
        terms = [x, cube] if outer else [s.op("Mul", x, linear), s.op("Mul", linear, cube)]
        u = s.op("Add", *(reversed(terms) if swap else terms))
        t = gate(s, s.op("Mul", u, linear) if outer else u)
        operands = [halved(s, x, "x"), halved(s, t, "gate")]
        return halved(s, s.op("Mul", *(reversed(operands) if swap else operands)), "product")

    return formula


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((1e-3, 0.1, 1.0, 30.0)), st.sampled_from((9, 13, 17, 20)))
def test_random_formulas_stay_within_rounding(form: Formula, seed: int, scale: float, opset: int) -> None:
    done = rewritten(formula_model(form, opset=opset), GeluTanh)
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING
