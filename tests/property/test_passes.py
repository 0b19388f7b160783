"""What every pass has to hold on random models.

Valid, same interface, nothing failed or taken back, the same bytes each time, nothing left to do the second time
(unless the pass says otherwise), the source untouched, and, where channels go, equal to the masked model.
"""

from __future__ import annotations

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.pipeline.contract import Safety
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.outcome import OutcomeKind, Stage
from graphopt.pipeline.recipe import build_steps, parse_pass
from graphopt.pipeline.registry import Registry
from graphopt.runtime.target import Target
from graphopt.testing.strategies import feature_maps, sequences
from graphopt.testing.trial import default_samples
from graphopt.validation.equivalence import check_equivalence, prepare_feeds
from tests.backend.suite import canonical
from tests.backend.sweep import EAGER, Grounds, bare_session

DONE = (OutcomeKind.APPLIED, OutcomeKind.UNCHANGED, OutcomeKind.SKIPPED)
FEW = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(max_examples=2500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
CHAIN = (
    "simplify",
    "prune-weights:min_elements=0",
    "remove-channels:round_to=1",
    "fuse",
    "quantize:measure=false",
)


@FEW
@given(feature_maps())
def test_passes_on_feature_maps(proto: onnx.ModelProto) -> None:
    assert_sound(proto)


@FEW
@given(sequences())
def test_passes_on_sequences(proto: onnx.ModelProto) -> None:
    assert_sound(proto)


@pytest.mark.slow
@MANY
@given(feature_maps(most=10))
def test_passes_on_many_feature_maps(proto: onnx.ModelProto) -> None:
    assert_sound(proto)


@pytest.mark.slow
@MANY
@given(sequences(most=8))
def test_passes_on_many_sequences(proto: onnx.ModelProto) -> None:
    assert_sound(proto)


@settings(FEW, max_examples=40)
@given(st.one_of(feature_maps(), sequences()))
def test_all_passes_in_a_row(proto: onnx.ModelProto) -> None:
    stages = run(Model.from_proto(proto), CHAIN)
    for stage in stages:
        assert_came_through(stage)
    _assert_valid(proto, stages[-1])


def assert_sound(proto: onnx.ModelProto, texts: tuple[str, ...] = EAGER) -> None:
    """Each of these passes on this model."""
    before = canonical(proto)
    for text in texts:
        source = Model.from_proto(proto)
        stage = run(source, [text])[-1]
        assert_came_through(stage)
        assert canonical(source.to_proto()) == before == canonical(proto)
        assert canonical(run(Model.from_proto(proto), [text])[-1].model.to_proto()) == canonical(stage.model.to_proto())
        if stage.outcome.kind is OutcomeKind.APPLIED:
            _assert_valid(proto, stage)
            _assert_settled(text, stage)
            _assert_computes(text, source, stage)


def assert_came_through(stage: Stage) -> None:
    """Nothing failed; a placement that onnxruntime does not run as written may be taken back."""
    outcome = stage.outcome
    excused = outcome.name == "quantize" and outcome.kind is OutcomeKind.ROLLED_BACK
    if not (excused and outcome.checks[-1].name in ("fusion count", "runtime optimizations")):
        assert outcome.kind in DONE, f"{outcome.step.name}: {outcome.reason}"


def run(source: Model, texts: tuple[str, ...] | list[str]) -> tuple[Stage, ...]:
    """These passes in a row under the manager's checks, unmeasured."""
    samples = default_samples(source)
    prepared = prepare_feeds(source, samples, seed=0, target=Target())
    assert prepared.feeds is not None, prepared.reason
    manager = PassManager(
        source=source, grounds=Grounds(prepared.feeds, "", Target(), prepared.larger), samples=samples, time_budget=0.0
    )
    return manager.run(build_steps([parse_pass(text) for text in texts], Registry.discover(), named=True))


def _assert_valid(proto: onnx.ModelProto, stage: Stage) -> None:
    written = stage.model.to_proto()
    onnx.checker.check_model(written, full_check=True)
    assert bare_session(canonical(written)) is not None
    assert [v.SerializeToString() for v in written.graph.input] == [v.SerializeToString() for v in proto.graph.input]
    assert [v.SerializeToString() for v in written.graph.output] == [v.SerializeToString() for v in proto.graph.output]
    assert canonical(Model.from_proto(written).to_proto()) == canonical(written)


def _assert_settled(text: str, stage: Stage) -> None:
    if not stage.outcome.step.rewrite.idempotent:
        return
    again = run(stage.model.clone(), [text])[-1]
    assert again.outcome.kind in (OutcomeKind.UNCHANGED, OutcomeKind.SKIPPED), f"{text}: {again.outcome}"


def _assert_computes(text: str, source: Model, stage: Stage) -> None:
    samples: Samples = default_samples(source)
    safety = stage.outcome.step.rewrite.safety
    result = stage.outcome.result
    assert result is not None
    if safety is not Safety.APPROXIMATE:
        exact = safety is Safety.EXACT or "exact_only" in text
        found = check_equivalence(
            source, stage.model, samples, safety="exact" if exact else "rounding", target=Target()
        )
        assert found.passed, f"{text}: {found.message}"
    if stage.outcome.name == "remove-channels":
        assert result.oracle is not None
        found = check_equivalence(result.oracle, stage.model, samples, safety="rounding", target=Target())
        assert found.passed, f"{text}: {found.message}"
