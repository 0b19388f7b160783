"""The command line in this process, and small samples to run it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from graphopt.cli.main import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run ``graphopt`` with these words."""

    def run(*words: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(w) for w in words])
        captured = capsys.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def cnn(embedded: Path) -> Path:
    """The embedded convolutional network."""
    return embedded / "digits_cnn" / "model.onnx"


@pytest.fixture(scope="session")
def few(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled pictures for the convolutional network."""
    path = tmp_path_factory.mktemp("samples") / "few.npz"
    with np.load(embedded / "digits_cnn" / "eval.npz") as whole:
        np.savez(path, **{key: whole[key][:40] for key in whole.files})
    return path
