"""How errors are told, and how runs are interrupted; the bad inputs themselves stand in tests/corpus."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from graphopt.data.samples import Samples
from tests.conftest import Cli, Done


def assert_refused(done: Done, exit_code: int, code: str) -> None:
    """A one-paragraph error with its code, and no traceback."""
    assert done.code == exit_code, done.err
    assert f"error[{code}]" in done.err
    assert "Traceback" not in done.err
    paragraph = done.err.strip().splitlines()
    assert len(paragraph) <= 2, done.err
    assert done.out == ""


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
    report = json.loads((tmp_path / "out.graphopt.failed.json").read_text())
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
    assert process.stderr is not None
    assert process.stderr.readline().strip() == "running"
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
