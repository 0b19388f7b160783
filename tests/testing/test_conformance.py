"""Each rule of the conformance suite catches the pass that breaks it, and lets a good pass through."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from pydantic import ConfigDict, Field

from graphopt.pipeline.contract import (
    Broken,
    Pass,
    PassContext,
    PassOptions,
    PassResult,
    Refusal,
    Safety,
    Site,
    Skip,
)
from graphopt.pipeline.nested import nested_skips
from graphopt.testing import builders, check_pass, formats
from graphopt.testing.cards import HEADINGS
from graphopt.testing.draft import Draft

CARD = "Removes Relu behind Relu.\n\n" + "\n".join(f"{h}:\n    It is {h.lower()}.\n" for h in HEADINGS)
RUNS = count()


def double_relu(seed: int = 0) -> onnx.ModelProto:
    """Relu → Relu → MatMul; the second Relu does nothing. Input ``[2, 16]``."""
    draft = Draft(seed)
    x = draft.node("Relu", [draft.input("input", [2, 16])], "first")
    x = draft.node("Relu", [x], "second")
    draft.node("MatMul", [x, draft.weight("weight", 16, 8)], "output")
    draft.output("output", [2, 8])
    proto = draft.model("double_relu")
    onnx.helper.set_model_props(proto, {"task": "test"})
    return proto


class Good(Pass[PassOptions]):
    """A pass that keeps every rule."""

    __doc__ = CARD
    name = "double-relu"
    code = "DRL"
    safety = Safety.EXACT

    def run(self, ctx: PassContext) -> PassResult:
        sites, skips = [], []
        for node in ctx.editor.nodes():
            before = ctx.editor.producer(node.inputs[0]) if node.op == "Relu" else None
            if before is None or before.op != "Relu":
                continue
            if not ctx.selection.allows(node):
                skips.append(Skip(node.name, "left out by the selection"))
                continue
            ctx.editor.replace_uses(node.outputs[0], before.outputs[0])
            sites.append(Site(node.name, "removed"))
        return self.finish(ctx, sites, skips)

    def finish(self, ctx: PassContext, sites: list[Site], skips: list[Skip]) -> PassResult:
        inside = nested_skips(ctx.model, ctx.selection)
        return PassResult(modified=bool(sites), applied=tuple(sites), skipped=(*skips, *inside))


def scale_weights(ctx: PassContext, factor: float = 0.5) -> list[Site]:
    """Multiply the weight of every MatMul, as an approximate pass might."""
    sites = []
    for node in ctx.editor.nodes():
        if node.op != "MatMul" or not ctx.selection.allows(node):
            continue
        value = ctx.editor.constant(node.inputs[1])
        assert value is not None
        ctx.editor.set_constant(node, 1, (value * np.float32(factor)).astype(np.float32))
        sites.append(Site(node.name, "scaled"))
    return sites


class Approximate(Good):
    __doc__ = CARD
    safety = Safety.APPROXIMATE


class TouchesAnything(Approximate):
    __doc__ = CARD
    idempotent = False

    def run(self, ctx: PassContext) -> PassResult:
        ctx.model.metadata["seen"] = "yes"
        return PassResult(True, (Site("model", "marked"),))


class NotIdempotent(Approximate):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        return self.finish(ctx, scale_weights(ctx), [])


class Random(Approximate):
    __doc__ = CARD
    idempotent = False

    def run(self, ctx: PassContext) -> PassResult:
        return self.finish(ctx, scale_weights(ctx, 1 + 0.1 * next(RUNS)), [])


class RandomReport(Good):
    __doc__ = CARD

    def finish(self, ctx: PassContext, sites: list[Site], skips: list[Skip]) -> PassResult:
        return PassResult(bool(sites), tuple(sites), tuple(skips), summary={"run": next(RUNS)})


class SaysUnchanged(Good):
    __doc__ = CARD

    def finish(self, ctx: PassContext, sites: list[Site], skips: list[Skip]) -> PassResult:
        return PassResult(modified=False)


class SaysChanged(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        return PassResult(True, (Site("first", "admired"),))


class ListsNothing(Good):
    __doc__ = CARD

    def finish(self, ctx: PassContext, sites: list[Site], skips: list[Skip]) -> PassResult:
        return PassResult(modified=bool(sites))


class EditsSource(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        ctx.source.metadata["seen"] = "yes"
        return super().run(ctx)


class RefusesSilently(Good):
    __doc__ = CARD

    def requires(self, ctx: PassContext) -> None:
        raise Refusal(" ")


class RefusesLate(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        ctx.model.metadata["seen"] = "yes"
        raise Refusal("too late", "first")


class SkipsWithoutReason(Good):
    __doc__ = CARD

    def finish(self, ctx: PassContext, sites: list[Site], skips: list[Skip]) -> PassResult:
        return PassResult(bool(sites), tuple(sites), (Skip("first", ""),))


class IgnoresSelection(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        free = type(ctx)(**{**vars(ctx), "selection": type(ctx.selection)()})
        return super().run(free)


class LosesMetadata(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        ctx.model.metadata.pop("task", None)
        return super().run(ctx)


class RenamesOutput(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        for node in ctx.editor.nodes():
            if node.op == "MatMul":
                node.outputs[0].name = "renamed"
        return super().run(ctx)


class NotExact(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        marked = "scaled" in ctx.model.metadata
        ctx.model.metadata["scaled"] = "yes"
        return PassResult(False) if marked else self.finish(ctx, scale_weights(ctx, 1.01), [])


class NotRounding(NotExact):
    __doc__ = CARD
    safety = Safety.ROUNDING


class BreaksItself(Good):
    __doc__ = CARD

    def ensures(self, ctx: PassContext, result: PassResult) -> None:
        raise Broken("relu count", "two are left")


class Raises(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        raise KeyError("nothing here")


class InvalidModel(Good):
    __doc__ = CARD

    def run(self, ctx: PassContext) -> PassResult:
        for node in ctx.editor.nodes():
            if node.op == "MatMul":
                ctx.editor.set_constant(node, 1, np.zeros((3, 8), np.float32))
        return PassResult(True, (Site("output/MatMul", "cut"),))


class SaysNothingOfBodies(Good):
    __doc__ = CARD

    def finish(self, ctx: PassContext, sites: list[Site], skips: list[Skip]) -> PassResult:
        return PassResult(modified=bool(sites), applied=tuple(sites))


class RemembersRuns(Good):
    __doc__ = CARD
    ran = False

    def run(self, ctx: PassContext) -> PassResult:
        done, self.ran = self.ran, True
        return PassResult(False) if done else super().run(ctx)


class NamesNothing(Good):
    __doc__ = CARD

    def finish(self, ctx: PassContext, sites: list[Site], skips: list[Skip]) -> PassResult:
        return PassResult(bool(sites), tuple(Site("somewhere", site.what) for site in sites), tuple(skips))


class WrongOracle(Approximate):
    __doc__ = CARD

    def finish(self, ctx: PassContext, sites: list[Site], skips: list[Skip]) -> PassResult:
        oracle = ctx.model.clone()
        for node in oracle.editor.nodes():
            if node.op == "MatMul":
                value = oracle.editor.constant(node.inputs[1])
                assert value is not None
                oracle.editor.set_constant(node, 1, (value * 2).astype(np.float32))
        oracle.finish()
        return PassResult(bool(sites), tuple(sites), tuple(skips), oracle=oracle if sites else None)


class Factor(PassOptions):
    factor: float = Field(0.5, gt=0, description="what weights are multiplied by")


class WrongResolution(Pass[Factor]):
    __doc__ = CARD
    name = "scale"
    code = "SCL"
    safety = Safety.APPROXIMATE
    Options = Factor
    idempotent = False

    def run(self, ctx: PassContext) -> PassResult:
        sites = scale_weights(ctx, self.options.factor)
        return PassResult(bool(sites), tuple(sites), resolved=Factor(factor=self.options.factor / 2))


class NoCard(Good):
    """Removes Relu behind Relu.

    What it does:
        Just that.
    """


class BadName(Good):
    __doc__ = CARD
    name = "Double_Relu"
    code = "drelu"


class Undescribed(PassOptions):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=False)

    depth: int = 1


class BadOptions(Good):
    __doc__ = CARD
    Options = Undescribed


class Lossy(PassOptions):
    names: Any = Field(default_factory=lambda: {"b", "a"}, description="a set, which JSON does not know")


class LossyOptions(Good):
    __doc__ = CARD
    Options = Lossy


def test_a_good_pass_passes_on_all_models() -> None:
    check_pass(Good)


@pytest.mark.parametrize("cls", [Good, Approximate])
def test_a_good_pass_passes_where_it_has_work(cls: type[Pass[Any]]) -> None:
    check_pass(cls, models=[double_relu()])


@pytest.mark.parametrize(
    ("cls", "rule"),
    [
        (TouchesAnything, "nothing_to_do: no-op: changed a model"),
        (NotIdempotent, "idempotent: changes its own result again"),
        (Random, "deterministic: two equal runs give different bytes"),
        (RandomReport, "deterministic: two equal runs report different things"),
        (SaysUnchanged, "flag: says modified=False, but the bytes differ"),
        (SaysChanged, "flag: says modified=True, but the bytes are equal"),
        (ListsNothing, "flag: says modified=True with 0 changed places"),
        (EditsSource, "source: the source model was edited"),
        (RefusesSilently, "reasons: refuses without a reason"),
        (RefusesLate, "reasons: refuses after having edited"),
        (SkipsWithoutReason, "reasons: a skipped place lacks"),
        (SaysNothingOfBodies, "nested: leaves the same nodes alone in the branches of an If"),
        (SaysNothingOfBodies, "nested: leaves the same nodes alone in a local function"),
        (RemembersRuns, "plan: as an instance that has run before it reports other places"),
        (NamesNothing, "places: the report names 'somewhere'"),
        (IgnoresSelection, "selection: changes the model although"),
        (LosesMetadata, "metadata: entries of metadata_props were lost"),
        (RenamesOutput, "interface:"),
        (NotExact, "safety: EXACT does not hold"),
        (NotRounding, "safety: ROUNDING does not hold"),
        (WrongOracle, "safety: ROUNDING does not hold"),
        (BreaksItself, "broke its own check 'relu count': two are left"),
        (Raises, "raised KeyError"),
        (InvalidModel, "left an invalid model"),
        (WrongResolution, "resolved: its resolved options give other bytes"),
        (NoCard, "card: the docstring lacks When it applies, When it refuses, Safety"),
        (BadName, "name: 'Double_Relu' is not"),
        (BadName, "code: not three capital letters"),
        (BadOptions, "options: no description of depth"),
        (BadOptions, "options: must be frozen"),
        (LossyOptions, "options:"),
    ],
)
def test_each_rule_catches_its_violation(cls: type[Pass[Any]], rule: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_pass(cls, models=[double_relu()])
    assert rule in str(caught.value)


def test_all_violations_are_listed_at_once() -> None:
    with pytest.raises(AssertionError) as caught:
        check_pass(BadName, models=[double_relu()])
    assert "breaks 2 rule(s)" in str(caught.value)


def test_declared_non_idempotence_is_accepted() -> None:
    class Declared(NotIdempotent):
        __doc__ = CARD
        idempotent = False

    check_pass(Declared, models=[double_relu()])


@pytest.mark.parametrize("options", [None, {"factor": 0.25}, Factor(factor=0.25)])
def test_options_reach_the_pass(options: PassOptions | Mapping[str, Any] | None) -> None:
    seen = []

    class Watching(WrongResolution):
        __doc__ = CARD

        def run(self, ctx: PassContext) -> PassResult:
            seen.append(self.options.factor)
            sites = scale_weights(ctx, self.options.factor)
            return PassResult(bool(sites), tuple(sites), nested_skips(ctx.model, ctx.selection))

    check_pass(Watching, options, models=[double_relu()])
    check_pass(Watching(Factor.model_validate(dict(options or {}))), models=[double_relu()])
    assert set(seen) == {0.5 if options is None else 0.25}


def test_models_of_the_caller_are_used() -> None:
    with pytest.raises(AssertionError, match="matmul_add: idempotent"):
        check_pass(NotIdempotent, models=[builders.matmul_add()])
    check_pass(NotIdempotent, models=[formats.quantized()])
