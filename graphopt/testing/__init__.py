"""The conformance suite and builders for testing passes.

``check_pass`` loads on first use: ``builders`` alone need nothing but onnx and numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.testing.conformance import check_pass

__all__ = ["check_pass"]


def __getattr__(name: str) -> object:
    if name != "check_pass":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from graphopt.testing.conformance import check_pass

    return check_pass
