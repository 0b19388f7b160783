"""``graphopt validate`` and ``graphopt bench`` on models that do not fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.conftest import Cli
from tests.model.probes import model_of, relu, value

QUICK = ("--measure-seconds", "0.2")


@pytest.fixture
def renamed(cnn: Path, tmp_path: Path) -> Path:
    """The convolutional network with another name for its output."""
    model = onnx.load(cnn)
    (output,) = model.graph.output
    (last,) = (node for node in model.graph.node if output.name in node.output)
    last.output[0] = output.name = "scores"
    onnx.save(model, path := tmp_path / "renamed.onnx")
    return path


@pytest.mark.parametrize("command", ["validate", "bench"])
def test_other_inputs_are_refused_before_anything_runs(cli: Cli, cnn: Path, tmp_path: Path, command: str) -> None:
    onnx.save(model_of([relu()]), other := tmp_path / "other.onnx")
    done = cli(command, cnn, other)
    assert (done.code, done.out) == (3, "")
    assert "error[GO-309]" in done.err
    assert "input 'image' float32[" in done.err and "input 'x' float32[1,4] is only in the second" in done.err
    assert str(cnn) in done.err and str(other) in done.err
    (error,) = json.loads(cli(command, cnn, other, "--json").out)["errors"]
    assert error["code"] == "GO-309"


def test_timing_needs_no_outputs_in_common(cli: Cli, cnn: Path, renamed: Path) -> None:
    refused = cli("validate", cnn, renamed)
    assert (refused.code, "is missing in the second" in refused.err) == (3, True)
    assert cli("bench", cnn, renamed, *QUICK).code == 0


def test_a_candidate_of_one_size_says_how_to_feed_it(cli: Cli, tmp_path: Path) -> None:
    sizes = {"open": ["N", 4], "fixed": [3, 4]}
    for name, dims in sizes.items():
        onnx.save(model_of([relu()], [value("x", dims)], [value("y", dims)]), tmp_path / f"{name}.onnx")
    pair = tmp_path / "open.onnx", tmp_path / "fixed.onnx"
    refused = cli("validate", *pair)
    assert (refused.code, "GO-402" in refused.err, "--shape" in refused.err) == (4, True, True)
    assert cli("validate", *pair, "--shape", "x=3x4").code == 0
