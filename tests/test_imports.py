"""What is loaded when: a command line that answers at once must not load the numerical libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.cli.main import COMMANDS

HEAVY = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "pydantic", "rich", "ml_dtypes", "PIL"}


def loaded_after(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh interpreter after ``statement``."""
    code = (
        "import sys, json, contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    {statement}\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_measurement_sees_what_is_loaded() -> None:
    assert "numpy" in loaded_after("import numpy")


@pytest.mark.parametrize(
    "statement",
    [
        "import graphopt",
        "import graphopt; dir(graphopt)",
        "import sys; sys.argv = ['graphopt', '--help']; from graphopt.cli.main import main; main()",
        "import sys; sys.argv = ['graphopt', '--version']; from graphopt.cli.main import main; main()",
    ],
)
def test_nothing_heavy_is_loaded(statement: str) -> None:
    loaded = loaded_after(statement)
    assert "graphopt" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("word", ["--help", "--no-such-option"])
def test_a_command_that_is_not_run_loads_nothing_heavy_either(command: str, word: str) -> None:
    assert not loaded_after(f"from graphopt.cli.main import main; main({[command, word]})") & HEAVY


def test_statistics_are_loaded_by_who_measures() -> None:
    """scipy.stats takes longer to load than everything else together."""
    assert "scipy" not in loaded_after("import graphopt.api")


def test_public_names_are_where_they_claim_to_be() -> None:
    import graphopt

    assert graphopt.__all__
    for name in graphopt.__all__:
        assert getattr(graphopt, name) is not None
    with pytest.raises(AttributeError):
        _ = graphopt.no_such_name  # type: ignore[attr-defined]


def test_onnxruntime_reports_to_nobody(tmp_path: Path) -> None:
    """Its builds keep a device id under the home folder as soon as they may report."""
    code = (
        "from graphopt.runtime.session import open_session\n"
        "from graphopt.testing.builders import mlp\n"
        "open_session(mlp().SerializeToString())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []
