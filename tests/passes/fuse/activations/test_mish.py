"""Mish is computed by faster operators, and no less exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.passes.fuse.activations.mish import Mish
from graphopt.runtime.session import open_session
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.sketch import Formula, Sketch, formula_model

PARTS = sorted(["Mul", "Min", "Exp", "Add", "Mul", "Add", "Div", "Mul", "Neg"])


def softplus(s: Sketch, x: str) -> str:
    return s.op("Log", s.op("Add", s.op("Exp", x), 1.0))


FORMS: dict[str, Formula] = {
    "PyTorch": lambda s, x: s.op("Mul", x, s.op("Tanh", s.op("Softplus", x))),
    "swapped": lambda s, x: s.op("Mul", s.op("Tanh", s.op("Softplus", x)), x),
    "Exp and Log": lambda s, x: s.op("Mul", x, s.op("Tanh", softplus(s, x))),
    "the operator": lambda s, x: s.op("Mish", x),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_is_rewritten(form: str) -> None:
    done = rewritten(formula_model(FORMS[form], opset=18), Mish)
    assert sorted(done.ops) == PARTS
    assert done.after.opset == 18
    assert distance(done) <= ROUNDING


def test_it_is_as_exact_as_the_operators_were_and_never_overflows() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], shape=(2000,)), Mish)
    x = np.linspace(-25, 25, 2000).astype(np.float32)
    wide = np.concatenate([x[:-3], np.float32([-3e30, 1e3, 3e37])])
    for feed in (x, wide):
        t = (feed * np.float32(3)).astype(np.float64)
        exact = -t * np.tanh(np.logaddexp(0, t))
        result = open_session(done.after, optimization="none").run({"x": feed})["y"]
        near = np.abs(t) < 80
        assert np.isfinite(result).all()
        assert np.abs(result - exact)[near].max() <= 1e-6 * np.abs(exact[near]).max()
        assert np.allclose(result[near], exact[near], rtol=2e-6, atol=0)


NEAR_MISSES: dict[str, Formula] = {
    "another factor": lambda s, x: s.op("Mul", s.op("Sin", x), s.op("Tanh", s.op("Softplus", x))),
    "Softplus alone": lambda s, x: s.op("Softplus", x),
    "Sigmoid for Tanh": lambda s, x: s.op("Mul", x, s.op("Sigmoid", s.op("Softplus", x))),
    "2 for 1": lambda s, x: s.op("Mul", x, s.op("Tanh", s.op("Log", s.op("Add", s.op("Exp", x), 2.0)))),
    "Exp of another": lambda s, x: s.op(
        "Mul", x, s.op("Tanh", s.op("Log", s.op("Add", s.op("Exp", s.op("Neg", x)), 1.0)))
    ),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_mish_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), Mish)
    assert not done.sites
    assert not done.skips


def test_a_factor_behind_stays() -> None:
    done = rewritten(formula_model(lambda s, x: s.op("Mul", FORMS["PyTorch"](s, x), 2.0)), Mish)
    assert sorted(done.ops) == sorted([*PARTS, "Mul"])
    assert distance(done) <= ROUNDING


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        inner = s.op("Softplus", x)
        return s.op("Add", inner, s.op("Mul", x, s.op("Tanh", inner)))

    done = rewritten(formula_model(form), Mish)
    assert not done.sites
    assert "another user" in done.reasons("mish")[0]


def test_an_inner_tensor_that_is_an_output_is_refused() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], also=["Tanh"]), Mish)
    assert not done.sites
    assert "graph output" in done.reasons("mish")[0]


def test_where_the_target_has_a_kernel_the_operator_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.passes.fuse.activations.mish.has_kernel", lambda *_, **__: True)
    assert not rewritten(formula_model(FORMS["the operator"], opset=18), Mish).sites


def test_float64_is_left_alone() -> None:
    assert not rewritten(formula_model(FORMS["PyTorch"], dtype=TensorProto.DOUBLE), Mish).sites


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """Mish and its neighbours, with numbers that often fit."""
    kind = draw(st.sampled_from(("Softplus", "Softplus", "Log")))
    one = draw(st.sampled_from((1.0, 1.0, 0.5, 1e3)))
    outer = draw(st.sampled_from((1.0, 1.0, 0.001, -3.0)))
    swap, after = draw(st.booleans()), draw(st.booleans())

    def formula(s: Sketch, x: str) -> str:
        t = s.op("Softplus", x) if kind == "Softplus" else s.op("Log", s.op("Add", one, s.op("Exp", x)))
        t = s.op("Tanh", t)
        if outer != 1.0 and not after:
            t = s.op("Mul", t, outer)
        y = s.op("Mul", *((t, x) if swap else (x, t)))
        return s.op("Mul", y, outer) if outer != 1.0 and after else y

    return formula


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((0.1, 1.0, 8.0)), st.sampled_from((9, 13, 18)))
def test_random_formulas_stay_within_rounding(form: Formula, seed: int, scale: float, opset: int) -> None:
    done = rewritten(formula_model(form, opset=opset), Mish)
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING
