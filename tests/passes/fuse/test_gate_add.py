"""Rule `gate-add`."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from graphopt.passes.fuse.gate_add import GateAdd
from graphopt.testing.draft import Draft

from .harness import ROUNDING, distance, examples, rewritten
from .layers import constant, finished, spread

MAP: tuple[int | str | None, ...] = ("n", 6, 5, "w")


def gated(
    product_first: bool = False,
    gate_first: bool = False,
    x: tuple[int | str | None, ...] = MAP,
    gate: tuple[int | str | None, ...] = ("n", 6, 1, 1),
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """x + x · g with the operands in one of four orders."""
    draft = Draft()
    names = [draft.input("x", x, dtype), draft.input("g", gate, dtype)]
    product = draft.node("Mul", names[::-1] if gate_first else names, "p", name="product")
    draft.node("Add", ["x", product][:: -1 if product_first else 1], "y", name="sum")
    proto = finished(draft, "y") if dtype == TensorProto.FLOAT else None
    if proto is None:
        draft.output("y", x, dtype)
        proto = draft.model("gated")
    return proto


@pytest.mark.parametrize("product_first", [False, True])
@pytest.mark.parametrize("gate_first", [False, True])
def test_the_gate_gets_its_one(product_first: bool, gate_first: bool) -> None:
    done = rewritten(gated(product_first, gate_first), GateAdd)
    assert done.ops == ["Add", "Mul"]
    assert done.rules == {"gate-add": 1}
    assert done.after.editor.nodes()[0].inputs[0].name == "g"
    assert 0 < distance(done, n=2, w=7) <= ROUNDING


@pytest.mark.parametrize(
    ("x", "gate"),
    [
        (MAP, ("n", 1, 1, 1)),
        (MAP, (6, 1, 1)),
        (MAP, (1,)),
        (MAP, ()),
        (("n", 1, 5, "w"), ("n", 6, 1, 1)),  # the product is larger than either
        (("n", 6, 5, "w"), ("n", 6, 5, 1)),
    ],
)
def test_any_smaller_gate_will_do(x: tuple[int | str | None, ...], gate: tuple[int | str | None, ...]) -> None:
    done = rewritten(gated(x=x, gate=gate), GateAdd)
    assert done.rules == {"gate-add": 1}
    assert distance(done, n=2, w=7) <= ROUNDING


def test_a_constant_gate_is_computed() -> None:
    draft = Draft()
    x = draft.input("x", MAP)
    product = draft.node("Mul", [constant(draft, "g", spread(draft.rng, (6, 1, 1))), x], "p")
    done = rewritten(finished(draft, draft.node("Add", [x, product], "y")), GateAdd)
    assert done.ops == ["Mul"]
    assert distance(done, n=2, w=7) <= ROUNDING


def test_double_precision_stays_double() -> None:
    done = rewritten(gated(dtype=TensorProto.DOUBLE), GateAdd)
    assert done.ops == ["Add", "Mul"]
    assert distance(done, n=2, w=7) <= 1e-14


@pytest.mark.parametrize(
    ("x", "gate"),
    [(MAP, MAP), (("n", 6), ("m", 6)), (("n", 6, 1, 1), ("n", 6, 5, 4)), (MAP, ("n", "c", 5, "w")), ((1,), (1,))],
)
def test_a_gate_as_large_as_x_stays(x: tuple[int | str | None, ...], gate: tuple[int | str | None, ...]) -> None:
    done = rewritten(gated(x=x, gate=gate), GateAdd)
    assert not done.sites
    assert done.reasons("gate-add") == ["the gate of product is not known to be smaller than what it multiplies"]


Build = Callable[[Draft], list[str]]


def _product_is_read(draft: Draft) -> list[str]:
    p = draft.node("Mul", [draft.input("x", MAP), draft.input("g", ["n", 6, 1, 1])], "p", name="product")
    return [draft.node("Add", ["x", p], "y"), draft.node("Neg", [p], "also")]


def _product_is_an_output(draft: Draft) -> list[str]:
    p = draft.node("Mul", [draft.input("x", MAP), draft.input("g", ["n", 6, 1, 1])], "p", name="product")
    return [draft.node("Add", ["x", p], "y"), p]


@pytest.mark.parametrize("build", [_product_is_read, _product_is_an_output])
def test_a_product_with_another_user_stays_with_a_reason(build: Build) -> None:
    draft = Draft()
    done = rewritten(finished(draft, *build(draft)), GateAdd)
    assert not done.sites
    assert done.reasons("gate-add") == ["the output of product has another user or is a graph output"]


def _another_summand(draft: Draft) -> list[str]:
    p = draft.node("Mul", [draft.input("x", MAP), draft.input("g", ["n", 6, 1, 1])], "p")
    return [draft.node("Add", [draft.input("z", MAP), p], "y")]


def _the_gate_as_summand(draft: Draft) -> list[str]:
    p = draft.node("Mul", [draft.input("x", MAP), draft.input("g", ["n", 6, 1, 1])], "p")
    return [draft.node("Add", ["g", p], "y")]


def _a_difference(draft: Draft) -> list[str]:
    p = draft.node("Mul", [draft.input("x", MAP), draft.input("g", ["n", 6, 1, 1])], "p")
    return [draft.node("Sub", ["x", p], "y")]


def _a_square(draft: Draft) -> list[str]:
    x = draft.input("x", ["n", 1])
    return [draft.node("Add", [x, draft.node("Mul", [x, x], "p")], "y")]


@pytest.mark.parametrize("build", [_another_summand, _the_gate_as_summand, _a_difference, _a_square])
def test_other_sums_stay(build: Build) -> None:
    draft = Draft()
    assert not rewritten(finished(draft, *build(draft)), GateAdd).sites


def test_half_precision_stays() -> None:
    assert not rewritten(gated(dtype=TensorProto.FLOAT16), GateAdd).sites


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    axes=st.lists(st.booleans(), min_size=4, max_size=4),
    dropped=st.integers(0, 4),
    orders=st.tuples(st.booleans(), st.booleans()),
    kind=st.sampled_from(["Sigmoid", "HardSigmoid", "Relu", "Neg", "constant"]),
    twice=st.booleans(),
)
def test_random_gates_stay_within_rounding(
    seed: int, axes: list[bool], dropped: int, orders: tuple[bool, bool], kind: str, twice: bool
) -> None:
    draft, shape = Draft(seed), (2, 3, 4, 5)
    x = draft.input("x", shape)
    size = tuple(d if kept else 1 for d, kept in zip(shape, axes, strict=True))[dropped:]
    given_gate = constant(draft, "c", spread(draft.rng, size, 0.1))
    for layer in range(1 + twice):
        gate = given_gate if kind == "constant" else draft.node(kind, [given_gate], f"g{layer}")
        if kind != "constant":
            gate = draft.node("Mul", [gate, draft.input(f"h{layer}", [1])], f"gate{layer}")
        product = draft.node("Mul", [x, gate][:: -1 if orders[0] else 1], f"p{layer}")
        x = draft.node("Add", [x, product][:: -1 if orders[1] else 1], f"y{layer}")
    done = rewritten(finished(draft, x), GateAdd)
    assert distance(done) <= ROUNDING
    assert bool(done.sites) == (size != shape)
