"""The rewrite passes, one file or one small folder each; imported as ``graphopt.passes``.

The names below are imported when they are first used, so that one pass does not load the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.passes.prune_weights import PruneWeights as PruneWeights
    from graphopt.passes.quantize import Quantize as Quantize
    from graphopt.passes.remove_channels import RemoveChannels as RemoveChannels
    from graphopt.passes.simplify import Simplify as Simplify

_HOMES = {
    "PruneWeights": "graphopt.passes.prune_weights",
    "Quantize": "graphopt.passes.quantize",
    "RemoveChannels": "graphopt.passes.remove_channels",
    "Simplify": "graphopt.passes.simplify",
}

__all__ = ["PruneWeights", "Quantize", "RemoveChannels", "Simplify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt.passes' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
