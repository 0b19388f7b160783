"""``graphopt inspect``: how much it tells."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from graphopt.model.model import Model
from graphopt.testing.builders import mlp
from graphopt.testing.nesting import in_function
from tests.conftest import Cli


def test_each_v_tells_more(cli: Cli, cnn: Path) -> None:
    plain, layers, nodes = (cli("inspect", cnn, *words) for words in ([], ["-v"], ["-vv"]))
    assert {done.code for done in (plain, layers, nodes)} == {0}
    names = [node.name for node in Model.open(cnn).editor.nodes()]
    assert not any(name in plain.out for name in names)
    assert "/stem/conv/Conv" in layers.out and "/pool/GlobalAveragePool" not in layers.out
    listed = [line.split()[0] for line in nodes.out.splitlines() if " -> " in line]
    assert listed[1:] == names, "after the heading"
    assert [node["name"] for node in json.loads(cli("inspect", cnn, "--json").out)["wiring"]] == names


def test_quiet_leaves_notes_out(cli: Cli, tmp_path: Path) -> None:
    onnx.save(in_function(mlp()), tmp_path / "called.onnx")
    told, quiet = (cli("inspect", tmp_path / "called.onnx", *words).out.splitlines() for words in ([], ["-q"]))
    assert [line for line in told if line not in quiet] == [line for line in told if line.startswith("note: ")] != []
