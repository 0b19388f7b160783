"""Replaced weights: in memory up to a limit, in files beyond it, and no file left at the end."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import LimitError
from graphopt.model import store
from graphopt.model.mapping import place_of
from graphopt.model.model import Model
from graphopt.model.store import SMALL, WeightStore

from .test_save import model_with

SIZE = SMALL // 4


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def ramp(seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.arange(size, dtype=np.float32) + seed


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_up_to_the_limit_arrays_stay_in_memory(temporary: Path) -> None:
    held = WeightStore(2 * SMALL)
    arrays = [held.keep(ramp(i)) for i in range(2)]
    assert held.held == 2 * SMALL and files(temporary) == []
    assert not any(array.flags.writeable for array in arrays)
    arrays.pop()
    gc.collect()
    assert held.held == SMALL


def test_what_is_held_is_counted_once_and_until_the_last_view_goes() -> None:
    held = WeightStore(1 << 30)
    arrays = [held.keep(ramp(i)) for i in range(3)]
    assert held.keep(arrays[0]) is arrays[0]
    view = arrays[0][10:20]
    assert held.held == 3 * SMALL
    arrays.clear()
    gc.collect()
    assert held.held == SMALL
    del view
    gc.collect()
    assert held.held == 0


def test_past_the_limit_they_go_to_files_and_are_equal(temporary: Path) -> None:
    held = WeightStore(SMALL)
    arrays = [held.keep(ramp(i).reshape(2, -1)) for i in range(4)]
    assert len(files(temporary)) == 3
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(array, ramp(i).reshape(2, -1))
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
    assert [place_of(array) is not None for array in arrays] == [False, True, True, True]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int4", "float8_e4m3fnuz", "complex64", "bool"])
def test_every_element_type_can_go_to_a_file(kind: str) -> None:
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    array = (np.arange(2 * SMALL) % 2).astype(dtype)
    found = WeightStore(0).keep(array)
    assert found.dtype == dtype and place_of(found) is not None
    np.testing.assert_array_equal(found, array)


def test_small_arrays_strings_and_mapped_ones_stay_as_they_are(temporary: Path) -> None:
    held = WeightStore(0)
    held.keep(ramp(size=8))
    held.keep(np.array(["x"] * SMALL, object))
    spilled = held.keep(ramp())
    assert held.keep(spilled) is spilled
    assert len(files(temporary)) == 1


def test_files_go_with_their_arrays_and_the_folder_with_the_last(temporary: Path) -> None:
    held = WeightStore(0)
    first, second = held.keep(ramp()), held.keep(ramp(1))
    view = first[10:20]
    del first, held
    gc.collect()
    assert len(files(temporary)) == 2, "a view still reads the file"
    del view
    gc.collect()
    assert len(files(temporary)) == 1
    np.testing.assert_array_equal(second, ramp(1))
    del second
    gc.collect()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(3)", "raise ValueError", "sys.exit(1)"])
def test_nothing_is_left_however_a_process_ends(temporary: Path, ending: str) -> None:
    _child(temporary, f"held = keep()\n{ending}").wait()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_leaves_the_next_one_removes(temporary: Path) -> None:
    killed = _child(temporary, "held = keep()\nos.kill(os.getpid(), 9)")
    assert killed.wait() == -signal.SIGKILL
    assert len(files(temporary)) == 1
    alive = WeightStore(0)
    kept = alive.keep(ramp())
    assert len(files(temporary)) == 1
    _child(temporary, "keep()").wait()
    np.testing.assert_array_equal(kept, ramp())
    assert len(files(temporary)) == 1, "the folder of a live process stays"


@pytest.mark.parametrize("removed", [True, False])
def test_a_new_folder_that_is_taken_for_a_stale_one_is_given_up(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """Another process looks at the lock after it was made and before it is held."""
    real, others = fcntl.flock, list[int]()

    def flock(descriptor: int, how: int) -> None:
        if not others:
            (lock,) = temporary.glob("*/lock")
            others.append(os.open(lock, os.O_WRONLY))
            real(others[0], how)
            if removed:
                shutil.rmtree(lock.parent)
                os.close(others[0])
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    held = WeightStore(0)
    np.testing.assert_array_equal(held.keep(ramp()), ramp())
    assert len(others) == 1
    if not removed:
        os.close(others[0])
    del held
    gc.collect()
    _child(temporary, "keep()").wait()
    assert list(temporary.iterdir()) == []


def test_folders_that_others_always_remove_are_a_limit(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LimitError, match="other processes removed 8 new folders"):
        WeightStore(0).keep(ramp())


def _child(folder: Path, script: str) -> subprocess.Popen[bytes]:
    head = (
        "import os, sys, numpy as np\n"
        "from graphopt.model.store import WeightStore\n"
        "def keep(): return WeightStore(0).keep(np.zeros(1 << 16, np.float32))\n"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen([sys.executable, "-c", head + script], env=environment, stderr=subprocess.DEVNULL)


def test_a_forked_child_removes_nothing(temporary: Path) -> None:
    held = WeightStore(0)
    array = held.keep(ramp())
    child = os.fork()
    if child == 0:
        del array, held
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(files(temporary)) == 1


def test_a_full_disk_is_a_limit_and_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    held = WeightStore(0)
    first = held.keep(ramp())
    monkeypatch.setattr(store, "map_file", failing)
    with pytest.raises(LimitError) as caught:
        held.keep(ramp(1))
    assert caught.value.code == "GO-701" and "No space left" in str(caught.value)
    assert len(files(temporary)) == 1
    np.testing.assert_array_equal(first, ramp())


def test_a_place_is_found_for_what_lies_in_memory_and_kept(temporary: Path) -> None:
    held = WeightStore(1 << 30)
    array = held.keep(ramp())
    place = held.placed(array)
    assert place is not None and place == held.placed(array)
    assert place.map.path.read_bytes()[place.offset :] == array.tobytes()
    assert held.placed(ramp(size=8)) is None
    del array, place
    gc.collect()
    assert files(temporary) == []


def test_a_place_in_a_file_that_was_replaced_is_not_used(temporary: Path) -> None:
    held = WeightStore(0)
    array = held.keep(ramp())
    place = held.placed(array)
    assert place is not None and place == place_of(array)
    path = place.map.path
    (path.parent / "other").write_bytes(bytes(array.nbytes))
    (path.parent / "other").replace(path)
    elsewhere = held.placed(array)
    assert elsewhere is not None and elsewhere.map.path != path
    assert elsewhere.map.path.read_bytes() == array.tobytes()


def test_the_limit_of_the_process_bounds_the_default() -> None:
    script = (
        "import resource; from graphopt.model.store import WeightStore\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 31, resource.RLIM_INFINITY))\n"
        "print(WeightStore().max_memory)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1 << 29


def test_a_model_edited_past_the_limit_saves_as_one_in_memory(temporary: Path) -> None:
    spilled = _edited(temporary / "spilled.onnx", 0)
    gc.collect()
    assert files(temporary) == ["spilled.onnx"]
    assert _edited(temporary / "held.onnx", 1 << 30) == spilled
    assert (temporary / "held.onnx").read_bytes() == (temporary / "spilled.onnx").read_bytes()


def _edited(target: Path, limit: int) -> str:
    model = Model.from_proto(model_with(1, 128).to_proto(), store=WeightStore(limit))
    twin = model.clone()
    assert twin.store is model.store
    for i, node in enumerate(twin.editor.nodes()):
        twin.editor.set_constant(node, 1, np.full((128, 128), i + 2, np.float32))
    twin.finish()
    values = [place_of(array) for array in twin.skeleton()[1].values()]
    assert [place is not None for place in values] == [limit == 0] * 2
    twin.save(target)
    return twin.fingerprint()
