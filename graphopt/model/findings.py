"""What there is to say about a model before it is used: checks find it, the loader raises it, ``check`` lists it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from graphopt.errors import GraphoptError, LimitError, ModelError

Severity = Literal["error", "warning", "note"]
"""An error: the model is refused. A warning: it is used, and something will not go well. A note: worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        code: one of ``errors.CODES``.
        severity: whether the model is refused for it.
        what: one sentence.
        where: the node, tensor or graph it is about; ``None``: the model.
        why: the cause, where it is known and not obvious.
        hint: what to do next.
    """

    code: str
    severity: Severity
    what: str
    where: str | None = None
    why: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: GraphoptError, severity: Severity = "error") -> Finding:
        """What an error says, as a finding."""
        return cls(error.code, severity, error.what, error.where, error.why, error.hint)

    def as_error(self) -> GraphoptError:
        """The exception that says the same: a ``LimitError`` for GO-7xx, else a ``ModelError``."""
        family = LimitError if self.code.startswith("GO-7") else ModelError
        return family(self.code, self.what, where=self.where, why=self.why, hint=self.hint)


def raise_first(findings: Iterable[Finding]) -> None:
    """Raises the first error among the findings; later checks are not even made when ``findings`` is lazy.

    Raises:
        ModelError: what the finding says.
        LimitError: likewise.
    """
    for finding in findings:
        if finding.severity == "error":
            raise finding.as_error()
