"""Bad input of every kind: one paragraph, the documented exit code, nothing written, the old output untouched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graphopt.data.samples import Samples

from .conftest import Done

Cli = Callable[..., Done]


def assert_refused(done: Done, exit_code: int, code: str) -> None:
    """A one-paragraph error with its code, and no traceback."""
    assert done.code == exit_code, done.err
    assert f"error[{code}]" in done.err
    assert "Traceback" not in done.err
    paragraph = done.err.strip().splitlines()
    assert len(paragraph) <= 2, done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "GO-301"),
        (b"", "GO-302"),
        (b"<!DOCTYPE html><html>404</html>", "GO-302"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "GO-302"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "GO-302"),
        ("truncated", "GO-303"),
    ],
)
def test_a_file_that_is_no_model(cli: Cli, cnn: Path, tmp_path: Path, content: object, code: str) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    if content == "truncated":
        model.write_bytes(cnn.read_bytes()[:-1000])
    elif isinstance(content, bytes):
        model.write_bytes(content)
    assert_refused(cli("run", model, "-o", out), 3, code)
    assert not out.exists()


def test_a_folder_instead_of_a_model(cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("run", tmp_path, "-o", tmp_path / "out.onnx"), 3, "GO-301")


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


GOOD = np.zeros((4, 1, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("arrays", "code", "said"),
    [
        ({"imag": GOOD}, "GO-402", "image"),
        ({"image": GOOD, "other": GOOD}, "GO-402", "other"),
        ({"image": GOOD[:, :, :-1]}, "GO-402", "28"),
        ({"image": GOOD[:, 0, 0]}, "GO-402", "image"),
        ({"image": GOOD.astype(np.float64)}, "GO-402", "float64"),
        ({"image": np.where(np.arange(4)[:, None, None, None] == 2, np.float32("nan"), GOOD)}, "GO-404", "2"),
        ({"image": np.where(np.arange(4)[:, None, None, None] == 3, np.float32("inf"), GOOD)}, "GO-404", "3"),
        ({"image": GOOD[:0]}, "GO-401", ""),
        ({"image": GOOD, "labels": np.arange(3)}, "GO-406", "labels"),
    ],
)
def test_samples_that_do_not_fit(
    cli: Cli, cnn: Path, tmp_path: Path, arrays: dict[str, np.ndarray], code: str, said: str
) -> None:
    data = save(tmp_path / "data.npz", **arrays)
    done = cli("run", cnn, "-o", tmp_path / "out.onnx", "--data", data)
    assert_refused(done, 4, code)
    assert said in done.err
    assert not (tmp_path / "out.onnx").exists()


def test_samples_that_are_not_there(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    assert_refused(cli("run", cnn, "-o", tmp_path / "out.onnx", "--data", tmp_path / "no.npz"), 4, "GO-401")


def test_a_folder_that_holds_no_samples(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(cli("run", cnn, "-o", tmp_path / "out.onnx", "--data", empty), 4, "GO-401")


def test_pickled_samples(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    data = tmp_path / "pickled.npz"
    np.savez(data, image=np.array([{"a": 1}], dtype=object))
    assert_refused(cli("run", cnn, "-o", tmp_path / "out.onnx", "--data", data), 4, "GO-403")


def test_quantize_without_samples(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    assert_refused(cli("run", cnn, "-o", tmp_path / "out.onnx", "--pass", "quantize"), 4, "GO-405")


@pytest.mark.parametrize("gate", [("--max-drop", "1"), ("--min-sqnr", "20")])
def test_an_accuracy_gate_without_samples(cli: Cli, cnn: Path, tmp_path: Path, gate: tuple[str, str]) -> None:
    assert_refused(cli("run", cnn, "-o", tmp_path / "out.onnx", "--pass", "simplify", *gate), 4, "GO-405")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--pass", "quantise"), "GO-202", "quantize"),
        (("--pass", "prune-weights:sparsitty=0.5"), "GO-203", "sparsity"),
        (("--pass", "prune-weights:sparsity=2"), "GO-203", "sparsity"),
        (("--pass", "prune-weights:sparsity"), "GO-203", "key=value"),
        (("--pass", "quantize", "--pass", "remove-channels:ratio=0.5"), "GO-205", "remove-channels"),
        (("--pass", "simplify:only=no-such-node"), "GO-207", "no-such-node"),
        (("--preprocess", "resise=4", "--data", "x"), "GO-407", "resize"),
        (("--no-such-option",), "GO-201", "--no-such-option"),
        (("--threads", "-1"), "GO-201", "threads"),
        (("--max-size", "big"), "GO-201", "size"),
        (("--dim", "N"), "GO-201", "NAME=NUMBER"),
        (("--recipe", "no-such-file.toml"), "GO-204", "no-such-file.toml"),
    ],
)
def test_bad_words(cli: Cli, cnn: Path, tmp_path: Path, words: tuple[str, ...], code: str, said: str) -> None:
    done = cli("run", cnn, "-o", tmp_path / "out.onnx", *words)
    assert_refused(done, 4 if code == "GO-407" else 2, code)
    assert said in done.err


def test_a_recipe_with_an_unknown_key(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('version = 1\n[gates]\nmin_speedupp = 2\n[[pass]]\nname = "simplify"\n')
    done = cli("run", cnn, "-o", tmp_path / "out.onnx", "-r", recipe)
    assert_refused(done, 2, "GO-204")
    assert "did you mean 'min_speedup'" in done.err


def test_an_unavailable_provider(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    done = cli("run", cnn, "-o", tmp_path / "out.onnx", "--provider", "tensorrt")
    assert_refused(done, 6, "GO-601")
    assert "CPUExecutionProvider" in done.err


def test_an_existing_output_is_kept(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"precious")
    assert_refused(cli("run", cnn, "-o", out, "--pass", "simplify"), 5, "GO-502")
    assert out.read_bytes() == b"precious"


def test_the_input_is_never_the_output(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(cnn.read_bytes())
    assert_refused(cli("run", model, "-o", model, "--overwrite", "--pass", "simplify"), 5, "GO-502")
    assert model.read_bytes() == cnn.read_bytes()


def test_a_folder_that_is_not_there(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    assert_refused(cli("run", cnn, "-o", tmp_path / "no" / "out.onnx", "--pass", "simplify"), 5, "GO-501")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert_refused(cli("run", cnn, "-o", locked / "out.onnx", "--pass", "simplify"), 5, "GO-501")


def test_errors_are_json_on_demand(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", tmp_path / "no.onnx", "-o", tmp_path / "out.onnx", "--json")
    (error,) = json.loads(done.out)["errors"]
    assert (done.code, error["code"], error["exit_code"]) == (3, "GO-301", 3)


def test_debug_shows_the_traceback(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", tmp_path / "no.onnx", "-o", tmp_path / "out.onnx", "--debug")
    assert done.code == 3
    assert "Traceback" in done.err


def test_a_failed_user_gate_writes_the_report_but_no_model(cli: Cli, cnn: Path, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = cli("run", cnn, "-o", out, "--pass", "simplify", "--data", few, "--max-size", "1kB", "--no-measure")
    assert done.code == 1
    assert not out.exists()
    report = json.loads((tmp_path / "out.graphopt.json").read_text())
    assert report["output"] is None
    assert [g["name"] for g in report["gates"] if not g["passed"]] == ["max-size"]


SLOW_SAMPLES = """
import time
import numpy as np
def feeds():
    print("running", flush=True)
    time.sleep(60)
    return [{"image": np.zeros((1, 1, 28, 28), np.float32)}]
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(cnn: Path, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    (tmp_path / "slow_samples.py").write_text(SLOW_SAMPLES)
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    words = ["run", str(cnn), "-o", str(out), "--overwrite", "--data", "slow_samples:feeds"]
    process = subprocess.Popen(
        [sys.executable, "-m", "graphopt", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "running"
    time.sleep(0.2)
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["out.onnx", "slow_samples.py"]


def test_a_metric_that_raises(cli: Cli, cnn: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_metric.py").write_text("def score(outputs, samples, metadata):\n    return outputs['x']\n")
    monkeypatch.chdir(tmp_path)
    done = cli(
        "run", cnn, "-o", tmp_path / "out.onnx", "--pass", "simplify", "--data", few, "--metric", "bad_metric:score"
    )
    assert_refused(done, 6, "GO-606")


def test_samples_of_the_api_are_checked_too(cnn: Path) -> None:
    from graphopt import GraphoptError, optimize

    with pytest.raises(GraphoptError) as caught:
        optimize(cnn, passes=["simplify"], data=Samples.of([{"image": np.zeros((1, 3), np.float32)}] * 2))
    assert caught.value.code == "GO-402"
