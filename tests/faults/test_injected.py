"""Every call by which a save touches the disk fails once: the old model stays, nothing else is left."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import OutputError
from graphopt.model import save
from graphopt.model.model import Model
from graphopt.testing import builders

CALLS: dict[str, tuple[Any, str]] = {
    "open": (os, "open"),
    "fsync": (os, "fsync"),
    "open for writing": (Path, "open"),
    "chmod": (Path, "chmod"),
    "replace": (Path, "replace"),
}


class Fuse:
    """Fails the ``at``-th call that goes through it."""

    def __init__(self, at: int, code: int) -> None:
        self.left = at
        self.code = code

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code))

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.burn()
            return call(*args, **kwargs)

        return wrapped


class LeakyFile:
    """A file whose ``write`` may fail, after half of the bytes are on the disk."""

    def __init__(self, file: Any, fuse: Fuse) -> None:
        self._file = file
        self._fuse = fuse

    def write(self, data: bytes) -> int:
        try:
            self._fuse.burn()
        except OSError:
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()
            raise
        return self._file.write(data)

    def __enter__(self) -> LeakyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture(params=[True, False], ids=["data file", "inline"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a saved model in it."""
    if request.param:
        monkeypatch.setattr(save, "EXTERNAL_LIMIT", 1024)
        monkeypatch.setattr(save, "_CHUNK", 1000)
    _old().save(tmp_path / "model.onnx")
    return tmp_path


def _old() -> Model:
    return Model.from_proto(builders.mlp(0))


def _new() -> Model:
    return Model.from_proto(builders.mlp(1))


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _failures(folder: Path, arm: Callable[[Fuse], None], disarm: Callable[[], None], code: int) -> Iterator[int]:
    """Fail the first, second, third, … call, until a save gets by with fewer calls; gives the number of each."""
    before = _content(folder)
    for at in range(1, 1000):
        fuse = Fuse(at, code)
        arm(fuse)
        try:
            _new().save(folder / "model.onnx", overwrite=True)
        except OutputError as error:
            assert error.code == "GO-501"
            assert fuse.left <= 0
        else:
            disarm()
            assert Model.open(folder / "model.onnx").fingerprint() == _new().fingerprint()
            if fuse.left > 0:
                return
            _old().save(folder / "model.onnx", overwrite=True)
            assert _content(folder) == before
            continue
        finally:
            disarm()
        assert _content(folder) == before, f"call {at}"
        yield at


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_call_that_fails_leaves_the_old_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    owner, name = CALLS[call]
    original = getattr(owner, name)
    failed = list(
        _failures(
            folder,
            lambda fuse: monkeypatch.setattr(owner, name, fuse.around(original)),
            lambda: monkeypatch.setattr(owner, name, original),
            code,
        )
    )
    assert failed


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    original = Path.open

    def arm(fuse: Fuse) -> None:
        def opened(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
            file = original(path, mode, *rest, **named)
            return LeakyFile(file, fuse) if "w" in mode else file

        monkeypatch.setattr(Path, "open", opened)

    failed = list(_failures(folder, arm, lambda: monkeypatch.setattr(Path, "open", original), code))
    assert len(failed) >= (4 if save.EXTERNAL_LIMIT == 1024 else 1)


@pytest.mark.parametrize("name", ["a\0b", "x" * 400, "no/such/folder/model.onnx"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError) as caught:
        _old().save(tmp_path / name)
    assert caught.value.code == "GO-501"
    assert list(tmp_path.iterdir()) == []


def test_moving_the_weights_inside_takes_the_data_file_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(save, "EXTERNAL_LIMIT", 1024)
        _old().save(tmp_path / "model.onnx")
        _old().save(tmp_path / "model.pb")
        assert len(list(tmp_path.iterdir())) == 4
    _new().save(tmp_path / "model.onnx", overwrite=True)
    assert len(list(tmp_path.iterdir())) == 3
    assert Model.open(tmp_path / "model.pb").fingerprint() == _old().fingerprint()


def test_a_file_system_without_locks_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(save.fcntl, "flock", no_locks)
    _old().save(tmp_path / "model.onnx")
    assert Model.open(tmp_path / "model.onnx").fingerprint() == _old().fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
