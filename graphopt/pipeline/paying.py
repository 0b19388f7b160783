"""Which rule families pay on a model: measured, never assumed.

Every family that changes something is timed in interleaved pairs against the set without it, those first that are not
kept by default. One that costs time leaves, and the rest is looked at again, until a whole round takes nothing out;
where the interval holds 1, the family's default decides, and it is overruled only by several openings of both sets.
What is left is timed against the user's own file, in several openings too, and nothing is kept where it is slower with
certainty. A family that does not open, or moves the outputs too far,
is dropped on its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from graphopt.data.samples import Samples
from graphopt.errors import GraphoptError
from graphopt.model.model import Model
from graphopt.pipeline.checks import Grounds, numeric_checks
from graphopt.pipeline.contract import Safety
from graphopt.progress import Progress, Silent
from graphopt.runtime.latency import PairedLatency, measure_pair
from graphopt.runtime.openings import measure_openings
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import Target

LONGEST = 6.0
"""Seconds of one measurement, at most."""
LONGEST_OPENINGS = 15.0
"""Seconds of one measurement over several openings, at most."""
HALF_WIDTH = 0.01
"""What single families bring is small: the interval is wanted this narrow, relative to the ratio."""

Finding = Literal["pays", "costs time", "inconclusive", "not timed", "unsound"]


@dataclass(frozen=True)
class Candidate:
    """A model written with some families.

    Attributes:
        model: the model, tidied.
        fired: names of the families that changed something in it.
    """

    model: Model
    fired: tuple[str, ...]


Build = Callable[[Sequence[str]], Candidate]
"""Writes a model with these families; raises ``GraphoptError`` where it comes out invalid."""


class Bench(Protocol):
    """Where candidates are checked and timed."""

    def fault(self, candidate: Model) -> str:
        """What is wrong with a candidate, in one sentence; empty where nothing is."""
        ...

    def compare(self, baseline: Model, candidate: Model, seconds: float) -> PairedLatency:
        """Time two models against each other, for at most about ``seconds``."""
        ...

    def confirm(self, baseline: Model, candidate: Model, seconds: float) -> PairedLatency:
        """The same in several openings of both, where there is time for them."""
        ...

    def against_own(self, candidate: Model, seconds: float) -> PairedLatency:
        """Time a candidate against the user's own file, as ``confirm`` does."""
        ...


@dataclass(frozen=True)
class SessionBench:
    """Checks and times candidates in onnxruntime, as the manager and the final judgement will.

    Attributes:
        before: the model that the pass was handed; outputs are compared with its.
        source: the user's own model; the result is timed against it.
        feeds: what both are timed on.
        compared: what their outputs are compared on.
        target: where to run.
        progress: where measurements report.
    """

    before: Model
    source: Model
    feeds: Samples
    compared: Samples
    target: Target
    progress: Progress = field(default_factory=Silent)

    def fault(self, candidate: Model) -> str:
        """See ``Bench.fault``."""
        grounds = Grounds(self.compared, "", self.target)
        for check in numeric_checks(self.before, candidate, Safety.ROUNDING, None, grounds):
            if check.passed is False:
                return f"{check.name} check: {check.message}"
        return ""

    def compare(self, baseline: Model, candidate: Model, seconds: float) -> PairedLatency:
        """See ``Bench.compare``."""
        return measure_pair(
            self._open(baseline),
            self._open(candidate),
            self.feeds,
            max_seconds=seconds,
            half_width=HALF_WIDTH,
            progress=self.progress,
        )

    def confirm(self, baseline: Model, candidate: Model, seconds: float) -> PairedLatency:
        """See ``Bench.confirm``."""
        return measure_openings(
            (lambda: self._open(baseline), lambda: self._open(candidate)),
            self.feeds,
            max_seconds=seconds,
            half_width=HALF_WIDTH,
            progress=self.progress,
        )

    def against_own(self, candidate: Model, seconds: float) -> PairedLatency:
        """See ``Bench.against_own``."""
        found = self.confirm(self.source, candidate, seconds)
        # Too large for several openings: nothing is taken back on the word of one.
        return self.confirm(self.source, candidate, seconds) if found.slower and found.openings == 1 else found

    def _open(self, model: Model) -> Session:
        target = self.target
        return open_session(
            model,
            provider=target.provider,
            threads=target.threads,
            custom_op_libraries=target.custom_op_libraries,
        )


@dataclass(frozen=True)
class Tried:
    """What was found out about one family.

    Attributes:
        name: the family.
        kept: whether it is in the result.
        finding: what timing said; ``unsound``: it was dropped before it could be timed.
        timed: the set without it against the set with it: above 1, the family makes the model faster.
        fault: what is wrong with it, where it is unsound.
    """

    name: str
    kept: bool
    finding: Finding
    timed: PairedLatency | None = None
    fault: str = ""


@dataclass(frozen=True)
class Choice:
    """The families that are kept, and why.

    Attributes:
        kept: their names, in the order of the table.
        tried: what was found out about each family that changed something, in the order of the table.
        own: the user's own file against the kept set; ``None``: not timed.
        seconds: how long it took to find out.
    """

    kept: tuple[str, ...]
    tried: tuple[Tried, ...]
    own: PairedLatency | None
    seconds: float


