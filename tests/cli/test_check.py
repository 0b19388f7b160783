"""``graphopt check``: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from graphopt.errors import CODES
from tests.conftest import Cli
from tests.model.probes import model_of, relu


@pytest.fixture
def warned(tmp_path: Path) -> Path:
    """A model with a warning (NaN) and a note (unsorted)."""
    path = tmp_path / "warned.onnx"
    nan = numpy_helper.from_array(np.full(4, np.nan, np.float32), "w")
    nodes = [helper.make_node("Add", ["a", "w"], ["y"]), relu("x", "a")]
    path.write_bytes(model_of(nodes, initializer=[nan]).SerializeToString())
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A model with two errors."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(model_of([relu("nowhere", "a"), relu("a", "y"), relu("a", "y")]).SerializeToString())
    return path


def test_a_good_model(cli: Cli, cnn: Path) -> None:
    done = cli("check", cnn)
    assert (done.code, done.out, done.err) == (0, f"{cnn}: nothing found\n", "")


def test_warnings_fail_only_where_asked_for(cli: Cli, warned: Path) -> None:
    done = cli("check", warned)
    assert done.code == 0
    assert "1 warning, 1 note" in done.out
    assert "warning[GO-321]: 4 NaN of 4 values (tensor 'w')" in done.out
    assert "note[GO-326]" in done.out
    strict = cli("check", warned, "--strict")
    assert (strict.code, strict.out) == (3, done.out)


def test_quiet_leaves_notes_out(cli: Cli, warned: Path) -> None:
    done = cli("check", warned, "-q")
    assert "1 warning\n" in done.out
    assert "note[" not in done.out


def test_all_models_are_checked_and_the_worst_decides(cli: Cli, broken: Path, warned: Path, cnn: Path) -> None:
    done = cli("check", broken, warned, cnn)
    assert done.code == 3
    assert [line for line in done.out.splitlines() if not line.startswith(" ")] == [
        f"{broken}: 2 errors",
        f"{warned}: 1 warning, 1 note",
        f"{cnn}: nothing found",
    ]
    assert done.err == ""


def test_json_holds_every_field(cli: Cli, broken: Path) -> None:
    done = cli("check", broken, "--json")
    assert done.out == cli("check", broken, "--format", "json").out
    document = json.loads(done.out)
    assert (document["schema_id"], document["schema_version"]) == ("graphopt/check", 1)
    (model,) = document["models"]
    assert model["path"] == str(broken)
    assert [(f["code"], f["severity"], f["title"]) for f in model["findings"]] == [
        ("GO-304", "error", CODES["GO-304"])
    ] * 2
    assert set(model["findings"][0]) == {"code", "severity", "title", "what", "where", "why", "hint"}


def test_sarif_is_what_scanners_read(cli: Cli, broken: Path, warned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(broken.parent)
    done = cli("check", "broken.onnx", warned, "--format", "sarif")
    assert done.code == 3
    log = json.loads(done.out)
    assert log["version"] == "2.1.0" and "sarif-2.1.0" in log["$schema"]
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert {rule["id"]: rule["shortDescription"]["text"] for rule in rules}.items() <= CODES.items()
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])
    assert [result["level"] for result in run["results"]] == ["error", "error", "warning", "note"]
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]]
    assert places == ["broken.onnx"] * 2 + [warned.as_uri()] * 2
    assert all(result["message"]["text"] for result in run["results"])


def test_two_formats_at_once_are_refused(cli: Cli, cnn: Path) -> None:
    done = cli("check", cnn, "--json", "--format", "sarif")
    assert done.code == 2
    assert "error[GO-201]" in done.err


def test_nothing_is_written(cli: Cli, broken: Path, warned: Path) -> None:
    before = {path.name: path.read_bytes() for path in broken.parent.iterdir()}
    cli("check", broken, warned)
    assert {path.name: path.read_bytes() for path in broken.parent.iterdir()} == before
