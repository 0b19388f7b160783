"""Rule `identity`."""

from __future__ import annotations

from graphopt.model.model import Model
from graphopt.testing.draft import Draft

from .harness import distance, simplified, unary


def _names(model: Model) -> tuple[list[str], list[str]]:
    return [s.name for s in model.interface.inputs], [s.name for s in model.interface.outputs]


def test_it_goes_between_nodes() -> None:
    done = simplified(unary("Identity"))
    assert done.ops == ["Neg", "Neg"]
    assert distance(done) == 0


def test_the_output_keeps_its_name() -> None:
    draft = Draft()
    hidden = draft.node("Neg", [draft.input("x", [2])], "hidden")
    draft.node("Relu", [hidden], "other")
    draft.node("Identity", [hidden], "y")
    draft.output("y", [2])
    draft.output("other", [2])
    done = simplified(draft.model("named output"))
    assert sorted(done.ops) == ["Neg", "Relu"]
    assert _names(done.after) == (["x"], ["y", "other"])
    assert distance(done) == 0


def test_it_stays_between_input_and_output() -> None:
    done = simplified(unary("Identity", free=False))
    assert done.ops == ["Identity"]
    assert not done.result.modified


def test_it_stays_between_two_outputs() -> None:
    draft = Draft()
    first = draft.node("Neg", [draft.input("x", [2])], "first")
    draft.node("Identity", [first], "second")
    draft.output("first", [2])
    draft.output("second", [2])
    assert not simplified(draft.model("two outputs")).result.modified


def test_a_chain_of_them_goes() -> None:
    draft = Draft()
    x = draft.input("x", [2])
    for index in range(20):
        x = draft.node("Identity", [x], f"copy{index}")
    draft.node("Neg", [x], "y")
    draft.output("y", [2])
    assert simplified(draft.model("chain")).ops == ["Neg"]


def test_a_weight_behind_it_stays_unpacked_in_exact_mode() -> None:
    draft = Draft()
    weight = draft.node("Identity", [draft.weight("w", 64, 32)], "same")
    draft.node("MatMul", [draft.input("x", [4, 64]), weight], "y")
    draft.output("y", [4, 32])
    proto = draft.model("weight")
    exact = simplified(proto, exact_only=True)
    assert exact.ops == ["Identity", "MatMul"]
    assert simplified(proto).ops == ["MatMul"]
