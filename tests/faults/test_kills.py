"""Writers killed at random moments: the target is always the old model or the new one, and loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX has fork and SIGKILL")


def test_twenty_kills(tmp_path: Path, counts: Counter[str]) -> None:
    _assert_survives(tmp_path, 20, counts)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path, counts: Counter[str]) -> None:
    _assert_survives(tmp_path, 200, counts)


def _assert_survives(folder: Path, kills: int, counts: Counter[str]) -> None:
    command = [sys.executable, "-m", "tests.faults.killer", str(folder), str(kills), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    faults = seen.pop("faults")
    counts.update(seen)
    assert not faults, "\n".join(faults)
    assert seen["old"] + seen["new"] == kills