def choose(
    defaults: Mapping[str, bool],
    build: Build,
    bench: Bench,
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Find the families to keep.

    Args:
        defaults: the families, in order, and whether each is kept where measuring does not tell.
        build: writes a model with some of them.
        bench: checks and times.
        seconds: when the last measurement may begin; 0: nothing is timed, and the defaults decide.
        clock: what is read for it, in seconds.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the user's own file does not open or run.
    """
    return _Search(dict(defaults), build, bench, seconds, clock).run()


class _Search:
    """One search; ``allowed`` shrinks, ``current`` is the model written with it."""

    def __init__(
        self, defaults: Mapping[str, bool], build: Build, bench: Bench, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._defaults = defaults
        self._build = build
        self._bench = bench
        self._clock = clock
        self._started = clock()
        self._seconds = seconds
        self._tried: dict[str, Tried] = {}

    def run(self) -> Choice:
        timing = self._seconds > 0
        allowed = tuple(name for name, default in self._defaults.items() if default or timing)
        allowed, current = self._sound(allowed)
        own: PairedLatency | None = None
        if current is not None:
            if timing:
                allowed, current = self._without_costly(allowed, current)
            allowed, current = self._by_default(allowed, current)
            if timing and current.fired and self._left() > 0:
                own = self._bench.against_own(current.model, min(LONGEST_OPENINGS, max(self._left(), 0.0)))
        nothing = current is None or (own is not None and own.slower)
        kept = () if nothing or current is None else current.fired
        tried = tuple(self._last_word(name, kept) for name in self._defaults if name in self._tried)
        return Choice(kept, tried, own, self._clock() - self._started)

    def _left(self) -> float:
        return self._seconds - (self._clock() - self._started)

    def _last_word(self, name: str, kept: Sequence[str]) -> Tried:
        found = self._tried[name]
        return Tried(name, name in kept, found.finding, found.timed, found.fault)

    def _attempt(self, names: Sequence[str]) -> tuple[Candidate | None, str]:
        """A candidate that opens, runs and computes the same, or what is wrong with it."""
        try:
            candidate = self._build(names)
        except GraphoptError as error:
            return None, str(error)
        if not candidate.fired:
            return candidate, ""
        fault = self._bench.fault(candidate.model)
        return (None, fault) if fault else (candidate, "")

    def _sound(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], Candidate | None]:
        """All families that can stand together; one at a time where the whole is unsound."""
        whole, _ = self._attempt(names)
        if whole is None:
            good: tuple[str, ...] = ()
            for name in names:
                candidate, fault = self._attempt((*good, name))
                if candidate is None:
                    self._tried[name] = Tried(name, False, "unsound", fault=fault)
                else:
                    good, whole = (*good, name), candidate
            names = good
        for name in whole.fired if whole is not None else ():
            self._tried[name] = Tried(name, True, "not timed")
        return names, whole

    def _without_costly(self, allowed: tuple[str, ...], current: Candidate) -> tuple[tuple[str, ...], Candidate]:
        """Take families out that cost time, until a whole round takes none."""
        pending = deque(sorted(current.fired, key=lambda name: self._defaults[name]))
        while pending and self._left() > 0:
            name = pending.popleft()
            rest = tuple(n for n in allowed if n != name)
            without = self._better_without(name, rest, current, len(pending))
            if without is None:
                continue
            allowed, current = rest, without
            first = [n for n in pending if n in without.fired]
            # What was timed beside a family that cost time is looked at again, after what was not looked at yet.
            again = without.fired if self._tried[name].finding == "costs time" else self._unseen(without.fired)
            pending = deque([*first, *(n for n in again if n not in first)])
            for fresh in without.fired:
                self._tried.setdefault(fresh, Tried(fresh, True, "not timed"))
        return allowed, current

    def _unseen(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self._tried]

    def _better_without(self, name: str, rest: Sequence[str], current: Candidate, more: int) -> Candidate | None:
        """The set without ``name`` where that is to be preferred."""
        try:
            without = self._build(rest)
            timed = self._bench.compare(without.model, current.model, self._share(more))
            if timed.slower if self._defaults[name] else timed.faster:
                # Two sessions of one and the same model were seen 5 % apart, with certainty: against its default a
                # family is judged by several openings.
                timed = self._bench.confirm(without.model, current.model, self._share(more, LONGEST_OPENINGS))
        except GraphoptError:
            return None  # the rest does not stand without it, the whole does
        finding: Finding = "pays" if timed.faster else "costs time" if timed.slower else "inconclusive"
        self._tried[name] = Tried(name, True, finding, timed)
        leaves = finding == "costs time" or (finding == "inconclusive" and not self._defaults[name])
        return without if leaves and not (without.fired and self._bench.fault(without.model)) else None

    def _share(self, more: int, longest: float = LONGEST) -> float:
        """Seconds for a measurement with ``more`` to come, and the user's own file; ``longest`` at most."""
        return min(longest, max(self._left(), 0.0) / (more + 2))

    def _by_default(self, allowed: tuple[str, ...], current: Candidate) -> tuple[tuple[str, ...], Candidate]:
        """Take out what is not kept by default and could not be timed."""
        rest = tuple(
            n for n in allowed if self._defaults[n] or n not in self._tried or self._tried[n].finding != "not timed"
        )
        if rest == allowed or not any(n in current.fired for n in allowed if n not in rest):
            return allowed, current
        candidate, fault = self._attempt(rest)
        if candidate is None:
            for name in current.fired:
                self._tried[name] = Tried(name, False, "unsound", fault=fault)
            return (), Candidate(current.model, ())
        return rest, candidate
