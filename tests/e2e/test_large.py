"""Large models, in small: spilled weights, sessions on mapped files, external data, through a whole run."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import graphopt
from graphopt.model import load
from graphopt.model.model import Model
from graphopt.runtime import session
from graphopt.testing.draft import Draft

SIZE = 160
PASSES = ["simplify", "prune-weights:sparsity=0.5,scope=global"]


def layers() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    draft = Draft()
    x = draft.input("x", [1, SIZE], TensorProto.FLOAT)
    for i in range(3):
        weight = rng.standard_normal((SIZE, SIZE)).astype(np.float32) / 12
        x = draft.node("Identity", [x], f"i{i}")
        x = draft.node("MatMul", [x, draft.const(f"w{i}", weight)], f"m{i}")
        x = draft.node("Add", [x, draft.const(f"b{i}", rng.standard_normal(SIZE).astype(np.float32))], f"y{i}")
    draft.output(x, [1, SIZE], TensorProto.FLOAT)
    return draft.model("layers")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def everything_is_large(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(load, "MAPPED_ABOVE", 0)
    patch.setattr(load, "LIFTED_ABOVE", 1)
    patch.setattr(session, "LIGHT_ABOVE", 0)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_a_run_gives_the_same_model_however_little_memory_it_has(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    onnx.save(layers(), path, save_as_external_data=external, location="weights.bin")
    found = []
    for name in ("plain", "large"):
        limit = None
        if name == "large":
            everything_is_large(monkeypatch)
            limit = 0
        result = graphopt.optimize(path, passes=PASSES, measure=False, max_memory=limit)
        assert result.exit_code == 0
        target = tmp_path / name
        target.mkdir()
        result.model.save(target / "m.onnx")
        assert bool(list(temporary.iterdir())) == (name == "large")
        found.append({p.name: p.read_bytes() for p in target.iterdir()})
        del result
        gc.collect()
        assert list(temporary.iterdir()) == []
    assert found[0] == found[1]
    assert len(found[0]) == (2 if external else 1)
    pruned = [w for w in Model.open(tmp_path / "large" / "m.onnx").skeleton()[1].values() if w.size == SIZE * SIZE]
    assert sum(int(np.sum(w == 0)) for w in pruned) == 3 * SIZE * SIZE // 2


def test_the_files_go_where_a_run_fails_too(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything_is_large(monkeypatch)

    def failing(stage: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        graphopt.optimize(layers(), passes=PASSES, measure=False, max_memory=0, observers=[failing])
    gc.collect()
    assert list(temporary.iterdir()) == []
