"""`fuse` on random models in which activations, norms, scales, shifts and shapes are written out."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.model.model import Model
from graphopt.testing.written_out import written_out_maps, written_out_sequences
from tests.property.test_passes import assert_came_through, assert_sound, run

FEW = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
MODELS = st.one_of(written_out_maps(), written_out_sequences())


@FEW
@given(MODELS)
def test_fuse_on_what_is_written_out(proto: onnx.ModelProto) -> None:
    assert_sound(proto, ("fuse",))


@pytest.mark.slow
@MANY
@given(st.one_of(written_out_maps(most=9), written_out_sequences(most=8)))
def test_fuse_on_much_that_is_written_out(proto: onnx.ModelProto) -> None:
    assert_sound(proto, ("fuse",))


@settings(FEW, max_examples=40)
@given(MODELS)
def test_int8_after_fuse(proto: onnx.ModelProto) -> None:
    for stage in run(Model.from_proto(proto), ("simplify", "fuse", "quantize:measure=false")):
        assert_came_through(stage)
