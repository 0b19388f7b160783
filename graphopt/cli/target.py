"""``--provider``, ``--threads`` and ``--custom-op-lib`` as a Target."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.runtime.providers import parse_provider
from graphopt.runtime.target import ProviderSpec, Target


def make_target(providers: Sequence[str], threads: int | None, libraries: Sequence[str]) -> Target | None:
    """The target; ``None`` where the command line says nothing, so that a recipe may."""
    if not providers and threads is None and not libraries:
        return None
    specs = tuple(parse_provider(text) for text in providers) or (ProviderSpec(),)
    return Target(specs, 1 if threads is None else threads, tuple(libraries))
