"""graphopt: rewrite an ONNX model to a smaller, faster one, with the proof that it is right.

The public names are imported when they are first used; importing the package loads nothing heavy.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.api import Result as Result
    from graphopt.api import optimize as optimize
    from graphopt.data.samples import Samples as Samples
    from graphopt.errors import GraphoptError as GraphoptError
    from graphopt.model.model import Model as Model
    from graphopt.pipeline.recipe import Recipe as Recipe
    from graphopt.runtime.target import ProviderSpec as ProviderSpec
    from graphopt.runtime.target import Target as Target
    from graphopt.validation.gates import Gates as Gates

# onnxruntime's builds may report to their maker, and read this once, as they are loaded: nothing of a user's goes out
# because graphopt was imported. Whoever wants it sets the variable.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "optimize": "graphopt.api",
    "Result": "graphopt.api",
    "GraphoptError": "graphopt.errors",
    "Gates": "graphopt.validation.gates",
    "Model": "graphopt.model.model",
    "ProviderSpec": "graphopt.runtime.target",
    "Recipe": "graphopt.pipeline.recipe",
    "Samples": "graphopt.data.samples",
    "Target": "graphopt.runtime.target",
}

__all__ = [
    "Gates",
    "GraphoptError",
    "Model",
    "ProviderSpec",
    "Recipe",
    "Result",
    "Samples",
    "Target",
    "optimize",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("graphopt")
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
