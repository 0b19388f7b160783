"""The builders: valid, deterministic, and runnable in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.testing import builders, formats

DIMS = {"batch": 2, "height": 8, "width": 6}


def feed(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    given = {tensor.name for tensor in proto.graph.initializer}
    result = {}
    for value in proto.graph.input:
        if value.name in given:
            continue
        shape = [d.dim_value or DIMS[d.dim_param] for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        result[value.name] = rng.standard_normal(shape).astype(dtype)
    return result


@pytest.fixture(params=sorted(builders.ALL))
def build(request: pytest.FixtureRequest) -> Iterator[builders.Builder]:
    yield builders.ALL[request.param]


def test_runs_with_finite_outputs_of_the_declared_shape(build: builders.Builder) -> None:
    proto = build(0)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, feed(proto))
    assert [o.name for o in session.get_outputs()] == ["output"]
    for declared, found in zip(session.get_outputs(), outputs, strict=True):
        assert np.isfinite(found).all()
        assert np.ptp(found) > 0
        assert list(found.shape) == [DIMS.get(d, d) for d in declared.shape]


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_weights(build: builders.Builder) -> None:
    first, again, other = (build(seed).SerializeToString(deterministic=True) for seed in (3, 3, 4))
    assert first == again
    if build(3).graph.initializer:
        assert first != other


def test_features_are_what_the_name_says() -> None:
    assert formats.ir3().ir_version == 3
    assert formats.opset8().opset_import[0].version == 8
    listed = {v.name for v in formats.ir3().graph.input}
    assert {t.name for t in formats.ir3().graph.initializer} < listed
    overridable = formats.overridable()
    assert [v.name for v in overridable.graph.input] == ["input", "free.weight"]
    readers = [n for n in formats.shared_weights().graph.node if "shared.weight" in n.input]
    assert len(readers) == 2
