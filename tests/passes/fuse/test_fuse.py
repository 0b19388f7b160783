"""The pass `fuse` as a whole: what it keeps, what it takes back, and that its decision can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from pydantic import ValidationError

import graphopt.passes.fuse as fuse
from graphopt.api import Result, optimize
from graphopt.errors import UsageError
from graphopt.passes.fuse import FAMILIES, Fuse, FuseOptions
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.families import Family
from graphopt.pipeline.rules import GraphRule, Rule, Scope
from graphopt.report.schema import PassRecord
from graphopt.testing import check_pass
from graphopt.testing.cards import RULE_HEADINGS, rule_sections
from graphopt.testing.draft import Draft

RULES = [rule for family in FAMILIES for rule in family.rules]


def mobile(width: int = 8, size: int = 8) -> onnx.ModelProto:
    """Two convolutions with hard-swish written out, a learnt scale and shift behind each, and a gate."""
    draft = Draft(seed=3)
    x = draft.input("input", [1, 3, size, size])
    for index, channels in enumerate((3, width)):
        x = draft.conv(x, f"conv{index}", channels, width, kernel=3, bias=True)
        x = _hard_swish(draft, x, f"swish{index}")
        for op, number in (("Mul", 1.25), ("Add", 0.75)):
            x = draft.node(op, [x, draft.const(f"{op}{index}.by", np.float32([number]))], f"{op}{index}")
    gate = draft.node("Sigmoid", [draft.conv(x, "gate", width, width, kernel=1, bias=True)], "gate/sigmoid")
    x = draft.node("Add", [x, draft.node("Mul", [x, gate], "gated")], "gated/add")
    draft.conv(x, "output", width, 4, kernel=1, bias=True)
    draft.output("output", [1, 4, size, size])
    return draft.model("mobile")


def _hard_swish(draft: Draft, x: str, name: str) -> str:
    three, zero, six = (draft.const(f"{name}.{n}", np.float32(n)) for n in (3, 0, 6))
    ramp = draft.node("Clip", [draft.node("Add", [x, three], f"{name}/add"), zero, six], f"{name}/clip")
    return draft.node("Div", [draft.node("Mul", [x, ramp], f"{name}/mul"), six], name)


class Ballast(Rule):
    """Adds zero, at great length, to what a Conv called ``output`` gives."""

    name: ClassVar[str] = "ballast"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Conv"})
    rounds: ClassVar[int] = 40

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        last = node.outputs[0]
        if last.name != "output" or not scope.editor.is_output(last):
            return None
        editor = scope.editor
        inner = editor.add_node("Conv", list(node.inputs), attrs=dict(node.attrs)).outputs[0]
        idle = inner
        for _ in range(self.rounds):
            idle = editor.add_node("Tanh", [editor.add_node("Sin", [idle]).outputs[0]]).outputs[0]
        zero = editor.add_node("Mul", [idle, editor.add_constant("zero", np.float32([0]))]).outputs[0]
        site = self.site(node, "made slower")
        editor.replace_uses(last, editor.add_node("Add", [inner, zero]).outputs[0])
        scope.remove(node)
        return site


class Wrong(Rule):
    """Halves the bias of the Conv called ``conv0/Conv``."""

    name: ClassVar[str] = "wrong"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Conv"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        bias = scope.constant(node, 2)
        if bias is None or node.attrs.get("halved") or "conv0" not in node.name or bias[0] == 7:
            return None
        scope.editor.set_constant(node, 2, np.full_like(bias, 7))
        return self.site(node, "made wrong")


def planted(monkeypatch: pytest.MonkeyPatch, rule: type[Rule], *, default: bool = True) -> None:
    """Put a family of one bad rule into the table."""
    family = Family(rule.name, "planted by a test", (rule,), default)
    monkeypatch.setattr(fuse, "FAMILIES", (family, *FAMILIES))


def run(proto: onnx.ModelProto, **words: Any) -> tuple[Result, PassRecord]:
    """Fuse a model, and what the report says of it."""
    passes = words.pop("passes", ["fuse"])
    result = optimize(proto, passes=passes, max_seconds=1.0, **words)
    return result, result.report.passes[-1]


def ops(result: Result) -> list[str]:
    return [node.op for node in result.model.editor.nodes()]


def test_it_holds_the_contract_where_there_is_something_to_fuse() -> None:
    check_pass(Fuse, models=[mobile()])
    check_pass(Fuse, {"exclude_families": ["activations"]}, models=[mobile()])


def test_a_planted_slow_family_is_taken_back_with_its_figure_and_the_rest_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted(monkeypatch, Ballast)
    result, record = run(mobile(16, 32), tune_time=20.0, gates={"never_slower": False})
    assert "Sin" not in ops(result)
    assert record.outcome == "applied"
    families = record.summary["families"]
    ballast = families.pop("ballast")
    assert (ballast["kept"], ballast["finding"]) == (False, "costs time")
    assert ballast["high_speedup"] < 1
    assert {"activations", "scale-shift"} <= {name for name, one in families.items() if one["kept"]}
    assert set(record.options["families"]) == {name for name, one in families.items() if one["kept"]}
    (told,) = [note for note in record.notes if "taken back" in note]
    assert f"taken back ballast {ballast['speedup']:.2f}x" in told


def test_a_slow_family_that_is_off_by_default_is_not_even_built_without_measuring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted(monkeypatch, Ballast, default=False)
    result, record = run(mobile(), measure=False)
    assert "Sin" not in ops(result)
    assert "ballast" not in record.options["families"]


def test_a_family_that_moves_the_outputs_is_dropped_alone_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, Wrong)
    result, record = run(mobile(), measure=False)
    assert record.outcome == "applied"
    wrong = record.summary["families"]["wrong"]
    assert (wrong["kept"], wrong["finding"]) == (False, "unsound")
    assert "max|Δ|/max|y|" in wrong["fault"]
    assert any(note.startswith("taken back: wrong (outputs check:") for note in record.notes)
    assert "scale-shift" in record.options["families"]
    assert result.exit_code == 0


def test_named_families_are_applied_unmeasured_and_checked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, Wrong)
    result, record = run(mobile(), passes=['fuse:families=["wrong"]'])
    assert record.outcome == "rolled back"
    assert "outputs check" in record.reason
    assert result.exit_code == 1


@pytest.mark.parametrize("measure", [True, False])
def test_the_resolved_recipe_gives_the_same_bytes_without_measuring(measure: bool, tmp_path: Any) -> None:
    first, record = run(mobile(), measure=measure, tune_time=3.0, gates={"never_slower": False})
    recipe = tmp_path / "resolved.toml"
    recipe.write_text(first.report.recipe.toml)
    again = optimize(mobile(), recipe=recipe, max_seconds=1.0)
    assert again.model.to_proto().SerializeToString() == first.model.to_proto().SerializeToString()
    assert again.report.recipe.toml == first.report.recipe.toml
    assert record.options["families"]
    assert "families" not in again.report.passes[-1].summary


def test_without_time_the_defaults_stand_and_no_figure_is_told() -> None:
    result, record = run(mobile(), tune_time=0.0, gates={"never_slower": False})
    assert "HardSwish" in ops(result)
    assert not [note for note in record.notes if "latency" in note]
    assert {one["finding"] for one in record.summary["families"].values()} == {"not timed"}


def test_only_confines_it_and_skip_leaves_out() -> None:
    assert ops(run(mobile(), passes=["fuse:skip='swish0*'"], measure=False)[0]).count("HardSwish") == 1
    assert ops(run(mobile(), passes=["fuse:only='swish1*'"], measure=False)[0]).count("HardSwish") == 1


def test_families_can_be_left_out_by_name() -> None:
    assert "HardSwish" not in ops(run(mobile(), passes=["fuse:exclude_families=activations"], measure=False)[0])


def test_an_unknown_family_is_refused_with_those_there_are() -> None:
    names = ", ".join(family.name for family in FAMILIES)
    with pytest.raises(ValidationError) as caught:
        FuseOptions(families=("activation",))
    expected = f"no family is called activation, did you mean 'activations'?; the families are {names}"
    assert expected in str(caught.value)
    with pytest.raises(UsageError, match="bad options for fuse"):
        optimize(mobile(), passes=["fuse:exclude_families=nothing-like-it"])


def test_names_of_families_and_rules_are_unique() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_states_its_case(rule: type[Rule] | type[GraphRule]) -> None:
    assert rule.safety in (Safety.EXACT, Safety.ROUNDING)
    told = rule_sections(rule.__doc__ or "")
    required = ["", *RULE_HEADINGS[:5]]
    assert [heading for heading in told if heading in required] == required
    assert all(told.values())


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield


def test_outputs_without_a_shape_keep_nothing_from_it() -> None:
    """onnx's checker wants one, onnxruntime does not."""
    proto = mobile()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = optimize(proto, passes=["fuse"], measure=False).report.passes[0]
    assert (
        found.summary["rules"] == optimize(mobile(), passes=["fuse"], measure=False).report.passes[0].summary["rules"]
    )
