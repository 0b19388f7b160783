"""A command that opens models runs in a child process: what ends the child is reported, and ends nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.blackbox import BlackBox, doing
from graphopt.cli import guard, limits, main
from tests.conftest import Cli

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")

counted = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what counts towards the limit")

ENDS = {
    "SIGSEGV": "import ctypes; ctypes.string_at(0)",
    "SIGABRT": "import os; os.abort()",
    "SIGFPE": "import os, signal; os.kill(os.getpid(), signal.SIGFPE)",
}
SAMPLES = "import os, signal, time\nimport numpy as np\ndef feeds():\n    {body}\n    return []\n"


def graphopt(folder: Path, *words: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graphopt", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)


def run_with_samples(cnn: Path, folder: Path, body: str, *words: object) -> subprocess.CompletedProcess[str]:
    (folder / "ending.py").write_text(SAMPLES.format(body=body))
    return graphopt(folder, "run", cnn, "-o", folder / "out.onnx", "--data", "ending:feeds", *words)


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_crash_of_native_code_is_an_error_report(cnn: Path, tmp_path: Path, name: str) -> None:
    done = run_with_samples(cnn, tmp_path, ENDS[name], "--json")
    assert done.returncode == 6
    (error,) = json.loads(done.stdout)["errors"]
    assert (error["code"], error["exit_code"]) == ("GO-607", 6)
    assert name in error["what"] and error["hint"]
    assert "error[GO-607]" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_the_report_says_what_crashed(cnn: Path, tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text("import os\ndef score(outputs, samples, metadata):\n    os.abort()\n")
    np.savez(tmp_path / "few.npz", image=np.zeros((8, 1, 28, 28), np.float32))
    words = ["--data", "few.npz", "--metric", "crashing:score", "--pass", "simplify", "--no-measure"]
    done = graphopt(tmp_path, "run", cnn, "-o", "out.onnx", *words)
    assert done.returncode == 6
    assert "SIGABRT (the comparison of outputs)" in done.stderr


def test_a_process_that_is_killed_is_reported_as_short_of_memory(cnn: Path, tmp_path: Path) -> None:
    done = run_with_samples(cnn, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 7
    assert "error[GO-701]" in done.stderr and "memory" in done.stderr


def test_memory_past_the_limit_is_an_error(cnn: Path, tmp_path: Path) -> None:
    done = run_with_samples(cnn, tmp_path, "np.ones(1 << 28)", "--max-memory", "1GiB")
    assert done.returncode in (6, 7), done.stderr
    assert "Traceback" not in done.stderr


@counted
def test_a_limit_with_hardly_any_room_is_an_error_too(cnn: Path, tmp_path: Path) -> None:
    """Between too little for the libraries and enough for the run memory would end anywhere, also in an import."""
    least = json.loads(graphopt(tmp_path, "inspect", cnn, "--max-memory", "1MB", "--json").stdout)["errors"][0]["why"]
    needed = int(re.search(r"(\d+) MB", least)[1])  # type: ignore[index]
    for more in (2, 60):
        done = graphopt(tmp_path, "run", cnn, "-o", "out.onnx", "--max-memory", f"{needed + more}MB")
        assert (done.returncode, "error[GO-701]" in done.stderr) == (7, True), done.stderr


@counted
@pytest.mark.parametrize("command", ["run", "inspect", "check", "profile"])
def test_a_limit_that_the_runtime_alone_exceeds_is_said_to_be(cnn: Path, tmp_path: Path, command: str) -> None:
    words = ["-o", "out.onnx"] if command == "run" else []
    done = graphopt(tmp_path, command, cnn, *words, "--max-memory", "50MB", "--json")
    assert done.returncode == 7, done.stderr
    (error,) = json.loads(done.stdout)["errors"]
    assert (error["code"], error["where"]) == ("GO-701", "50 MB")
    assert "too small to load onnxruntime" in error["what"] and " MB " in error["why"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", sorted(guard.GUARDED))
def test_every_command_that_opens_models_takes_limits(cli: Cli, command: str) -> None:
    told = cli(command, "--help").out
    assert all(option in told for option in ("--timeout", "--max-memory", "--in-process"))


def test_what_does_not_listen_to_the_time_limit_is_ended(cnn: Path, tmp_path: Path) -> None:
    deaf = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); time.sleep(60)"
    done = run_with_samples(cnn, tmp_path, deaf, "--timeout", "3")
    assert done.returncode == 7
    assert "error[GO-702]" in done.stderr


def test_a_killed_parent_takes_the_child_along(cnn: Path, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent has died")
    body = "open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    (tmp_path / "ending.py").write_text(SAMPLES.format(body=body))
    words = ["run", str(cnn), "-o", "out.onnx", "--data", "ending:feeds"]
    parent = subprocess.Popen([sys.executable, "-m", "graphopt", *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    pid = _number(tmp_path / "pid")
    assert pid != parent.pid
    parent.kill()
    parent.wait()
    _gone(pid)


def _number(path: Path) -> int:
    for _ in range(600):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError("the child did not start")


def _gone(pid: int) -> None:
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")


def test_a_model_that_would_take_all_memory_does_not(tmp_path: Path) -> None:
    """onnx's data propagation makes an object for each element of a vector that it takes for a shape."""
    long = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1 << 62]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "g", long[:1], long[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "long.onnx")
    done = graphopt(tmp_path, "check", "long.onnx", "--max-memory", "2GB")
    assert done.returncode == 0, done.stderr


