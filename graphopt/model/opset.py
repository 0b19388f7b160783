"""Raising the operator set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.model.model import Model


def raise_opset(model: Model, version: int) -> tuple[str, ...]:
    """Placeholder."""
    raise NotImplementedError
