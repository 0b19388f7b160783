"""Nodes that denormals slow down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.model.model import Model
from graphopt.runtime import denormals
from graphopt.runtime.denormals import FlushedTime, find_denormals
from graphopt.runtime.target import ProviderSpec, Target
from graphopt.testing.draft import Draft


def arctangent() -> Model:
    draft = Draft()
    draft.input("x", [256, 256])
    draft.node("Atan", ["x"], "slow")
    draft.node("Neg", ["slow"], "y")
    draft.output("y", [256, 256])
    return Model.from_proto(draft.model("arctangent"))


TINY = {"x": np.full((256, 256), 1e-39, np.float32)}


def times(monkeypatch: pytest.MonkeyPatch, *rounds: tuple[dict[str, float], dict[str, float]]) -> list[bool]:
    """Have the measuring processes answer with these times; gives back the order in which they were asked."""
    asked: list[bool] = []

    def answer(_folder: Path, _target: Target, flush: bool) -> dict[str, float]:
        asked.append(flush)
        return rounds[(len(asked) - 1) // 2][flush]

    monkeypatch.setattr(denormals, "_child", answer)
    return asked


def test_a_node_that_gets_faster_twice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    once = {"n0_": 0.3, "n1_": 0.02}, {"n0_": 0.1, "n1_": 0.02}
    asked = times(monkeypatch, once, once)
    found = find_denormals(arctangent(), [TINY], target=Target())
    assert found.slow == {"n0_": FlushedTime(0.3, 0.1)}
    assert asked == [False, True, False, True]


def test_a_difference_that_does_not_come_back_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, ({"n0_": 0.3}, {"n0_": 0.1}), ({"n0_": 0.1}, {"n0_": 0.1}))
    assert find_denormals(arctangent(), [TINY], target=Target()).slow == {}


def test_small_differences_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = times(monkeypatch, ({"n0_": 1.0, "n1_": 0.004}, {"n0_": 0.8, "n1_": 0.001}))
    assert find_denormals(arctangent(), [TINY], target=Target()).slow == {}
    assert asked == [False, True]


def test_other_providers_are_not_measured() -> None:
    found = find_denormals(arctangent(), [TINY], target=Target((ProviderSpec("CUDAExecutionProvider"),)))
    assert found.slow == {}
    assert "CUDAExecutionProvider" in found.reason


def test_a_measuring_process_that_fails_is_a_reason_not_an_error() -> None:
    found = find_denormals(arctangent(), [{"wrong": TINY["x"]}], target=Target())
    assert found.slow == {}
    assert "the measuring process failed" in found.reason


def test_flushing_stays_in_its_own_process() -> None:
    found = find_denormals(arctangent(), [TINY], target=Target())
    assert found.reason == ""
    assert np.float32(1e-39) * np.ones(1000, np.float32)[0] != 0
    assert np.all(np.full(1000, 1e-39, np.float32) * np.float32(0.5) != 0)


@pytest.mark.slow
def test_arctangents_of_denormals_are_found() -> None:
    """Measured: 326 µs as they are, 83 µs flushed."""
    assert list(find_denormals(arctangent(), [TINY], target=Target()).slow) == ["n0_"]
    plain = {"x": np.full((256, 256), 0.5, np.float32)}
    assert find_denormals(arctangent(), [plain], target=Target()).slow == {}
