"""The manager: every pass is a transaction, and every check catches what it is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from graphopt.data.samples import Samples
from graphopt.errors import RuntimeFailure, SampleError, UsageError
from graphopt.model.model import Model
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.contract import Pass, PassContext, PassOptions, PassResult, Refusal
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.outcome import OutcomeKind
from graphopt.pipeline.recipe import Step
from graphopt.runtime.target import Target
from graphopt.testing.builders import conv_bn_relu
from graphopt.testing.draft import Draft
from graphopt.testing.formats import overridable

from . import doubles
from .doubles import manager, step


@pytest.mark.parametrize(
    ("cls", "kind", "reason"),
    [
        (doubles.Nudge, OutcomeKind.APPLIED, ""),
        (doubles.Scale, OutcomeKind.ROLLED_BACK, "outputs check"),
        (doubles.Refuses, OutcomeKind.SKIPPED, "nothing here for it (conv)"),
        (doubles.Crashes, OutcomeKind.FAILED, "KeyError"),
        (doubles.EditsInPlace, OutcomeKind.FAILED, "read-only"),
        (doubles.Lies, OutcomeKind.ROLLED_BACK, "modified flag check"),
        (doubles.BreaksPostcondition, OutcomeKind.ROLLED_BACK, "fusion count check: 2 written, 1 found"),
        (doubles.RenamesOutput, OutcomeKind.ROLLED_BACK, "interface check"),
        (doubles.WrongShape, OutcomeKind.ROLLED_BACK, "shapes check"),
        (doubles.MakesNan, OutcomeKind.ROLLED_BACK, "session check"),
        (doubles.WrongOracle, OutcomeKind.ROLLED_BACK, "masked oracle check"),
    ],
)
def test_each_kind_of_pass_ends_as_it_must(cls: type[Pass[PassOptions]], kind: OutcomeKind, reason: str) -> None:
    run = manager()
    before = run.source.fingerprint()
    (stage,) = run.run([step(cls)])
    assert stage.outcome.kind is kind, stage.outcome.reason
    assert reason in stage.outcome.reason
    assert run.source.fingerprint() == before
    assert (stage.model.fingerprint() == before) == (kind is not OutcomeKind.APPLIED)


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (doubles.Freezes, OutcomeKind.APPLIED),
        (doubles.FreezesInSilence, OutcomeKind.ROLLED_BACK),
        (doubles.DeclaresWhatItKeeps, OutcomeKind.ROLLED_BACK),
        (doubles.DropsAnInput, OutcomeKind.ROLLED_BACK),
    ],
)
def test_exactly_the_inputs_that_a_pass_declares_frozen_may_be_gone(
    cls: type[Pass[PassOptions]], kind: OutcomeKind
) -> None:
    (stage,) = manager(overridable()).run([step(cls)])
    assert stage.outcome.kind is kind, stage.outcome.reason
    assert kind is OutcomeKind.APPLIED or "interface check" in stage.outcome.reason


def test_the_manager_tells_passes_which_defaults_the_samples_override() -> None:
    seen: list[frozenset[str]] = []

    class Looks(doubles.Refuses):
        def requires(self, ctx: PassContext) -> None:
            seen.append(ctx.fed)
            super().requires(ctx)

    feed = {"input": np.ones((2, 16), np.float32)}
    given = {**feed, "free.weight": np.ones((16, 32), np.float32)}
    for samples in (None, Samples.of([feed]), Samples.of([feed, given])):
        manager(overridable(), samples).run([step(Looks)])
    assert seen == [frozenset(), frozenset(), frozenset({"free.weight"})]


def test_a_failed_pass_is_taken_back_and_the_rest_still_runs() -> None:
    stages = manager().run([step(doubles.Scale), step(doubles.Crashes), step(doubles.Nudge)])
    assert [s.outcome.kind for s in stages] == [OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED, OutcomeKind.APPLIED]
    alone = manager().run([step(doubles.Nudge)])
    assert stages[-1].model.fingerprint() == alone[-1].model.fingerprint()


def test_a_rollback_names_the_check_and_its_figures() -> None:
    (stage,) = manager().run([step(doubles.Scale)])
    check = stage.outcome.checks[-1]
    assert (check.name, check.passed) == ("outputs", False)
    moved, bound = check.figures["max_relative"], check.figures["bound"]
    assert isinstance(moved, float)
    assert isinstance(bound, float)
    assert moved > bound > 0


def test_observers_see_every_stage() -> None:
    seen: list[str] = []
    base = manager()
    watched = PassManager(base.source, base.grounds, observers=(lambda stage: seen.append(stage.outcome.name),))
    watched.run([step(doubles.Nudge), step(doubles.Refuses)])
    assert seen == ["nudge", "refuses"]


class Hungry(doubles.Nudge):
    """Needs samples."""

    name, needs_samples = "hungry", True


def test_a_named_pass_without_its_samples_is_an_error() -> None:
    with pytest.raises(SampleError) as caught:
        manager().run([step(Hungry)])
    assert caught.value.code == "GO-405"


def test_an_unnamed_pass_without_its_samples_is_skipped_and_says_so() -> None:
    (stage,) = manager().run([step(Hungry, named=False)])
    assert stage.outcome.kind is OutcomeKind.SKIPPED
    assert "no calibration samples" in stage.outcome.reason


class Picky(Hungry):
    """Would not apply with samples either."""

    def requires(self, ctx: PassContext) -> None:
        raise Refusal("there is nothing to do")


def test_samples_are_not_asked_for_where_they_would_not_help() -> None:
    (stage,) = manager().run([step(Picky, named=False)])
    assert (stage.outcome.kind, stage.outcome.reason) == (OutcomeKind.SKIPPED, "there is nothing to do")


def test_an_approximate_pass_on_a_model_that_cannot_run_needs_consent() -> None:
    source = Model.from_proto(conv_bn_relu())
    blind = Grounds(None, "no kernel for op Foo", Target())
    with pytest.raises(RuntimeFailure) as caught:
        PassManager(source, blind).run([step(doubles.WrongOracle)])
    assert caught.value.code == "GO-605"
    assert "no kernel for op Foo" in str(caught.value)
    (stage,) = PassManager(source, blind).run([step(doubles.Nudge)])
    assert stage.outcome.kind is OutcomeKind.APPLIED
    assert stage.outcome.checks[-1].passed is None


def test_an_unnamed_approximate_pass_on_a_model_that_cannot_run_is_skipped() -> None:
    source = Model.from_proto(conv_bn_relu())
    (stage,) = PassManager(source, Grounds(None, "no kernel for op Foo", Target())).run(
        [step(doubles.WrongOracle, named=False)]
    )
    assert stage.outcome.kind is OutcomeKind.SKIPPED
    assert "no kernel for op Foo" in stage.outcome.reason


def test_weights_that_a_training_graph_refers_to_are_left_alone() -> None:
    proto = conv_bn_relu()
    proto.training_info.add()
    (approximate,) = manager(proto).run([step(doubles.WrongOracle)])
    assert approximate.outcome.kind is OutcomeKind.SKIPPED
    assert "training_info" in approximate.outcome.reason


@pytest.mark.parametrize("bindings", ["initialization_binding", "update_binding"])
def test_no_pass_changes_the_value_of_a_weight_that_training_starts_from(bindings: str) -> None:
    proto = conv_bn_relu()
    names = [tensor.name for tensor in proto.graph.initializer]
    _, _, weight = doubles.first_weight(Model.from_proto(proto))
    (changed,) = [t.name for t in proto.graph.initializer if tuple(t.dims) == weight.shape]
    for bound, kind in ((changed, OutcomeKind.SKIPPED), (next(n for n in names if n != changed), OutcomeKind.APPLIED)):
        model = conv_bn_relu()
        getattr(model.training_info.add(), bindings).add(key=bound, value="next")
        (stage,) = manager(model).run([step(doubles.Nudge)])
        assert stage.outcome.kind is kind, stage.outcome.reason
        assert (f"it would change {bound!r}" in stage.outcome.reason) == (kind is OutcomeKind.SKIPPED)
        assert stage.model.to_proto().training_info == model.training_info


def test_a_selection_that_matches_nothing_stops_the_run() -> None:
    chosen = Step(doubles.Nudge(PassOptions(only=("no-such-node",))), named=True)
    with pytest.raises(UsageError) as caught:
        manager().run([chosen])
    assert caught.value.code == "GO-207"


def test_an_edit_in_place_is_named_as_such() -> None:
    (stage,) = manager().run([step(doubles.EditsInPlace)])
    assert stage.outcome.error is not None
    assert stage.outcome.error.code == "GO-802"


def test_a_pass_that_runs_out_of_memory_is_no_bug() -> None:
    class Hungry(doubles.Crashes):
        def run(self, ctx: PassContext) -> PassResult:
            raise MemoryError("Unable to allocate 8 EiB")

    (stage,) = manager().run([step(Hungry)])
    assert stage.outcome.kind is OutcomeKind.FAILED
    assert stage.outcome.error is not None
    assert stage.outcome.error.code == "GO-701" and "8 EiB" in str(stage.outcome.error)


def _slicing(axis: int) -> onnx.ModelProto:
    ranges = {"start": 0, "end": 1, "axis": axis}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Slice", ["x", *ranges], ["y"], "slice")],
        "g",
        [value("x", onnx.TensorProto.FLOAT, [2, 3])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([number]), name) for name, number in ranges.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("axis", "kind", "code"), [(0, OutcomeKind.FAILED, "GO-801"), (5, OutcomeKind.SKIPPED, "GO-307")]
)
def test_a_pass_that_fails_on_a_model_that_conflicts_with_itself_is_no_bug(
    axis: int, kind: OutcomeKind, code: str
) -> None:
    class Reads(doubles.Crashes):
        def run(self, ctx: PassContext) -> PassResult:
            raise IndexError("tuple index out of range")

    (stage,) = manager(_slicing(axis)).run([step(Reads)])
    assert stage.outcome.kind is kind
    assert stage.outcome.error is not None and stage.outcome.error.code == code
    assert isinstance(stage.outcome.error.__cause__, IndexError)
    assert ("Unexpected axis value: 5" in stage.outcome.reason) == (axis == 5)


def test_the_time_for_tuning_is_shared_by_all_passes() -> None:
    seen: list[float] = []

    class Tunes(doubles.Nudge):
        def run(self, ctx: PassContext) -> PassResult:
            seen.append(ctx.tune_time)
            return replace(super().run(ctx), tuning_seconds=70.0)

    replace(manager(), tune_time=100.0).run([step(Tunes)] * 3)
    assert seen == [100.0, 30.0, 0.0]


def test_what_holds_for_one_batch_only_is_rolled_back() -> None:
    draft = Draft()
    draft.node("MatMul", [draft.input("x", ["n", 4]), draft.weight("w", 4, 3)], "y")
    draft.output("y", ["n", 3])
    run = manager(draft.model("batches"))
    (stage,) = run.run([step(doubles.FixesTheBatch)])
    assert stage.outcome.kind is OutcomeKind.ROLLED_BACK
    assert stage.outcome.checks[-1].name == "session"
    assert stage.model is run.source
