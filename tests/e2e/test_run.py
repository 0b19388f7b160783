"""Whole runs on the embedded models, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt import Gates, Model, optimize
from graphopt.pipeline.plan import DEFAULT_PASSES
from graphopt.report.schema import Report
from graphopt.testing.builders import nothing_to_do
from tests.conftest import Cli

from . import plugin


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(out.with_suffix("").with_suffix(".graphopt.json").read_text())
    return report


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: p["outcome"] for p in report["passes"]}


def run_in_ort(model: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return list(ort.InferenceSession(str(model), options).run(None, feed))


def test_the_recipe_runs_all_pass_families(cli: Cli, embedded: Path, tmp_path: Path) -> None:
    folder, out = embedded / "digits_cnn", tmp_path / "out.onnx"
    done = cli(
        "run", folder / "model.onnx", "-o", out, "-r", folder / "recipe.toml",
        "--calib", folder / "calib.npz", "--eval", folder / "eval.npz", "--measure-seconds", "5",
    )  # fmt: skip
    report = report_of(out)
    assert done.code == 0, done.out + done.err
    assert set(outcomes(report).values()) == {"applied"}
    assert set(outcomes(report)) == {"simplify", "prune-weights", "remove-channels", "quantize"}
    onnx.checker.check_model(onnx.load(out), full_check=True)
    (validation,) = report["validation"]
    assert validation["samples"] == 1200
    assert 100 * (validation["reference_top1"] - validation["candidate_top1"]) <= 1.0
    for word in ("nodes", "parameters", "file size", "latency", "top-1", "simplify", "quantize", "gates"):
        assert word in done.out
    assert Report.from_json(json.dumps(report)).to_plain() == report


def test_half_the_channels_and_int8_keep_the_accuracy_in_a_sixth_of_the_size(embedded: Path) -> None:
    folder = embedded / "digits_cnn"
    result = optimize(
        folder / "model.onnx",
        passes=["simplify", "remove-channels:ratio=0.5", "quantize"],
        calib=folder / "calib.npz",
        evaluation=folder / "eval.npz",
        gates=Gates(max_drop=1.0),
        max_seconds=5,
    )
    report = result.report
    assert result.exit_code == 0, report.verdict.text
    assert [p.outcome for p in report.passes] == ["applied"] * 3
    assert report.output is not None
    assert report.output.bytes * 6 <= report.source.bytes
    widths = [node.inputs[1].shape[0] for node in result.model.editor.nodes() if node.op == "Conv"]
    original = [n.inputs[1].shape[0] for n in Model.open(folder / "model.onnx").editor.nodes() if n.op == "Conv"]
    assert [2 * width for width in widths] == original


def test_a_resolved_recipe_gives_the_same_bytes(cnn: Path, few: Path, tmp_path: Path) -> None:
    first = optimize(cnn, passes=["simplify", "remove-channels:ratio=0.5", "quantize"], data=few, max_seconds=2)
    recipe = tmp_path / "resolved.toml"
    recipe.write_text(first.report.recipe.toml)
    second = optimize(cnn, recipe=recipe, data=few, max_seconds=2)
    assert second.model.to_proto().SerializeToString() == first.model.to_proto().SerializeToString()
    assert second.report.recipe.toml == first.report.recipe.toml


def test_without_samples_the_default_run_leaves_int8_out_and_says_so(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = cli("run", cnn, "-o", out, "--measure-seconds", "1")
    assert done.code == 0, done.err
    found = outcomes(report_of(out))
    assert tuple(found) == DEFAULT_PASSES
    assert (found["simplify"], found["quantize"]) == ("applied", "skipped")
    assert "there are no calibration samples" in done.out
    assert "samples (--data, a file or a folder) would let it be tried" in done.out
    feed = {"image": np.random.default_rng(0).random((2, 1, 28, 28), np.float32)}
    for before, after in zip(run_in_ort(cnn, feed), run_in_ort(out, feed), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-5)


def test_several_models_go_into_one_folder(cli: Cli, embedded: Path, tmp_path: Path) -> None:
    copies = []
    for name in ("digits_cnn", "digits_transformer"):
        copies.append(tmp_path / f"{name}.onnx")
        copies[-1].write_bytes((embedded / name / "model.onnx").read_bytes())
    out = tmp_path / "out"
    done = cli("run", *copies, "-o", out, "--pass", "simplify", "--no-measure")
    assert done.code == 0, done.err
    for name in ("digits_cnn", "digits_transformer"):
        assert (out / f"{name}.onnx").is_file()
        assert report_of(out / f"{name}.onnx")["verdict"]["exit_code"] == 0


def test_several_models_are_told_in_a_line_of_json_each(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    models = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for model in models:
        model.write_bytes(cnn.read_bytes())
    done = cli("run", *models, "-o", tmp_path / "out", "--pass", "simplify", "--no-measure", "--json")
    assert done.code == 0, done.err
    assert [json.loads(line)["verdict"]["exit_code"] for line in done.out.splitlines()] == [0, 0]


def test_int8_is_advised_only_where_samples_are_all_that_is_missing(cnn: Path, few: Path) -> None:
    def advised(source: Model | onnx.ModelProto) -> bool:
        return any("INT8" in text for text in optimize(source, measure=False).report.warnings)

    cannot_run = onnx.load(cnn)
    cannot_run.graph.node[0].domain = "nobody.knows"
    cannot_run.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    assert advised(Model.open(cnn))
    assert not advised(optimize(cnn, passes="quantize", data=few, measure=False).model)
    assert not advised(nothing_to_do())
    assert not advised(cannot_run)


@pytest.fixture
def rogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    plugin.install(folder, monkeypatch)


@pytest.mark.usefixtures("rogue")
def test_a_plug_in_that_breaks_the_model_is_rolled_back_with_the_figures(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    words = ["run", cnn, "-o", out, "--pass", "breaker", "--pass", "simplify", "--no-measure"]
    done = cli(*words)
    report = report_of(out)
    assert done.code == 1
    assert outcomes(report) == {"breaker": "rolled back", "simplify": "applied"}
    caught = report["passes"][0]["checks"][-1]
    assert (caught["name"], caught["passed"]) == ("outputs", False)
    assert caught["figures"]["max_relative"] > caught["figures"]["bound"]
    assert "outputs check" in report["passes"][0]["reason"]
    assert out.is_file()
    assert cli(*words, "--overwrite", "--allow-rollback").code == 0


@pytest.mark.usefixtures("rogue")
def test_a_pass_that_makes_the_model_slower_is_taken_back(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = cli("run", cnn, "-o", out, "--pass", "simplify", "--pass", "ballast", "--measure-seconds", "3")
    report = report_of(out)
    assert outcomes(report) == {"simplify": "applied", "ballast": "rolled back"}
    assert "never-slower" in report["passes"][1]["reason"]
    assert "Abs" not in {node.op_type for node in onnx.load(out).graph.node}
    assert done.code == 1
    kept = cli("run", cnn, "-o", out, "--pass", "ballast", "--measure-seconds", "1", "--allow-slower", "--overwrite")
    assert kept.code == 0
    assert "Abs" in {node.op_type for node in onnx.load(out).graph.node}


def test_the_source_is_handed_back_where_nothing_remains(cli: Cli, cnn: Path, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = cli("run", cnn, "-o", out, "--pass", "prune-weights:sparsity=0", "--data", few, "--no-measure")
    assert done.code == 0
    assert onnx.load(out).graph == onnx.load(cnn).graph
    assert "unchanged" in done.out


def test_a_model_a_proto_and_a_path_are_all_taken(cnn: Path) -> None:
    proto = onnx.load(cnn)
    before = proto.SerializeToString()
    results = [optimize(m, passes=["simplify"], measure=False) for m in (cnn, str(cnn), proto, Model.open(cnn))]
    assert len({r.model.fingerprint() for r in results}) == 1
    assert proto.SerializeToString() == before


def test_passes_may_be_instances(cnn: Path) -> None:
    from graphopt.passes import PruneWeights, Simplify

    written = optimize(cnn, passes=["simplify", "prune-weights:sparsity=0.25"], measure=False)
    made = optimize(
        cnn, passes=[Simplify(Simplify.Options()), PruneWeights(PruneWeights.Options(sparsity=0.25))], measure=False
    )
    assert made.model.fingerprint() == written.model.fingerprint()
    assert made.report.recipe.toml == written.report.recipe.toml


@pytest.mark.usefixtures("rogue")
def test_a_pass_that_raises_is_a_bug_and_the_rest_is_kept(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    words = ["run", cnn, "-o", out, "--pass", "crasher", "--pass", "simplify", "--no-measure"]
    done = cli(*words)
    report = report_of(out)
    assert done.code == 70
    assert outcomes(report) == {"crasher": "failed", "simplify": "applied"}
    assert [e["code"] for e in report["errors"]] == ["GO-801"]
    assert "Traceback" not in done.err
    assert "seven of six" in cli(*words, "--overwrite", "--debug").err


def test_a_collapse_that_no_gate_stood_in_front_of_is_said_aloud(cnn: Path, few: Path) -> None:
    passes = ["prune-weights:sparsity=0.99"]
    ungated = optimize(cnn, passes=passes, data=few, measure=False)
    assert ungated.exit_code == 0
    (said,) = [text for text in ungated.report.warnings if "no gate was set" in text]
    assert "top-1 falls by" in said or "dB" in said
    gated = optimize(cnn, passes=passes, data=few, measure=False, gates={"min_sqnr": -100.0})
    assert not any("no gate was set" in text for text in gated.report.warnings)


GATE_FAILS = ("--pass", "prune-weights:sparsity=0.99", "--min-sqnr", "60", "--no-measure")


def test_an_older_output_beside_a_failed_gate_keeps_its_report(cli: Cli, cnn: Path, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert cli("run", cnn, "-o", out, "--pass", "simplify", "--no-measure").code == 0
    older = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = cli("run", cnn, "-o", out, *GATE_FAILS, "--data", few, "--overwrite")
    assert done.code == 1, done.err
    assert older.items() <= {path: path.read_bytes() for path in tmp_path.iterdir()}.items()
    assert "of an earlier run" in done.err and "out.graphopt.failed.json tells of this run" in done.err
    assert json.loads((tmp_path / "out.graphopt.failed.json").read_text())["output"] is None
    assert cli("run", cnn, "-o", out, *GATE_FAILS, "--data", few, "--overwrite", "-q").err == ""


@pytest.mark.parametrize("named", [(), ("--report", "named.json")])
def test_a_failed_gate_does_not_stand_in_the_way_of_the_next_try(
    cli: Cli, cnn: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("run", cnn, "-o", "out.onnx", *named)
    for _ in range(2):
        assert cli(*words, *GATE_FAILS, "--data", few).code == 1
    left = "named.json" if named else "out.graphopt.failed.json"
    assert [path.name for path in tmp_path.iterdir()] == [left]
    assert cli(*words, "--pass", "simplify", "--no-measure").code == 0
    assert not (tmp_path / "out.graphopt.failed.json").exists()
    again = cli(*words, "--pass", "simplify", "--no-measure")
    assert (again.code, "GO-502" in again.err) == (5, True)


def test_calibration_samples_judge_nothing(cnn: Path, few: Path) -> None:
    report = optimize(cnn, calib=few, measure=False).report
    assert all(found.reference_top1 is None for found in report.validation)
    assert "floor" not in {gate.name for gate in report.gates}
    (told,) = [text for text in report.warnings if "accuracy was not judged" in text]
    assert told.startswith("outputs were compared on 4 calibration samples; ")
    assert "accuracy NOT judged" in report.verdict.text


def test_without_words_the_help_is_no_error(cli: Cli) -> None:
    done = cli()
    assert done.code == 2
    assert "error[" not in done.err
    assert "profile" in done.err


def test_the_families_of_a_pass_are_listed(cli: Cli) -> None:
    done = cli("passes", "fuse")
    assert "scale-shift: constant scales and shifts" in done.out
    families = json.loads(cli("passes", "fuse", "--json").out)["families"]
    assert "hard-swish" in next(f for f in families if f["name"] == "activations")["rules"]
