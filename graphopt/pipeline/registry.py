"""Where passes come from: the entry-point group ``graphopt.passes``, built-in and third-party alike.

Nothing is registered by import side effects; a pass module is imported only when its pass is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from graphopt.errors import UsageError
from graphopt.nearest import did_you_mean
from graphopt.pipeline.contract import Pass, PassOptions, Safety

GROUP = "graphopt.passes"


@dataclass(frozen=True)
class Registered:
    """One pass that is installed.

    Attributes:
        name: its name on the command line and in recipes.
        source: the distribution that brings it.
        entry: the entry point; loading it imports the pass.
    """

    name: str
    source: str
    entry: EntryPoint


class Registry:
    """The passes that are installed, by name."""

    def __init__(self, found: Iterable[Registered]) -> None:
        self._passes: dict[str, Registered] = {}
        for one in found:
            other = self._passes.get(one.name)
            if other is not None and other.entry.value != one.entry.value:
                raise UsageError(
                    "GO-206",
                    f"two packages bring a pass called {one.name!r}",
                    where=f"{other.source} and {one.source}",
                    hint="uninstall one of them",
                )
            self._passes[one.name] = one

    @classmethod
    def discover(cls) -> Registry:
        """Everything installed in this environment.

        Raises:
            UsageError: GO-206, two packages bring the same name.
        """
        return cls(
            Registered(e.name, e.dist.name if e.dist is not None else "unknown", e) for e in entry_points(group=GROUP)
        )

    def names(self) -> list[str]:
        """Names of all passes, sorted."""
        return sorted(self._passes)

    def source(self, name: str) -> str:
        """The distribution that brings the pass ``name``."""
        return self._find(name).source

    def load(self, name: str) -> type[Pass[Any]]:
        """Import the pass ``name``.

        Raises:
            UsageError: GO-202, no such pass; GO-206, it cannot be imported or is not a pass.
        """
        found = self._find(name)
        try:
            loaded = found.entry.load()
        except MemoryError:
            raise  # of the process, not of the pass
        except Exception as error:
            raise UsageError(
                "GO-206",
                f"the pass {name!r} cannot be imported",
                where=f"{found.entry.value} of {found.source}",
                why=f"{type(error).__name__}: {error}",
            ) from error
        problem = _contract_problem(loaded, name)
        if problem:
            raise UsageError("GO-206", f"the pass {name!r} {problem}", where=f"{found.entry.value} of {found.source}")
        checked: type[Pass[Any]] = loaded
        return checked

    def _find(self, name: str) -> Registered:
        if name not in self._passes:
            raise UsageError(
                "GO-202",
                f"there is no pass called {name!r}",
                hint=did_you_mean(name, self._passes, most=2) or f"installed: {', '.join(self.names())}",
            )
        return self._passes[name]


def _contract_problem(loaded: object, name: str) -> str | None:
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        return "is not a subclass of graphopt.pipeline.contract.Pass"
    if getattr(loaded, "name", None) != name:
        return f"calls itself {getattr(loaded, 'name', None)!r}"
    if not isinstance(getattr(loaded, "safety", None), Safety):
        return "declares no safety class"
    if not issubclass(loaded.Options, PassOptions):
        return "has options that are not PassOptions"
    return None
