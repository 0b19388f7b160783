"""What became of each pass: a closed set of outcomes, with the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.model.model import Model
from graphopt.pipeline.contract import Json, PassResult
from graphopt.pipeline.recipe import Step


class OutcomeKind(Enum):
    """The closed set of what can become of a pass."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    ROLLED_BACK = "rolled back"
    FAILED = "failed"


@dataclass(frozen=True)
class CheckResult:
    """One check made around a pass.

    Attributes:
        name: short name, e.g. ``outputs``.
        passed: whether it held; ``None``: it could not be made, and ``message`` says why.
        message: one sentence.
        figures: the numbers.
    """

    name: str
    passed: bool | None
    message: str = ""
    figures: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one pass.

    Attributes:
        step: the pass.
        kind: what became of it.
        reason: why it was skipped, rolled back or failed; empty otherwise.
        result: what the pass said it did, where it got so far.
        checks: the checks made, in order.
        error: the error that ended it, where one did.
        seconds: wall time, checks included.
        nodes: node count before and after.
    """

    step: Step
    kind: OutcomeKind
    reason: str = ""
    result: PassResult | None = None
    checks: tuple[CheckResult, ...] = ()
    error: GraphoptError | None = None
    seconds: float = 0.0
    nodes: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.step.name

    @property
    def resolved_options(self) -> dict[str, Any]:
        """The options with measured decisions written in; defaults are left out."""
        options = self.step.rewrite.options
        if self.result is not None and self.result.resolved is not None:
            options = self.result.resolved
        plain: dict[str, Any] = options.model_dump(mode="json", exclude_defaults=True)
        return plain


@dataclass(frozen=True)
class Stage:
    """The model after one pass, and how it came about."""

    outcome: Outcome
    model: Model
