"""What a model holds survives opening and writing, byte for byte; the source is never touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from graphopt.model.model import Model

from .probes import PROBES, canonical


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_every_feature_survives_byte_for_byte(probe: Callable[[], onnx.ModelProto]) -> None:
    source = probe()
    before = canonical(source)
    model = Model.from_proto(source)
    assert canonical(model.to_proto()) == before
    assert canonical(model.clone().to_proto()) == before
    assert canonical(source) == before


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_every_feature_survives_an_edit_elsewhere(probe: Callable[[], onnx.ModelProto]) -> None:
    """A node added at the side and finish() leave every other node, weight and declaration as it was."""
    source = probe()
    model = Model.from_proto(source)
    editor = model.editor
    anchor = editor.add_constant("anchor", np.ones(2, np.float32))
    extra = editor.add_node("Identity", [anchor])
    editor.remove_node(extra)
    model.editor.add_node("Neg", [anchor], outputs=1)
    model.metadata["edited"] = "yes"
    model.finish()
    written = model.to_proto()
    assert [n.SerializeToString() for n in written.graph.node] == [n.SerializeToString() for n in source.graph.node]
    assert [i.SerializeToString() for i in written.graph.input] == [i.SerializeToString() for i in source.graph.input]
    assert list(written.graph.output) == list(source.graph.output)
    assert list(written.functions) == list(source.functions)
    assert list(written.training_info) == list(source.training_info)
    assert list(written.graph.quantization_annotation) == list(source.graph.quantization_annotation)
    kept = {t.name: t for t in written.graph.initializer}
    for tensor in source.graph.initializer:
        assert tensor.name == "unused" or tensor.name == "s" or kept[tensor.name] == tensor
    assert list(written.graph.sparse_initializer) == list(source.graph.sparse_initializer)


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_a_value_that_was_read_is_written_back_unchanged(probe: Callable[[], onnx.ModelProto]) -> None:
    """Reading weights turned float8 fnuz into another type and broke 4-bit and string ones in plain gs."""
    source = probe()
    model = Model.from_proto(source)
    for node, _ in model.editor.all_nodes():
        for tensor in [*node.inputs, *node.outputs]:
            model.editor.constant(tensor)
            model.shape_of(tensor)
            model.dtype_of(tensor)
    assert canonical(model.to_proto()) == canonical(source)


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_saving_and_opening_again_gives_the_same_model(probe: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    model = Model.from_proto(probe())
    model.save(tmp_path / "m.onnx")
    again = Model.open(tmp_path / "m.onnx")
    assert again.fingerprint() == model.fingerprint()
    assert again.interface == model.interface
    assert (tmp_path / "m.onnx").stat().st_size == model.file_size


def _backend_models(every: int) -> list[tuple[str, onnx.ModelProto]]:
    cases = [case for kind in ("node", "simple") for case in load_model_tests(kind=kind)]
    return [(case.name, case.model) for case in cases[::every] if case.model is not None]


def _assert_survives(name: str, source: onnx.ModelProto) -> None:
    before = canonical(source)
    model = Model.from_proto(source)
    assert canonical(model.to_proto()) == before, name
    assert canonical(source) == before, name
    model.finish()
    assert canonical(model.to_proto()) == before, name


def test_models_of_the_onnx_suite_survive() -> None:
    for name, source in _backend_models(every=10):
        _assert_survives(name, source)


@pytest.mark.slow
def test_all_models_of_the_onnx_suite_survive() -> None:
    for name, source in _backend_models(every=1):
        _assert_survives(name, source)


@pytest.mark.shared
def test_real_models_survive(shared: Path) -> None:
    files = [*sorted(shared.glob("models/*/model.onnx")), *sorted(shared.glob("models/odd/*.onnx"))]
    assert len(files) >= 10
    for path in files:
        before = onnx.load(path)
        model = Model.open(path)
        assert canonical(model.to_proto()) == canonical(before), path
        twin = model.clone()
        assert twin.finish() == ()
        assert twin.fingerprint() == model.fingerprint(), path
