"""Saving is all or nothing: the target is the old model or the new one, and nothing else is left."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from graphopt.errors import OutputError
from graphopt.model import parts, save
from graphopt.model.model import Model

from .probes import model_of, value


def model_with(fill: float, size: int = 4) -> Model:
    first = numpy_helper.from_array(np.full((size, size), fill, np.float32), "w1")
    second = numpy_helper.from_array(np.full((size, size), fill + 1, np.float32), "w2")
    second.doc_string = "kept"
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("MatMul", ["a", "w2"], ["y"])]
    return Model.from_proto(
        model_of(nodes, [value("x", [1, size])], [value("y", [1, size])], initializer=[first, second])
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def external(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go to a data file already above 1 KiB."""
    monkeypatch.setattr(save, "EXTERNAL_LIMIT", 1024)


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    model_with(1).save(target)
    with pytest.raises(OutputError) as caught:
        model_with(2).save(target)
    assert caught.value.code == "GO-502"
    assert Model.open(target).fingerprint() == model_with(1).fingerprint()
    model_with(2).save(target, overwrite=True)
    assert Model.open(target).fingerprint() == model_with(2).fingerprint()
    assert names(tmp_path) == ["m.onnx"]


def test_unwritable_targets(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "none" / "m.onnx", tmp_path / "file" / "m.onnx"):
        with pytest.raises(OutputError) as caught:
            model_with(1).save(target, overwrite=True)
        assert caught.value.code == "GO-501"
        assert caught.value.exit_code == 5


def test_permissions_of_the_old_file_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    model_with(1).save(target)
    target.chmod(0o640)
    model_with(2).save(target, overwrite=True)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_link_keeps_pointing_and_its_target_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    model_with(1).save(real)
    link.symlink_to(real)
    model_with(2).save(link, overwrite=True)
    assert link.is_symlink()
    assert Model.open(real).fingerprint() == model_with(2).fingerprint()


def test_the_input_can_be_the_output(tmp_path: Path, external: None) -> None:
    target = tmp_path / "m.onnx"
    model_with(1, 64).save(target)
    model = Model.open(target)
    node = model.editor.nodes()[0]
    model.editor.set_constant(node, 1, np.full((64, 64), 7, np.float32))
    model.finish()
    model.save(target, overwrite=True)
    assert Model.open(target).fingerprint() == model.fingerprint()
    assert len(names(tmp_path)) == 2


def test_large_weights_go_to_one_aligned_data_file(
    tmp_path: Path, external: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with(1, 64)
    model.save(tmp_path / "m.onnx")
    written = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in written.graph.initializer]
    assert [int(e["offset"]) % parts.ALIGNMENT for e in entries] == [0, 0]
    assert len({e["location"] for e in entries}) == 1
    assert written.graph.initializer[1].doc_string == "kept"
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) >= model.file_size
    onnx.checker.check_model(tmp_path / "m.onnx")
    again = Model.open(tmp_path / "m.onnx")
    assert again.fingerprint() == model.fingerprint()
    feed = {"x": np.ones((1, 64), np.float32)}
    monkeypatch.undo()
    (tmp_path / "inline.onnx").write_bytes(model.to_proto().SerializeToString())
    outputs = []
    for opened in (tmp_path / "m.onnx", tmp_path / "inline.onnx"):
        outputs.append(ort.InferenceSession(str(opened), providers=["CPUExecutionProvider"]).run(None, feed)[0])
    np.testing.assert_array_equal(*outputs)


def test_a_replaced_data_file_is_removed_after_the_model(tmp_path: Path, external: None) -> None:
    target = tmp_path / "m.onnx"
    model_with(1, 64).save(target)
    first = names(tmp_path)
    (tmp_path / "other.0123456789abcdef.data").write_bytes(b"not ours")
    model_with(2, 64).save(target, overwrite=True)
    assert len(names(tmp_path)) == 3
    assert "other.0123456789abcdef.data" in names(tmp_path)
    assert set(first) & set(names(tmp_path)) == {"m.onnx"}


def _failing(call: Callable[..., object], at: int, error: int) -> Callable[..., object]:
    count = 0

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == at:
            raise OSError(error, os.strerror(error))
        return call(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("place", ["os.fsync", "os.open", "pathlib.Path.replace", "pathlib.Path.open"])
def test_a_failing_call_leaves_the_old_model_and_nothing_else(
    tmp_path: Path, external: None, monkeypatch: pytest.MonkeyPatch, place: str, at: int, error: int
) -> None:
    target = tmp_path / "m.onnx"
    model_with(1, 64).save(target)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    module, name = {"os": os, "pathlib": Path}[place.split(".")[0]], place.rsplit(".", 1)[1]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, _failing(getattr(module, name), at, error))
        with pytest.raises(OutputError) as caught:
            model_with(2, 64).save(target, overwrite=True)
    assert caught.value.code == "GO-501"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_in_the_middle_of_the_weights_leaves_nothing(tmp_path: Path, external: None) -> None:
    """A real short file system is not at hand: the limit of the process on file sizes does the same."""
    script = (
        "import resource, signal, sys, numpy as np\n"
        "from tests.model.test_save import model_with\n"
        "from graphopt.model import save\n"
        "save.EXTERNAL_LIMIT = 1024\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "model = model_with(1, 256)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    model.save(sys.argv[1])\n"
        "except Exception as error:\n    print(error.code)\n"
    )
    done = _python(script, tmp_path / "m.onnx")
    assert done.communicate()[0].strip() == "GO-501"
    assert names(tmp_path) == []


def _python(script: str, target: Path) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", script, str(target)], cwd=root, stdout=subprocess.PIPE, text=True, env=os.environ
    )


def test_what_is_read_back_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.onnx"
    fsync = os.fsync

    def corrupting(descriptor: int) -> None:
        os.pwrite(descriptor, b"\0", 3)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", corrupting)
    with pytest.raises(OutputError) as caught:
        model_with(1).save(target)
    assert caught.value.code == "GO-504"
    assert names(tmp_path) == []


STALLING = (
    "import os, sys, time\n"
    "from tests.model.test_save import model_with\n"
    "fsync = os.fsync\n"
    "def slow(descriptor):\n    print('staged', flush=True)\n    time.sleep(60)\n"
    "os.fsync = slow\n"
    "model_with(2).save(sys.argv[1], overwrite=True)\n"
)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_writer_leaves_the_old_model(tmp_path: Path, how: signal.Signals) -> None:
    """Interrupted, it cleans up; killed, the next writer does."""
    target = tmp_path / "m.onnx"
    model_with(1).save(target)
    writer = _python(STALLING, target)
    assert writer.stdout is not None and writer.stdout.readline().strip() == "staged"
    writer.send_signal(how)
    writer.wait()
    writer.stdout.close()
    assert Model.open(target).fingerprint() == model_with(1).fingerprint()
    assert len(names(tmp_path)) == (2 if how == signal.SIGKILL else 1)
    model_with(3).save(target, overwrite=True)
    assert names(tmp_path) == ["m.onnx"]


def test_two_writers_of_one_output_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    writer = _python(STALLING, target)
    assert writer.stdout is not None and writer.stdout.readline().strip() == "staged"
    with pytest.raises(OutputError) as caught:
        model_with(1).save(target)
    assert caught.value.code == "GO-503"
    writer.kill()
    writer.wait()
    writer.stdout.close()
    model_with(1).save(target)
    assert names(tmp_path) == ["m.onnx"]
