"""What a command says and refuses: user code that prints, several models, labels, recipes, plug-ins."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import optimize
from graphopt.errors import SampleError, UsageError
from graphopt.pipeline.registry import Registry
from tests.conftest import Cli

PRINTING = """
import numpy as np
print("imported")
def feeds():
    for _ in range(4):
        print("a sample")
        yield {"image": np.zeros((1, 1, 28, 28), np.float32)}
def score(outputs, samples, metadata):
    print("scored")
    return 1.0
"""


def test_what_user_code_prints_is_no_json(cli: Cli, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "printing_code.py").write_text(PRINTING)
    monkeypatch.chdir(tmp_path)
    words = ["--data", "printing_code:feeds", "--metric", "printing_code:score", "--pass", "simplify", "--no-measure"]
    done = cli("run", cnn, "-o", "out.onnx", *words, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["schema_id"] == "graphopt/report"
    assert all(word in done.err for word in ("imported", "a sample", "scored"))


def test_a_model_that_cannot_be_read_stops_the_command_before_another_is_written(
    cli: Cli, cnn: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x08\x08nothing")
    done = cli("run", cnn, bad, "-o", tmp_path / "out", "--pass", "simplify", "--no-measure")
    assert done.code == 3
    assert not (tmp_path / "out").exists()


def test_several_models_do_not_go_into_one_file(cli: Cli, cnn: Path, embedded: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes((embedded / "digits_transformer" / "model.onnx").read_bytes())
    done = cli("run", cnn, other, "-o", tmp_path / "out.onnx", "--pass", "simplify", "--no-measure")
    assert (done.code, "GO-201" in done.err, f"-o {tmp_path / 'out'}/" in done.err) == (2, True, True)
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]


@pytest.mark.parametrize("there", [True, False])
def test_a_slash_makes_the_output_a_folder(cli: Cli, cnn: Path, tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "new" / "results"
    if there:
        folder.mkdir(parents=True)
    done = cli("run", cnn, "-o", f"{folder}/", "--pass", "simplify", "--no-measure")
    assert done.code == 0, done.err
    assert sorted(path.name for path in folder.iterdir()) == ["model.graphopt.json", "model.onnx"]


def test_the_report_holds_the_command(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    words = ["run", str(cnn), "-o", str(out), "--pass", "simplify", "--no-measure"]
    assert cli(*words).code == 0
    assert json.loads((tmp_path / "out.graphopt.json").read_text())["command"] == ["graphopt", *words]


def test_labels_that_are_no_classes_are_refused(cnn: Path, tmp_path: Path) -> None:
    path = tmp_path / "labelled.npz"
    np.savez(path, image=np.zeros((4, 1, 28, 28), np.float32), labels=np.array([0, 1, 2, 10]))
    with pytest.raises(SampleError) as caught:
        optimize(cnn, passes="simplify", calib=str(path), evaluation=str(path), measure=False)
    assert caught.value.code == "GO-406"
    assert "0 to 10" in str(caught.value) and "10 classes" in str(caught.value)


def test_a_speedup_that_nothing_measures_is_refused_at_once(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    done = cli("run", cnn, "-o", tmp_path / "out.onnx", "--min-speedup", "1.5", "--no-measure")
    assert (done.code, "GO-201" in done.err) == (2, True)


def test_a_recipe_without_passes_is_refused(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("version = 1\n")
    done = cli("run", cnn, "-o", tmp_path / "out.onnx", "-r", tmp_path / "empty.toml")
    assert (done.code, "GO-204" in done.err) == (2, True)


def test_a_recipe_that_was_resolved_for_another_model_is_said_to_be(
    cli: Cli, cnn: Path, embedded: Path, tmp_path: Path
) -> None:
    other, report = embedded / "digits_transformer" / "model.onnx", tmp_path / "first.graphopt.json"
    assert cli("run", cnn, "-o", tmp_path / "first.onnx", "--pass", "simplify", "--no-measure").code == 0
    words = ["-r", report, "--no-measure"]
    again = cli("run", cnn, "-o", tmp_path / "again.onnx", *words)
    assert (again.code, "another model" in again.out) == (0, False)
    done = cli("run", other, "-o", tmp_path / "other.onnx", *words)
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    assert f"warning: the recipe was resolved for another model, {cnn}" in told
    warnings = json.loads((tmp_path / "other.graphopt.json").read_text())["warnings"]
    assert json.loads(report.read_text())["source"]["sha256"][:12] in warnings[0]


def test_one_pass_need_not_be_a_list(cnn: Path) -> None:
    assert [p.name for p in optimize(cnn, passes="simplify", measure=False).report.passes] == ["simplify"]


def test_the_version_is_known() -> None:
    assert graphopt.__version__ == version("graphopt")


def test_a_plugin_that_cannot_be_imported_does_not_hide_the_others(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Registry.discover()
    load = found.load

    def broken(name: str) -> type:
        if name == "fuse":
            raise UsageError("GO-206", "the pass 'fuse' cannot be imported")
        return load(name)

    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls: found))
    monkeypatch.setattr(found, "load", broken)
    done = cli("passes")
    assert done.code == 0
    assert "simplify" in done.out and "'fuse' cannot be imported" in done.err
    listed = json.loads(cli("passes", "--json").out)
    assert [one["error"]["code"] for one in listed if "error" in one] == ["GO-206"]
