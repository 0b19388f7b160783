"""Peers that optimize float models, each in a virtual environment of its own, which is made here."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INSTALL_SECONDS = 600
RUN_SECONDS = 600

_OPTIMIZER = """
import sys, onnx, onnxoptimizer
model = onnx.load(sys.argv[1])
names = onnxoptimizer.get_fuse_and_elimination_passes()
onnx.save(onnxoptimizer.optimize(model, names, fixed_point=True), sys.argv[2])
"""
_RUNTIME = """
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = 1
options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, "ORT_ENABLE_" + sys.argv[3])
options.optimized_model_filepath = sys.argv[2]
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
_SLIM = "import sys, onnxslim; onnxslim.slim(sys.argv[1], sys.argv[2])"
_VERSION = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"


@dataclass(frozen=True)
class Peer:
    """A tool that writes an optimized file.

    Attributes:
        name: as the table calls it.
        package: what pip installs, onnxruntime beside it; empty: it comes with this Python.
        words: what Python is called with; ``IN`` and ``OUT`` stand for the files.
        setting: at which setting it runs.
    """

    name: str
    package: str
    words: tuple[str, ...]
    setting: str


PEERS = (
    Peer("onnxsim", "onnxsim", ("-m", "onnxsim", "IN", "OUT"), "defaults"),
    Peer("onnxslim", "onnxslim", ("-c", _SLIM, "IN", "OUT"), "defaults"),
    Peer("onnxoptimizer", "onnxoptimizer", ("-c", _OPTIMIZER, "IN", "OUT"), "all fusing and eliminating passes"),
    Peer("ort-extended", "", ("-c", _RUNTIME, "IN", "OUT", "EXTENDED"), "file saved at ORT_ENABLE_EXTENDED"),
    Peer("ort-all", "", ("-c", _RUNTIME, "IN", "OUT", "ALL"), "file saved at ORT_ENABLE_ALL: for this processor only"),
)


@dataclass(frozen=True)
class Ready:
    """A peer that may be called.

    Attributes:
        peer: what it is.
        python: the interpreter of its environment.
        version: of its package; empty where it is part of onnxruntime.
        fault: why it cannot be called; empty where it can.
    """

    peer: Peer
    python: Path
    version: str = ""
    fault: str = ""

    @property
    def label(self) -> str:
        """Name, version and setting, or why it is not here."""
        version = f" {self.version}" if self.version else ""
        return f"{self.peer.name}{version}: {self.fault or self.peer.setting}"

    def optimize(self, source: Path, target: Path) -> str:
        """Write ``target``; a note on how it failed, empty where it did not."""
        if self.fault:
            return self.fault
        target.unlink(missing_ok=True)
        files = {"IN": str(source), "OUT": str(target)}
        done = _call([str(self.python), *(files.get(word, word) for word in self.peer.words)], RUN_SECONDS)
        return "" if not done and target.exists() else f"fails: {done or 'it wrote no file'}"


def default_folder() -> Path:
    """Where the environments stay from one run to the next."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "graphopt" / f"peers-{sys.version_info.major}.{sys.version_info.minor}"


def prepare(peer: Peer, folder: Path) -> Ready:
    """Make the peer's environment where it is missing; what goes wrong is a fault, not an exception."""
    if not peer.package:
        return Ready(peer, Path(sys.executable))
    home = folder / peer.name
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    version = _output([str(python), "-c", _VERSION, peer.package]) if python.exists() else ""
    if not version:
        fault = _install(peer.package, home, python)
        version = "" if fault else _output([str(python), "-c", _VERSION, peer.package])
        if not version:
            return Ready(peer, python, fault=f"cannot be installed: {fault or 'no such distribution afterwards'}")
    return Ready(peer, python, version)


def _install(package: str, home: Path, python: Path) -> str:
    try:
        venv.create(home, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)
    return _call([str(python), "-m", "pip", "install", "-q", package, "onnxruntime"], INSTALL_SECONDS)


def _call(command: list[str], seconds: float) -> str:
    """Run a command; empty where it ends well, else the end of what it said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, env=_environment()
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__} after {seconds:g} s"
    said = " ".join((done.stderr or done.stdout).split())
    return "" if done.returncode == 0 else f"exit {done.returncode}: {said[-120:]}"


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    return done.stdout.strip() if done.returncode == 0 else ""


def _environment() -> Mapping[str, str]:
    """This process's environment, without what would let its packages shine through."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
