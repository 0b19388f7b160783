"""``graphopt inspect``: how much it tells."""

from __future__ import annotations

import json
from pathlib import Path

from graphopt.model.model import Model
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
