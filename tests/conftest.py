"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless ``-m`` asks for something."""
    if config.getoption("markexpr"):
        return
    skip = pytest.mark.skip(reason="slow: ask for it with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
