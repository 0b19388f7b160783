"""HardSwish is found in every spelling, and in nothing that is not HardSwish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.model.model import Model
from graphopt.passes.fuse.activations.hard_sigmoid import HardSigmoid
from graphopt.passes.fuse.activations.hard_swish import HardSwish
from graphopt.pipeline.rewrite import rewrite
from graphopt.pipeline.rules import Limits, Scope
from graphopt.pipeline.selection import Selection
from graphopt.runtime.optimized import optimized_ops
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.sketch import Formula, Sketch, formula_model


def relu6(s: Sketch, x: str) -> str:
    return s.clip(x, 0.0, 6.0)


FORMS: dict[str, Formula] = {
    "PyTorch and Paddle": lambda s, x: s.op("Div", s.op("Mul", x, relu6(s, s.op("Add", x, 3.0))), 6.0),
    "Keras, tf2onnx": lambda s, x: s.op(
        "Mul", x, s.op("Mul", s.op("Min", s.op("Relu", s.op("Add", x, 3.0)), 6.0), 0.16666667)
    ),
    "a module of gates": lambda s, x: s.op("Mul", x, s.op("Div", relu6(s, s.op("Add", x, 3.0)), 6.0)),
    "factor at x": lambda s, x: s.op("Mul", s.op("Mul", 0.16666667, x), relu6(s, s.op("Add", 3.0, x))),
    "Min and Max": lambda s, x: s.op(
        "Div", s.op("Mul", s.op("Max", s.op("Min", 6.0, s.op("Add", x, 3.0)), 0.0), x), 6.0
    ),
    "HardSigmoid": lambda s, x: s.op("Mul", s.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x),
    "Paddle's HardSigmoid": lambda s, x: s.op("Mul", x, s.op("HardSigmoid", x, alpha=0.1666667, beta=0.5)),
    "subtracted": lambda s, x: s.op("Mul", s.op("Mul", relu6(s, s.op("Sub", x, -3.0)), x), 1 / 6),
    "mirrored": lambda s, x: s.op("Div", s.op("Mul", x, relu6(s, s.op("Sub", 3.0, s.op("Neg", x)))), 6.0),
    "slope first": lambda s, x: s.op("Mul", x, s.clip(s.op("Add", s.op("Div", x, 6.0), 0.5), 0.0, 1.0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_becomes_one_node(form: str) -> None:
    done = rewritten(formula_model(FORMS[form]), HardSwish)
    assert done.ops == ["Mul", "HardSwish", "Neg"]
    assert distance(done) <= ROUNDING


@pytest.mark.parametrize("number_shape", [(1,), (1, 1, 1, 1)])
def test_numbers_may_be_arrays_of_one(number_shape: tuple[int, ...]) -> None:
    assert (
        "HardSwish" in rewritten(formula_model(FORMS["PyTorch and Paddle"], number_shape=number_shape), HardSwish).ops
    )


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12, 13])
def test_the_opset_is_raised_from_older_ones(opset: int) -> None:
    done = rewritten(formula_model(FORMS["PyTorch and Paddle"], opset=opset), HardSwish)
    assert done.ops == ["Mul", "HardSwish", "Neg"]
    assert done.after.opset == 14
    assert distance(done) <= ROUNDING


def test_the_gate_alone_goes_first_where_both_rules_run() -> None:
    done = rewritten(formula_model(FORMS["a module of gates"]), HardSwish, HardSigmoid)
    assert done.ops == ["Mul", "HardSwish", "Neg"]


def test_where_the_opset_cannot_be_raised_the_gate_is_written_out() -> None:
    def form(s: Sketch, x: str) -> str:
        return s.op("Resize", FORMS["PyTorch and Paddle"](s, x), s.input("scales", [4]), mode="nearest")

    done = rewritten(formula_model(form, opset=10, result=(2, 3, "h", "w")), HardSwish)
    assert done.ops == ["Mul", "HardSigmoid", "Mul", "Resize", "Neg"]
    assert "opset 14" in done.reasons("hard-swish")[0]
    assert done.after.opset == 10
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    assert distance(done, {"x": x, "scales": np.float32([1, 1, 2, 2])}) <= ROUNDING


def test_the_result_may_be_a_graph_output() -> None:
    done = rewritten(formula_model(FORMS["PyTorch and Paddle"], last=True), HardSwish)
    assert done.ops == ["Mul", "HardSwish"]
    assert distance(done) <= ROUNDING


@pytest.mark.shared
@pytest.mark.parametrize(("name", "count"), [("ppocr_v4_det", 24), ("ppocr_v4_rec", 28)])
def test_every_one_in_a_real_model_is_found(name: str, count: int, shared: Path) -> None:
    done = rewritten(onnx.load(shared / "models" / name / "model.onnx"), HardSwish)
    assert done.rules["hard-swish"] == count
    assert not done.skips
    assert "Clip" not in done.ops


NEAR_MISSES: dict[str, Formula] = {
    "2.9 for 3": lambda s, x: s.op("Div", s.op("Mul", x, relu6(s, s.op("Add", x, 2.9))), 6.0),
    "5 for 6": lambda s, x: s.op("Div", s.op("Mul", x, relu6(s, s.op("Add", x, 3.0))), 5.0),
    "Clip to 5": lambda s, x: s.op("Div", s.op("Mul", x, s.clip(s.op("Add", x, 3.0), 0.0, 5.0)), 6.0),
    "Clip from -1": lambda s, x: s.op("Div", s.op("Mul", x, s.clip(s.op("Add", x, 3.0), -1.0, 6.0)), 6.0),
    "no upper bound": lambda s, x: s.op("Div", s.op("Mul", x, s.op("Relu", s.op("Add", x, 3.0))), 6.0),
    "another factor": lambda s, x: s.op("Div", s.op("Mul", s.op("Tanh", x), relu6(s, s.op("Add", x, 3.0))), 6.0),
    "a gate of 0.2": lambda s, x: s.op("Mul", x, s.op("HardSigmoid", x)),
    "6 / product": lambda s, x: s.op("Div", 6.0, s.op("Mul", x, relu6(s, s.op("Add", x, 3.0)))),
    "the gate alone": lambda s, x: s.op("Div", relu6(s, s.op("Add", x, 3.0)), 6.0),
    "a number for each channel": lambda s, x: s.op(
        "Div", s.op("Mul", x, relu6(s, s.op("Add", x, np.full((3, 1, 1), 3, np.float32)))), 6.0
    ),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_is_not_hard_swish_stays(form: str) -> None:
    done = rewritten(formula_model(NEAR_MISSES[form]), HardSwish)
    assert not done.sites
    assert not done.skips


@pytest.mark.parametrize("inner", ["Add", "Clip"])
def test_an_inner_tensor_that_is_an_output_is_refused(inner: str) -> None:
    done = rewritten(formula_model(FORMS["PyTorch and Paddle"], also=[inner]), HardSwish)
    assert not done.sites
    assert "graph output" in done.reasons("hard-swish")[0]


def test_an_inner_tensor_with_another_user_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        inner = relu6(s, s.op("Add", x, 3.0))
        return s.op("Add", s.op("Div", s.op("Mul", x, inner), 6.0), s.op("Tanh", inner))

    done = rewritten(formula_model(form), HardSwish)
    assert not done.sites
    assert "another user" in done.reasons("hard-swish")[0]


def test_a_number_that_enlarges_the_shape_is_refused() -> None:
    proto = formula_model(FORMS["PyTorch and Paddle"], shape=(4, 5), number_shape=(1, 1, 1), result=(1, 4, 5))
    assert not rewritten(proto, HardSwish).sites


def test_a_computed_bound_is_refused() -> None:
    def form(s: Sketch, x: str) -> str:
        high = s.op("Abs", s.input("high", []))
        gate = s.op("Clip", s.op("Add", x, 3.0), 0.0, high)
        return s.op("Div", s.op("Mul", x, gate), 6.0)

    assert not rewritten(formula_model(form), HardSwish).sites


def test_float64_is_left_alone() -> None:
    def form(s: Sketch, x: str) -> str:
        three, six = np.full(1, 3.0), np.full(1, 6.0)
        names = [s.const("three", three), s.const("six", six)]
        return s.op("Div", s.op("Mul", x, s.op("Min", s.op("Relu", s.op("Add", x, names[0])), names[1])), names[1])

    assert not rewritten(formula_model(form, dtype=TensorProto.DOUBLE), HardSwish).sites


def test_nodes_left_out_by_the_user_stay() -> None:
    model = Model.from_proto(formula_model(FORMS["PyTorch and Paddle"]))
    scope = Scope(model, Selection.of(model, (), ("op:Clip",)), Limits(0))
    sites, skips = rewrite(scope, [HardSwish()])
    assert not sites
    assert "only/skip" in skips[0].reason


def test_a_conv_takes_it_in() -> None:
    draft = Draft(0)
    y = draft.conv(draft.input("x", [1, 8, 6, 6]), "c", 8, 16)
    for name, value in {"three": 3.0, "zero": 0.0, "six": 6.0}.items():
        draft.const(name, np.float32(value))
    clipped = draft.node("Clip", [draft.node("Add", [y, "three"], "a"), "zero", "six"], "l")
    draft.head(draft.node("Div", [draft.node("Mul", [y, clipped], "m"), "six"], "h"), 16)
    done = rewritten(draft.model("conv"), HardSwish)
    assert distance(done) <= ROUNDING
    before, after = optimized_ops(done.before), optimized_ops(done.after)
    assert {"Clip", "Div"} <= set(before)
    assert not {"Clip", "Div", "HardSigmoid", "Mul"} & set(after)


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """x times a ramp of x, its numbers where and what they like: HardSwish in about one of two."""
    exact = draw(st.booleans())
    three = 3.0 if exact else draw(st.sampled_from((3.0, 2.9, 0.0, -3.0)))
    six = 6.0 if exact else draw(st.sampled_from((6.0, 5.9, 0.001, 1e3)))
    place, how = draw(st.sampled_from(("x", "ramp", "product"))), draw(st.sampled_from(("Mul", "Div")))
    swap, spell = draw(st.booleans()), draw(st.sampled_from(("Clip", "MinMax", "ReluMin")))

    def scaled(s: Sketch, t: str, here: str) -> str:
        if place != here:
            return t
        return s.op("Div", t, six) if how == "Div" else s.op("Mul", t, 1 / six)

    def formula(s: Sketch, x: str) -> str:
        t = s.op("Add", three, x) if swap else s.op("Add", x, three)
        if spell == "Clip":
            t = s.clip(t, 0.0, six)
        elif spell == "MinMax":
            t = s.op("Max", s.op("Min", t, six), 0.0)
        else:
            t = s.op("Min", s.op("Relu", t), six)
        operands = [scaled(s, x, "x"), scaled(s, t, "ramp")]
        return scaled(s, s.op("Mul", *(reversed(operands) if swap else operands)), "product")

    return formula


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(formulas(), st.integers(0, 2**31 - 1), st.sampled_from((1e-3, 0.1, 1.0, 30.0)), st.integers(9, 18))
def test_random_formulas_stay_within_rounding(form: Formula, seed: int, scale: float, opset: int) -> None:
    done = rewritten(formula_model(form, opset=opset), HardSwish, HardSigmoid)
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32) * np.float32(scale)
    assert distance(done, {"x": x}) <= ROUNDING


def test_raising_the_opset_beside_dead_nodes() -> None:
    draft = Draft(opset=11)
    x = draft.input("x", [1, 4, 8, 8])
    three, zero, six = (draft.const(f"c{n}", np.float32(n)) for n in (3, 0, 6))
    ramp = draft.node("Clip", [draft.node("Add", [x, three], "a"), zero, six], "ramp")
    draft.node("Div", [draft.node("Mul", [x, ramp], "m"), six], "y")
    draft.output("y", [1, 4, 8, 8])
    draft.node("Mul", ["y", six], "dead")
    done = rewritten(draft.model("dead"), HardSwish)
    assert done.ops == ["HardSwish"]
    assert distance(done) <= ROUNDING