def deadly() -> onnx.ModelProto:
    """onnxruntime 1.32 moves the DequantizeLinear behind the MaxPool, looks for what the If captures, and aborts."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    initializers = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [0]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("MaxPool", ["d"], ["pooled"], kernel_shape=[3, 3]),
    ]
    bodies = []
    for op in ("Neg", "Abs"):
        out = helper.make_tensor_value_info(op, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph([helper.make_node(op, ["pooled"], [op])], op, [], [out]))
    nodes.append(helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "deadly", ends, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_a_model_that_onnxruntime_dies_of_is_reported(tmp_path: Path) -> None:
    onnx.save(deadly(), tmp_path / "deadly.onnx")
    done = graphopt(tmp_path, "check", "deadly.onnx", "--json")
    assert done.returncode in (0, 6)  # 0 where onnxruntime has learned better
    if done.returncode == 6:
        (error,) = json.loads(done.stdout)["errors"]
        assert error["code"] == "GO-607" and "SIGABRT" in error["what"]
        assert error["where"] == "opening deadly.onnx in onnxruntime"


def test_in_process_there_is_no_child(cnn: Path, tmp_path: Path) -> None:
    done = run_with_samples(cnn, tmp_path, ENDS["SIGABRT"], "--in-process")
    assert done.returncode == -signal.SIGABRT


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "m.onnx"], True),
        (["check", "m.onnx"], True),
        (["run", "--help"], False),
        (["run", "m.onnx", "--in-process"], False),
        (["passes"], False),
        (["--version"], False),
        ([], False),
    ],
)
def test_which_commands_get_a_child(words: list[str], expected: bool) -> None:
    assert guard.wanted(words) is expected


def test_the_box_tells_the_trail_and_the_end() -> None:
    box = BlackBox()
    doing.box = box
    try:
        with doing("pass quantize"), doing("onnx's checker"):
            assert box.doing == "pass quantize, onnx's checker"
        assert box.doing == ""
        with doing("ü" * 4000):
            assert set(box.doing) <= {"ü", "�"}
    finally:
        doing.box = None
    assert box.exit_code is None
    box.finish(3)
    assert box.exit_code == 3
    with doing("nothing"):
        assert box.doing == ""


def test_the_memory_of_the_machine_is_known() -> None:
    found = limits.machine_memory()
    assert found is None or found > 1 << 26


@pytest.mark.parametrize("size", ["none", "1e9", "-4", "4 parsecs"])
def test_what_a_memory_limit_may_be(cnn: Path, tmp_path: Path, size: str) -> None:
    done = graphopt(tmp_path, "inspect", cnn, "--max-memory", size)
    assert done.returncode == (0 if size == "none" else 2), done.stderr


@pytest.mark.parametrize(
    ("raised", "code"), [(limits.Expired(3.0), 7), (main.Terminated(), 143), (KeyboardInterrupt(), 130)]
)
def test_a_signal_that_native_code_made_an_error_of_is_still_that_signal(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    def through_native_code(**_: object) -> None:
        try:
            raise ImportError("initialization failed") from raised
        except ImportError as error:
            raise ValueError("no such library") from error

    monkeypatch.setattr(main.root, "main", through_native_code)
    with pytest.raises(SystemExit) as left:
        main.main(["passes"])
    assert left.value.code == code


def test_an_error_of_its_own_is_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**_: object) -> None:
        raise ImportError("initialization failed") from OSError("no such file")

    monkeypatch.setattr(main.root, "main", failing)
    with pytest.raises(SystemExit) as left:
        main.main(["passes"])
    assert left.value.code == 70
