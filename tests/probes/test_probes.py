"""One tiny model for each feature of the format: preserved or refused, never lost without a word.

The features are those that the tools of the field were measured to lose, break or get wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.errors import GraphoptError, ModelError
from graphopt.model.model import Model
from graphopt.pipeline.outcome import OutcomeKind
from tests.backend.suite import canonical, same_values
from tests.backend.sweep import EAGER, bare_run, bare_session, passes_checker, run_pass
from tests.probes import behaviour, bodies, header, malformed, nodes, weights
from tests.probes.probe import Probe, plain

ALL = [probe for module in (header, weights, nodes, bodies, behaviour, malformed) for probe in module.probes()]
HELD = [probe for probe in ALL if not probe.refused]


def named(probe: Probe) -> str:
    return probe.name.replace(" ", "-")


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len({probe.name for probe in ALL}) == len(ALL) >= 70


@pytest.mark.parametrize("probe", [probe for probe in ALL if probe.refused], ids=named)
def test_refused_with_its_code(probe: Probe, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(probe.model.SerializeToString())
    for source in (probe.model, path):
        with pytest.raises(ModelError) as caught:
            Model.of(source)
        assert caught.value.code == probe.refused, caught.value
        assert caught.value.what


@pytest.mark.parametrize("probe", HELD, ids=named)
def test_survives_load_and_save(probe: Probe, tmp_path: Path) -> None:
    before = canonical(probe.model)
    model = Model.from_proto(probe.model)
    assert canonical(probe.model) == before
    assert probe.noted in " ".join(model.notes)
    model.save(tmp_path / "model.onnx")
    written = onnx.load(tmp_path / "model.onnx")
    if not probe.noted and not probe.respelled:
        assert canonical(written) == before
    assert_kept(probe, written)
    assert_computes_the_same(probe, written)


@pytest.mark.parametrize("probe", HELD, ids=named)
def test_survives_an_edit_elsewhere(probe: Probe) -> None:
    model = Model.from_proto(probe.model)
    editor = model.editor
    drop = next(node for node in editor.nodes() if node.name == "drop")
    editor.bypass(drop)
    fc = next(node for node in editor.nodes() if node.name == "fc")
    editor.set_constant(fc, 1, np.array(editor.constant(fc.inputs[1])))
    model.finish()
    written = model.to_proto()
    assert canonical(written) != canonical(probe.model)
    assert_kept(probe, written)
    assert_computes_the_same(probe, written)


def around(text: str, model: Model) -> str:
    """The pass, kept from the feature where rewriting it is what the pass is for."""
    name = text.partition(":")[0]
    if name == "freeze-initializers" and model.interface.overridable:
        return f"{name}:keep={[spec.name for spec in model.interface.overridable]}"
    ops = {node.op for node in model.editor.nodes()}
    if name == "dequantize-constants" and "DequantizeLinear" in ops:
        return f"{name}:skip='op:DequantizeLinear'"
    features = [node.name for node in model.editor.nodes() if node.name in ("keep", "second")]
    return f"{name}:skip={features}" if name == "fuse" and features else text


@pytest.mark.parametrize("probe", HELD, ids=named)
def test_survives_every_pass(probe: Probe) -> None:
    for eager in EAGER:
        model = Model.from_proto(probe.model)
        text = around(eager, model)
        try:
            stage = run_pass(model, probe.feed, text)
        except GraphoptError as error:
            assert error.exit_code != 70, f"{text}: {error}"
            continue
        assert stage.outcome.kind not in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK), (
            f"{text}: {stage.outcome.reason}"
        )
        written = stage.model.to_proto()
        assert_kept(probe, written)
        if "simplify" in text:
            assert_computes_the_same(probe, written, close=True)


def interface(model: onnx.ModelProto) -> list[bytes]:
    """Inputs and outputs as declared; in IR 3, weights are listed among the inputs and are none."""
    held = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    return [plain(v) for v in [*model.graph.input, *model.graph.output] if v.name not in held]


def assert_kept(probe: Probe, written: onnx.ModelProto) -> None:
    if probe.look is not None:
        assert probe.look(written) == probe.look(probe.model)
    assert interface(written) == interface(probe.model)
    assert passes_checker(written) or not passes_checker(probe.model)


def assert_computes_the_same(probe: Probe, written: onnx.ModelProto, *, close: bool = False) -> None:
    source = bare_session(canonical(probe.model))
    expected = bare_run(source, probe.feed)
    result = bare_session(canonical(written))
    assert (result is not None) or (source is None)
    if expected is None or not same_values(expected, bare_run(source, probe.feed) or {}):
        return
    found = bare_run(result, probe.feed)
    assert found is not None
    if not close:
        assert same_values(expected, found)
    for name, value in expected.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, equal_nan=True)
