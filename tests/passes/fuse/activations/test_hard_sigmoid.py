"""HardSigmoid is found in every spelling; a plain Clip stays one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.passes.fuse.activations.hard_sigmoid import HardSigmoid
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.sketch import Formula, Sketch, formula_model

FORMS: dict[str, Formula] = {
    "PyTorch": lambda s, x: s.op("Div", s.clip(s.op("Add", x, 3.0), 0.0, 6.0), 6.0),
    "Paddle": lambda s, x: s.clip(s.op("Add", s.op("Mul", x, 0.1666667), 0.5), 0.0, 1.0),
    "Keras": lambda s, x: s.op("Max", s.op("Min", s.op("Add", s.op("Mul", 0.2, x), 0.5), 1.0), 0.0),
    "Keras, tf2onnx": lambda s, x: s.op("Mul", s.op("Min", s.op("Relu", s.op("Add", x, 3.0)), 6.0), 1 / 6),
    "Relu and Min": lambda s, x: s.op("Min", s.op("Relu", s.op("Add", s.op("Div", x, 6.0), 0.5)), 1.0),
    "no shift": lambda s, x: s.op("Div", s.clip(x, 0.0, 6.0), 6.0),
    "falling twice": lambda s, x: s.op("Sub", 1.0, s.clip(s.op("Sub", 0.5, s.op("Mul", x, 0.25)), 0.0, 1.0)),
    "clipped twice": lambda s, x: s.op("Div", s.clip(s.op("Relu", s.op("Add", x, 3.0)), -1.0, 6.0), 6.0),
    "shifted back": lambda s, x: s.op("Add", s.clip(s.op("Mul", x, 0.25), -0.5, 0.5), 0.5),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_becomes_one_node(form: str) -> None:
    done = rewritten(formula_model(FORMS[form]), HardSigmoid)
    assert done.ops == ["HardSigmoid", "Neg"]  # the Mul of the input joins in
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 22])
def test_no_opset_is_needed(opset: int) -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], opset=opset), HardSigmoid)
    assert done.ops == ["HardSigmoid", "Neg"]
    assert done.after.opset == opset
    assert distance(done) <= ROUNDING


def test_slope_and_offset_are_kept() -> None:
    done = rewritten(formula_model(FORMS["Keras"]), HardSigmoid)
    gate = next(node for node in done.after.editor.nodes() if node.op == "HardSigmoid")
    assert gate.attrs["alpha"] == pytest.approx(0.6)  # the input is multiplied by 3
    assert gate.attrs["beta"] == pytest.approx(0.5)


def test_an_input_with_another_user_ends_the_pattern() -> None:
    done = rewritten(formula_model(lambda s, x: s.op("Add", s.op("Tanh", x), FORMS["PyTorch"](s, x))), HardSigmoid)
    assert sorted(done.ops) == ["Add", "HardSigmoid", "Mul", "Neg", "Tanh"]
    assert distance(done) <= ROUNDING


NEAR_MISSES: dict[str, Formula] = {
    "a lone Clip": lambda s, x: s.clip(s.op("Tanh", x), 0.0, 1.0),
    "Relu6": lambda s, x: s.clip(s.op("Add", x, 3.0), 0.0, 6.0),
    "a span of 6/5": lambda s, x: s.op("Div", s.clip(s.op("Add", x, 3.0), 0.0, 6.0), 5.0),
    "from 0.1": lambda s, x: s.op("Add", s.clip(s.op("Mul", x, 0.25), -0.4, 0.5), 0.5),
    "falling": lambda s, x: s.clip(s.op("Sub", 0.5, x), 0.0, 1.0),
    "a far offset": lambda s, x: s.clip(s.op("Add", s.op("Tanh", x), 900.0), 0.0, 1.0),
    "summands that cancel": lambda s, x: s.clip(s.op("Sub", s.op("Add", s.op("Tanh", x), 1e3), 999.5), 0.0, 1.0),
    "no upper bound": lambda s, x: s.op("Relu", s.op("Add", x, 3.0)),
    "one over": lambda s, x: s.op("Div", 6.0, s.clip(s.op("Add", x, 3.0), 0.0, 6.0)),
    "an array": lambda s, x: s.op("Div", s.clip(s.op("Add", x, 3.0), 0.0, 6.0), np.full((3, 1, 1), 6, np.float32)),
    "bounds of two tensors": lambda s, x: s.op("Min", s.op("Max", x, s.op("Tanh", x)), 1.0),
    "crossed bounds": lambda s, x: s.op("Div", s.clip(s.op("Add", x, 3.0), 6.0, 0.0), 6.0),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_hard_sigmoid_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), HardSigmoid)
    assert not done.sites
    assert not done.skips


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        inner = s.clip(s.op("Add", x, 3.0), 0.0, 6.0)
        return s.op("Add", s.op("Tanh", inner), s.op("Div", inner, 6.0))

    done = rewritten(formula_model(form), HardSigmoid)
    assert not done.sites
    assert "another user" in done.reasons("hard-sigmoid")[0]


def test_an_inner_tensor_that_is_an_output_is_refused() -> None:
    done = rewritten(formula_model(FORMS["PyTorch"], also=["Clip"]), HardSigmoid)
    assert not done.sites
    assert "graph output" in done.reasons("hard-sigmoid")[0]


def test_a_number_that_enlarges_the_shape_stays() -> None:
    proto = formula_model(FORMS["PyTorch"], shape=(4, 5), number_shape=(1, 1, 1), result=(1, 4, 5))
    assert rewritten(proto, HardSigmoid).ops == ["Mul", "Add", "HardSigmoid", "Neg"]


def test_float64_is_left_alone() -> None:
    three, six = np.array(3.0), np.array(6.0)
    proto = formula_model(
        lambda s, x: s.op("Div", s.op("Min", s.op("Relu", s.op("Add", x, three)), six), six),
        dtype=TensorProto.DOUBLE,
    )
    assert not rewritten(proto, HardSigmoid).sites


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """Random steps of scalar arithmetic around a clip whose result is brought to [0, 1] in about one of two."""
    number = st.sampled_from((0.001, -0.02, 0.25, 0.5, 1.0, -1.0, 3.0, -7.5, 100.0, -1000.0))
    before = draw(st.lists(st.tuples(st.sampled_from(("Add", "Mul", "Sub", "Div", "Neg")), number), max_size=3))
    low, span = draw(st.sampled_from((0.0, -0.5, 3.0))), draw(st.sampled_from((1.0, 6.0, 0.1)))
    fits, swap = draw(st.booleans()), draw(st.booleans())
    spell = draw(st.sampled_from(("Clip", "MinMax")))

    def formula(s: Sketch, t: str) -> str:
        for op, value in before:
            operands = [value, t] if swap and op in ("Add", "Mul", "Sub") else [t, value]
            t = s.op("Neg", t) if op == "Neg" else s.op(op, *operands)
        high = low + span
        t = s.clip(t, low, high) if spell == "Clip" else s.op("Min", s.op("Max", t, low), high)
        if low:
            t = s.op("Sub", t, low)
        return s.op("Div", t, span) if fits else s.op("Mul", t, span)

    return formula


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((1e-3, 0.1, 1.0, 30.0)), st.integers(9, 18))
def test_random_formulas_stay_within_rounding(form: Formula, seed: int, scale: float, opset: int) -> None:
    done = rewritten(formula_model(form, opset=opset), HardSigmoid)
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING
