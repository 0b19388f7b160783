"""The same recipe gives the same bytes and the same report, whatever the hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt import optimize

SCRIPT = """
import hashlib, sys
from graphopt import optimize
result = optimize(sys.argv[1], recipe=sys.argv[2], data=sys.argv[3], measure=False)
print(hashlib.sha256(result.model.to_proto().SerializeToString()).hexdigest())
print(result.report.without_timings().to_json())
"""
EVERY = ("freeze-initializers", "simplify", "prune-weights", "remove-channels", "fuse", "quantize", "depthwise-shift")


def printed(model: Path, recipe: Path, samples: Path, seed: str) -> str:
    """The model's hash on the first line, then the report without timings, of a run in a process of its own."""
    words = [sys.executable, "-c", SCRIPT, str(model), str(recipe), str(samples)]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_written_recipe_repeats_under_two_hash_seeds(cnn: Path, few: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'version = 1\n[[pass]]\nname = "simplify"\n[[pass]]\nname = "remove-channels"\nratio = 0.5\n'
        '[[pass]]\nname = "quantize"\n'
    )
    assert printed(cnn, recipe, few, "1") == printed(cnn, recipe, few, "2")


@pytest.mark.parametrize("made", ["by the default run", "of every pass"])
def test_a_resolved_recipe_repeats_under_two_hash_seeds(cnn: Path, few: Path, tmp_path: Path, made: str) -> None:
    """From one resolved recipe: equal bytes, and equal reports but for the times."""
    default = made == "by the default run"
    first = optimize(cnn, passes=() if default else EVERY, data=str(few), measure=default, max_seconds=1, tune_time=2)
    recipe = tmp_path / "resolved.toml"
    recipe.write_text(first.report.recipe.toml)
    once, again = (printed(cnn, recipe, few, seed) for seed in ("1", "2"))
    assert once == again
    ran = [entry["name"] for entry in json.loads(once.partition("\n")[2])["passes"]]
    assert ran == [entry.name for entry in first.report.passes if entry.name in ran]
    assert len(ran) >= (1 if default else 4)
