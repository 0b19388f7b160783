"""A pass that native code dies in is left out, and the run is done over without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphopt.blackbox import BlackBox, doing, fallen, settle
from graphopt.errors import RuntimeFailure
from tests.model.probes import model_of, relu

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")

PASSES = '''
import ctypes, os, time

from graphopt.blackbox import doing
from graphopt.pipeline.contract import Pass, PassOptions, PassResult, Safety


class Dying(Pass[PassOptions]):
    """Where there is a Conv: aborts, as onnxruntime would."""

    name, code, safety = "dying", "DIE", Safety.EXACT

    def run(self, ctx):
        if any(node.op == "Conv" for node in ctx.editor.nodes()):
            with doing("opening the candidate"):
                os.abort()
        return PassResult(False)


class Faulting(Pass[PassOptions]):
    """Reads where nothing is."""

    name, code, safety = "faulting", "FLT", Safety.EXACT

    def run(self, ctx):
        ctypes.string_at(0)


class Dawdling(Pass[PassOptions]):
    """Takes its time."""

    name, code, safety = "dawdling", "DAW", Safety.EXACT

    def run(self, ctx):
        time.sleep(4)
        return PassResult(False)


class Leaving(Pass[PassOptions]):
    """Ends the process as if all were well."""

    name, code, safety = "leaving", "LEA", Safety.EXACT

    def run(self, ctx):
        os._exit(0)


class Quitting(Pass[PassOptions]):
    """Asks for the end of the process."""

    name, code, safety = "quitting", "QUI", Safety.EXACT

    def run(self, ctx):
        raise SystemExit(0)


class Killed(Pass[PassOptions]):
    """Dies as the system kills what takes too much memory."""

    name, code, safety = "killed", "KIL", Safety.EXACT

    def run(self, ctx):
        os.kill(os.getpid(), 9)
'''
NAMES = ("Dying", "Faulting", "Dawdling", "Leaving", "Quitting", "Killed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the passes are found by whoever is started there."""
    (tmp_path / "deadly_passes.py").write_text(textwrap.dedent(PASSES))
    info = tmp_path / "deadly_passes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly-passes\nVersion: 1.0\n")
    entries = "".join(f"{name.lower()} = deadly_passes:{name}\n" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[graphopt.passes]\n{entries}")
    return tmp_path


def graphopt(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graphopt", "run", *map(str, words), "--no-measure"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def with_passes(folder: Path, cnn: Path, names: str, *words: object) -> subprocess.CompletedProcess[str]:
    passes = [word for name in names.split() for word in ("--pass", name)]
    return graphopt(folder, cnn, "-o", "out.onnx", *passes, *words)


def passes_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["passes"]
    return found


def test_the_rest_of_the_run_is_kept(folder: Path, cnn: Path) -> None:
    done = with_passes(folder, cnn, "dying simplify")
    assert done.returncode == 1, done.stderr
    died, simplified = passes_of(folder / "out.graphopt.json")
    assert (died["outcome"], simplified["outcome"]) == ("failed", "applied")
    assert "SIGABRT (pass dying, opening the candidate)" in died["reason"]
    assert (died["error"]["code"], died["error"]["exit_code"]) == ("GO-607", 6)
    assert "rolled back: dying; the rest was kept" in done.stdout and "SIGABRT" in done.stdout
    onnx.checker.check_model(onnx.load(folder / "out.onnx"))


def test_one_line_says_what_happens(folder: Path, cnn: Path) -> None:
    done = with_passes(folder, cnn, "dying")
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    what = "native code crashed with SIGABRT (pass dying, opening the candidate)"
    assert warnings == [f"warning: {what}: starting over without this pass"]


def test_it_counts_as_any_pass_that_is_taken_back(folder: Path, cnn: Path) -> None:
    assert with_passes(folder, cnn, "simplify dying", "--allow-rollback").returncode == 0


def test_each_pass_that_crashes_is_left_out_once(folder: Path, cnn: Path) -> None:
    done = with_passes(folder, cnn, "dying simplify faulting dying")
    assert done.returncode == 1, done.stderr
    outcomes = [record["outcome"] for record in passes_of(folder / "out.graphopt.json")]
    assert outcomes == ["failed", "applied", "failed", "failed"]
    assert done.stderr.count("starting over") == 3


def test_the_first_of_several_models_is_done_over_and_the_others_keep_the_pass(folder: Path, cnn: Path) -> None:
    onnx.save(model_of([relu()]), folder / "plain.onnx")
    done = graphopt(folder, cnn, "plain.onnx", "-o", "results/", "--pass", "dying")
    assert done.returncode == 1, done.stderr
    (first,), (second,) = (passes_of(folder / "results" / f"{name}.graphopt.json") for name in (cnn.stem, "plain"))
    assert (first["outcome"], second["outcome"]) == ("failed", "unchanged")


def test_what_is_written_is_not_done_over(folder: Path, cnn: Path) -> None:
    onnx.save(model_of([relu()]), folder / "plain.onnx")
    done = graphopt(folder, "plain.onnx", cnn, "-o", "results/", "--pass", "dying")
    assert done.returncode == 6
    assert "error[GO-607]" in done.stderr and "starting over" not in done.stderr
    assert (folder / "results" / "plain.onnx").exists()


@pytest.mark.parametrize(("name", "code"), [("leaving", 1), ("quitting", 70)])
def test_a_pass_that_ends_the_process_does_not_end_the_run(folder: Path, cnn: Path, name: str, code: int) -> None:
    done = with_passes(folder, cnn, f"{name} simplify")
    assert done.returncode == code, done.stderr
    assert [record["outcome"] for record in passes_of(folder / "out.graphopt.json")] == ["failed", "applied"]


def test_a_kill_is_no_crash(folder: Path, cnn: Path) -> None:
    done = with_passes(folder, cnn, "killed")
    assert done.returncode == 7
    assert "error[GO-701]" in done.stderr and "starting over" not in done.stderr


def test_the_time_limit_is_that_of_all_attempts_together(folder: Path, cnn: Path) -> None:
    """Each takes four seconds and more, both together more than seven."""
    done = with_passes(folder, cnn, "dawdling dying", "--timeout", "7")
    assert done.returncode == 7, done.stderr
    assert "error[GO-702]: --timeout" in done.stderr
    assert not (folder / "out.onnx").exists()


def test_in_process_nothing_is_done_over(folder: Path, cnn: Path) -> None:
    assert with_passes(folder, cnn, "dying", "--in-process").returncode < 0


def test_the_box_tells_the_part_and_what_fell_before() -> None:
    crash = RuntimeFailure("GO-607", "native code crashed with SIGABRT")
    doing.box = box = BlackBox({2: crash})
    try:
        with doing("pass quantize", part=3), doing("onnx's checker"):
            assert box.part == 3
        assert box.part == 0
        assert fallen(2) is crash and fallen(3) is None
        assert not box.settled
        settle()
        assert box.settled and fallen(2) is None
    finally:
        doing.box = None
    settle()
    assert fallen(2) is None
