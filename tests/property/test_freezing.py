"""Random models whose every weight is listed among the inputs: frozen, they are the models that never listed any."""

from __future__ import annotations

import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.model.model import Model
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.outcome import OutcomeKind
from graphopt.pipeline.recipe import build_steps, parse_pass
from graphopt.pipeline.registry import Registry
from graphopt.runtime.target import Target
from graphopt.testing.strategies import feature_maps, sequences
from graphopt.testing.trial import default_samples
from tests.backend.suite import listed

STEPS = build_steps(
    [parse_pass(text) for text in ("freeze-initializers:partial=false", "simplify")], Registry.discover(), named=True
)


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(feature_maps(), sequences()))
def test_freezing_then_simplifying_is_simplifying_what_was_never_listed(proto: onnx.ModelProto) -> None:
    source, plain = Model.from_proto(listed(proto)), Model.from_proto(proto)
    layers = any(len(spec.shape or ()) > 1 for spec in source.interface.overridable)
    frozen, simplified = _manager(source).run(STEPS)
    for stage in (frozen, simplified):
        assert stage.outcome.kind in (OutcomeKind.APPLIED, OutcomeKind.UNCHANGED), stage.outcome.reason
    if layers:
        assert frozen.model.interface == plain.interface
        (alone,) = _manager(plain).run(STEPS[1:])
        assert simplified.model.fingerprint() == alone.model.fingerprint()
    else:
        assert frozen.model.interface == source.interface


def _manager(model: Model) -> PassManager:
    return PassManager(source=model, grounds=Grounds(default_samples(model), "", Target()), time_budget=0.0)
