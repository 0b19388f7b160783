"""Fixtures for every test."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models that is kept outside the project; skips where it is missing."""
    folder = Path(os.environ.get("GRAPHOPT_SHARED") or ROOT.parent / "shared")
    if not (folder / "models" / "CATALOG.md").is_file():
        pytest.skip("the shared models are not here: set GRAPHOPT_SHARED")
    return folder


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The project's own models."""
    return ROOT / "models"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run ``graphopt`` with these words, in this process."""
    from graphopt.cli.main import main

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless ``-m`` asks for something."""
    if config.getoption("markexpr"):
        return
    skip = pytest.mark.skip(reason="slow: ask for it with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def counts(record_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    """What a sweep saw; printed at the end of the run, summed over the parts of a test."""
    tally: Counter[str] = Counter()
    yield tally
    for key, number in tally.items():
        record_property(key, number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the sweeps counted."""
    totals: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("", []):
        numbers = [(k, v) for k, v in getattr(report, "user_properties", ()) if isinstance(v, int)]
        for key, number in numbers if getattr(report, "when", "") == "teardown" else ():
            totals.setdefault(_without_part(report.nodeid), Counter())[key] += number
    if totals:
        terminalreporter.section("counts")
    for test, tally in sorted(totals.items()):
        terminalreporter.line(f"{test}: " + ", ".join(f"{n} {key}" for key, n in sorted(tally.items())))


def _without_part(test: str) -> str:
    """The test's name; parts that are only numbered are summed."""
    name, _, parameters = test.partition("[")
    return name if parameters.removesuffix("]").isdecimal() else test
