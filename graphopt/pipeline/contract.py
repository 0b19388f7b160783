"""What a pass is.

A pass is a class with a name, a safety class and options; ``run`` edits the candidate model it is handed and says what
it did and what it left alone, with reasons. Everything around it (copying the model, removing dead code, inferring
shapes, checking, committing or dropping the candidate) is the manager's work.

The form follows xDSL (a pass is data whose fields are its command line, parser and documentation), onnx-ir
(``requires`` and ``ensures`` around the work) and onnxscript (a refusal carries its reason and the place).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, TypeAlias, TypeVar, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from graphopt.analysis.cache import Analyses
from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.pipeline.selection import Selection
from graphopt.progress import Progress, Silent
from graphopt.runtime.target import Target

if TYPE_CHECKING:
    from graphopt.model.editor import GraphEditor

Json: TypeAlias = Union[str, int, float, bool, None, Sequence["Json"], Mapping[str, "Json"]]  # noqa: UP007 - recursive
"""A value that a report can hold."""

TIMED_NOTE = "latency on "
"""Notes that a clock decided begin like this: two reports are compared without them."""

NO_SAMPLES = "there are no calibration samples: give --data, or --calib and --eval"
"""Why a pass that needs samples is skipped where samples are all that it lacks."""


class Safety(Enum):
    """How far the outputs may move; the manager checks each class accordingly (design §4)."""

    EXACT = "exact"
    """Bit-identical outputs with the runtime's own optimizations off."""
    ROUNDING = "rounding"
    """max|Δ| / max|y| ≤ max(1e-5, 4 × the source's own optimized-against-unoptimized noise)."""
    APPROXIMATE = "approximate"
    """The error is reported per output and obeys the gates."""


Patterns = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""Selection patterns; a single one may be written without brackets."""


class PassOptions(BaseModel):
    """Base of every pass's options. The fields are the recipe's keys, the command line's syntax and the docs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    only: Patterns = Field(
        (), description="touch only these: node names, globs, op:TYPE, or a region FROM_TENSOR..TO_TENSOR"
    )
    skip: Patterns = Field((), description="leave these alone; same forms as `only`, and wins over it")


class Refusal(Exception):
    """Raised by a pass before its first edit: it does not apply to this model, and this is why.

    Args:
        reason: one readable sentence.
        where: the node or tensor it is about, if it is about one.
    """

    def __init__(self, reason: str, where: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where


class Broken(Exception):
    """Raised by ``ensures``: what must hold after the pass does not.

    Args:
        check: short name of what failed, e.g. ``fusion count``.
        evidence: the figures that show it.
    """

    def __init__(self, check: str, message: str, evidence: Mapping[str, Json] | None = None) -> None:
        super().__init__(message)
        self.check = check
        self.evidence: dict[str, Json] = dict(evidence or {})


@dataclass(frozen=True)
class Site:
    """One place a pass changed.

    Attributes:
        where: node or tensor name.
        what: what was done there, in a few words.
        rule: the rule that did it, where a pass has several.
        figures: numbers worth reporting about this place (e.g. sparsity, channels kept).
    """

    where: str
    what: str
    rule: str = ""
    figures: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """One place a pass looked at and left alone, with a reason a user can read."""

    where: str
    reason: str
    rule: str = ""


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        modified: whether the model was changed; cross-checked against the model's bytes.
        headline: what was done, in one line of the closing table, e.g. ``9 of 10 layers in INT8``.
        applied: places changed.
        skipped: places left alone, with reasons.
        summary: totals for the report, e.g. ``{"sparsity": 0.5}``.
        notes: whole sentences the user should read (not per place).
        oracle: a model that the candidate must equal within ROUNDING, checked by the manager; e.g. the masked model of
            a channel removal.
        resolved: the options with every decision that measuring made written in; ``None``: the options as given.
        preserves: analyses that are still valid.
        tuning_seconds: how much of ``PassContext.tune_time`` was used.
        dropped_inputs: inputs with a default value that became constants. It is the one change of interface that a
            pass may make; the manager expects exactly these inputs to be gone, and nothing else.
    """

    modified: bool
    applied: tuple[Site, ...] = ()
    skipped: tuple[Skip, ...] = ()
    summary: Mapping[str, Json] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    oracle: Model | None = None
    resolved: PassOptions | None = None
    preserves: frozenset[Callable[[Model], object]] = frozenset()
    tuning_seconds: float = 0.0
    headline: str = ""
    dropped_inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassContext:
    """What a pass works with. The candidate model is the pass's own copy: a failed pass leaves no trace.

    Attributes:
        model: the candidate, edited through ``model.editor``.
        source: the user's own model, never edited: the float reference for compensation and measuring.
        analyses: facts about ``model`` as it was handed over, computed once.
        selection: which nodes the user's ``only`` / ``skip`` let this pass touch.
        samples: calibration samples; ``None`` when the user gave none, or the source does not run on them.
        feeds: a few feeds on which the source runs, to time candidates on: the user's, or seeded synthetic ones;
            ``None`` where it cannot be run.
        compared: those, and one of another batch where the source takes it, to compare candidates on.
        target: provider, threads and instruction set the result is for.
        seed: for everything random.
        progress: where to report.
        time_budget: seconds this pass may spend on measuring; 0: no measuring.
        fed: inputs with a default value for which the user's samples give values all the same.
        tune_time: seconds left to the run for finding out which rule families pay; 0: their defaults decide.
    """

    model: Model
    source: Model
    analyses: Analyses
    selection: Selection
    samples: Samples | None
    target: Target
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    time_budget: float = 60.0
    feeds: Samples | None = None
    compared: Samples | None = None
    tune_time: float = 120.0
    fed: frozenset[str] = frozenset()

    @property
    def editor(self) -> GraphEditor:
        """The candidate's editor."""
        return self.model.editor


OptionsT = TypeVar("OptionsT", bound=PassOptions)


class Pass(abc.ABC, Generic[OptionsT]):
    """Base of every pass; see ``docs/guides/writing-a-pass.md``.

    Class attributes:
        name: command line and recipe name, in the field's words.
        code: three-letter prefix of its diagnostics.
        safety: how far it may move the outputs.
        Options: its options.
        after: names of passes that, where a recipe holds both, must come earlier.
        needs_samples: ``run`` cannot work without calibration samples (it is refused with exit 4 when named);
            ``requires`` is asked all the same.
        idempotent: a second run changes nothing.
    """

    name: ClassVar[str]
    code: ClassVar[str]
    safety: ClassVar[Safety]
    Options: ClassVar[type[PassOptions]] = PassOptions
    after: ClassVar[tuple[str, ...]] = ()
    needs_samples: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def requires(self, ctx: PassContext) -> None:
        """Raise ``Refusal`` when the pass does not apply to the model at all."""

    @abc.abstractmethod
    def run(self, ctx: PassContext) -> PassResult:
        """Edit ``ctx.model`` and say what was done."""

    def ensures(self, ctx: PassContext, result: PassResult) -> None:
        """Raise ``Broken`` when something that must hold afterwards does not."""
