"""``--provider``, ``--threads`` and ``--custom-op-lib`` as a Target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graphopt.errors import UsageError
from graphopt.runtime.providers import parse_provider
from graphopt.runtime.target import ProviderSpec, Target


def make_target(providers: Sequence[str], threads: int | None, libraries: Sequence[str]) -> Target | None:
    """The target; ``None`` where the command line says nothing, so that a recipe may.

    Raises:
        UsageError: GO-201, a library is no file: left to the session, it would pass for a model that cannot be run.
        RuntimeFailure: GO-601, an unknown provider.
    """
    for library in libraries:
        if not Path(library).is_file():
            raise UsageError("GO-201", "--custom-op-lib names no file", where=library)
    if not providers and threads is None and not libraries:
        return None
    specs = tuple(parse_provider(text) for text in providers) or (ProviderSpec(),)
    return Target(specs, 1 if threads is None else threads, tuple(libraries))
