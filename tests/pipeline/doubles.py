"""Passes that misbehave on purpose, and the pieces to run them with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.contract import Broken, Pass, PassContext, PassOptions, PassResult, Refusal, Safety, Site
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.recipe import Step
from graphopt.runtime.target import Target
from graphopt.testing.builders import conv_bn_relu
from graphopt.validation.equivalence import prepare_feeds


def first_weight(model: Model) -> tuple[object, int, np.ndarray]:
    """The first node with a constant weight, its input index and the weight."""
    for node in model.editor.nodes():
        for index, tensor in enumerate(node.inputs):
            value = model.editor.constant(tensor)
            if value is not None and value.ndim > 1:
                return node, index, value
    raise AssertionError("the builder has no weight")


class Scale(Pass[PassOptions]):
    """Multiplies the first weight: within ROUNDING by one ulp, or far beyond it."""

    name, code, safety, factor = "scale", "TST", Safety.ROUNDING, 1.5

    def run(self, ctx: PassContext) -> PassResult:
        node, index, value = first_weight(ctx.model)
        ctx.editor.set_constant(node, index, value * np.float32(self.factor))
        return PassResult(True, applied=(Site(node.name, "scaled"),))


class Nudge(Scale):
    """Moves a weight by about one rounding."""

    name, factor = "nudge", 1.0 + 2.0**-22


class FixesTheBatch(Pass[PassOptions]):
    """Takes the batch of the feeds for the only one: puts a Reshape of the first output behind it."""

    name, code, safety = "fixes-the-batch", "TST", Safety.EXACT

    def run(self, ctx: PassContext) -> PassResult:
        node = ctx.editor.nodes()[-1]
        width = ctx.model.shape_of(node.outputs[0])[-1]
        inner = ctx.editor.new_output(node, 0)
        outer = ctx.model.graph.outputs[0]
        target = ctx.editor.add_constant("target", np.array([1, width], np.int64))
        ctx.editor.add_node("Reshape", [inner, target], outputs=[outer])
        return PassResult(True, applied=(Site(node.name, "fixed"),))


class Refuses(Pass[PassOptions]):
    """Always refuses."""

    name, code, safety = "refuses", "TST", Safety.EXACT

    def requires(self, ctx: PassContext) -> None:
        raise Refusal("nothing here for it", "conv")

    def run(self, ctx: PassContext) -> PassResult:
        raise AssertionError("requires refused")


class Crashes(Pass[PassOptions]):
    """Raises half-way, after an edit."""

    name, code, safety = "crashes", "TST", Safety.EXACT

    def run(self, ctx: PassContext) -> PassResult:
        node, index, value = first_weight(ctx.model)
        ctx.editor.set_constant(node, index, value * np.float32(2))
        raise KeyError("half-way")


class EditsInPlace(Pass[PassOptions]):
    """Writes into a weight array, which is read-only."""

    name, code, safety = "edits-in-place", "TST", Safety.EXACT

    def run(self, ctx: PassContext) -> PassResult:
        _, _, value = first_weight(ctx.model)
        value[...] = 0
        return PassResult(True)


class Lies(Scale):
    """Edits and says it did not."""

    name = "lies"

    def run(self, ctx: PassContext) -> PassResult:
        super().run(ctx)
        return PassResult(False)


class BreaksPostcondition(Nudge):
    """Finds its own work wanting."""

    name = "breaks-postcondition"

    def ensures(self, ctx: PassContext, result: PassResult) -> None:
        raise Broken("fusion count", "2 written, 1 found", {"written": 2, "found": 1})


class RenamesOutput(Pass[PassOptions]):
    """Changes the interface."""

    name, code, safety = "renames-output", "TST", Safety.EXACT

    def run(self, ctx: PassContext) -> PassResult:
        ctx.model.graph.outputs[0].name = "other"
        return PassResult(True)


class Freezes(Pass[PassOptions]):
    """Makes the one overridable input of the model a constant, and says so."""

    name, code, safety = "freezes", "TST", Safety.ROUNDING
    declared: tuple[str, ...] = ("free.weight",)

    def run(self, ctx: PassContext) -> PassResult:
        tensor = ctx.editor.tensor("free.weight")
        assert tensor is not None
        ctx.editor.freeze_input(tensor)
        return PassResult(True, applied=(Site("free.weight", "frozen"),), dropped_inputs=self.declared)


class FreezesInSilence(Freezes):
    """Makes it a constant without saying so."""

    name, declared = "freezes-in-silence", ()


class DeclaresWhatItKeeps(Scale):
    """Says that an input is gone which is still there."""

    name, factor = "declares-what-it-keeps", 1.0 + 2.0**-22

    def run(self, ctx: PassContext) -> PassResult:
        return replace(super().run(ctx), dropped_inputs=("free.weight",))


class DropsAnInput(Freezes):
    """Declares that an input without a default value is gone, and takes it off."""

    name, declared = "drops-an-input", ("free.weight", "input")

    def run(self, ctx: PassContext) -> PassResult:
        result = super().run(ctx)
        node = next(n for n in ctx.editor.nodes() if any(t.name == "input" for t in n.inputs))
        ctx.editor.set_input(node, 0, ctx.editor.add_constant("fixed", np.ones((2, 16), np.float32)))
        ctx.model.graph.inputs = []
        return result


class WrongShape(Pass[PassOptions]):
    """Cuts a weight without cutting what reads it."""

    name, code, safety = "wrong-shape", "TST", Safety.APPROXIMATE

    def run(self, ctx: PassContext) -> PassResult:
        node, index, value = first_weight(ctx.model)
        ctx.editor.set_constant(node, index, value[:-1])
        return PassResult(True)


class MakesNan(Pass[PassOptions]):
    """Puts NaN into a weight."""

    name, code, safety = "makes-nan", "TST", Safety.APPROXIMATE

    def run(self, ctx: PassContext) -> PassResult:
        node, index, value = first_weight(ctx.model)
        ctx.editor.set_constant(node, index, np.full_like(value, np.nan))
        return PassResult(True)


class WrongOracle(Nudge):
    """Claims to equal a model that it does not equal."""

    name, safety = "wrong-oracle", Safety.APPROXIMATE

    def run(self, ctx: PassContext) -> PassResult:
        oracle = ctx.model.clone()
        node, index, value = first_weight(oracle)
        oracle.editor.set_constant(node, index, value * np.float32(3))
        oracle.finish()
        super().run(ctx)
        return PassResult(True, oracle=oracle)


def step(cls: type[Pass[PassOptions]], *, named: bool = True) -> Step:
    """The pass with default options, ready to go."""
    return Step(cls(cls.Options()), named)


def grounds(model: Model) -> Grounds:
    """Synthetic feeds for a model."""
    prepared = prepare_feeds(model, None, seed=0, target=Target())
    return Grounds(prepared.feeds, prepared.reason, Target(), prepared.larger)


def manager(proto: onnx.ModelProto | None = None, samples: Samples | None = None) -> PassManager:
    """A manager for a small convolutional model."""
    source = Model.from_proto(proto or conv_bn_relu())
    return PassManager(source=source, grounds=grounds(source), samples=samples)
