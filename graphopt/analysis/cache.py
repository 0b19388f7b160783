"""Analyses: facts about one model state, computed once and shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from graphopt.model.model import Model

T = TypeVar("T")


class Analyses:
    """Computes facts about one model and keeps them.

    An analysis is a function ``Model -> T`` that does not change the model. The cache belongs to one state of the
    model: after a pass changed it, ``carried_over`` keeps only what the pass declared preserved.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._facts: dict[Callable[[Model], object], object] = {}

    def get(self, analysis: Callable[[Model], T]) -> T:
        """The result of ``analysis`` on this model state."""
        if analysis not in self._facts:
            self._facts[analysis] = analysis(self.model)
        return cast(T, self._facts[analysis])

    def carried_over(self, model: Model, preserved: frozenset[Callable[[Model], object]]) -> Analyses:
        """A cache for the changed ``model`` that starts with the preserved facts."""
        later = Analyses(model)
        later._facts = {key: fact for key, fact in self._facts.items() if key in preserved}
        return later
