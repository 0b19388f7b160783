"""A pass made of rule families, of which it keeps those that pay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field, field_validator

from graphopt.model.model import Model
from graphopt.nearest import did_you_mean
from graphopt.pipeline.checks import checker_fault
from graphopt.pipeline.contract import TIMED_NOTE, Json, Pass, PassContext, PassOptions, PassResult, Site, Skip
from graphopt.pipeline.families import ROUNDS, Family, apply_families
from graphopt.pipeline.paying import Candidate, Choice, SessionBench, Tried, choose
from graphopt.pipeline.rules import Limits, Scope
from graphopt.pipeline.selection import Selection
from graphopt.runtime.latency import PairedLatency


class FamilyOptions(PassOptions):
    """Options of a pass made of rule families."""

    families: tuple[str, ...] | None = Field(
        None, description="rule families to apply, unmeasured; by default those that measuring shows to pay"
    )
    exclude_families: tuple[str, ...] = Field((), description="rule families to leave out")

    @classmethod
    def known(cls) -> tuple[Family, ...]:
        """The families, in the order in which their rules are tried at a node."""
        return ()

    @field_validator("families", "exclude_families", mode="before")
    @classmethod
    def _single(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("families", "exclude_families")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        families = [family.name for family in cls.known()]
        unknown = sorted(set(names or ()) - set(families))
        if unknown:
            near = [f"{name}, {did_you_mean(name, families)}".rstrip(", ") for name in unknown]
            raise ValueError(f"no family is called {'; '.join(near)}; the families are {', '.join(families)}")
        return names


OptionsT = TypeVar("OptionsT", bound=FamilyOptions)


@dataclass(frozen=True)
class _Written:
    """A model with some families applied."""

    model: Model
    sites: tuple[Site, ...]
    skips: tuple[Skip, ...]
    fired: tuple[str, ...]


class FamilyPass(Pass[OptionsT]):
    """Base of passes made of rule families; a subclass says which, by its options' ``known``."""

    def run(self, ctx: PassContext) -> PassResult:
        """See ``Pass.run``."""
        families = self._chosen()
        explicit = self.options.families is not None
        choice = None if explicit else self._measured(ctx, families)
        if choice is not None:
            kept = choice.kept
        else:
            kept = tuple(family.name for family in families if family.default or explicit)
        done = self._write(ctx.model, ctx.selection, families, kept, ctx)
        counts = Counter(site.rule for site in done.sites)
        decided = {"families": done.fired, "exclude_families": ()}
        return PassResult(
            modified=bool(done.sites),
            applied=done.sites,
            skipped=done.skips,
            summary={"rules": dict(sorted(counts.items())), **figures(choice)},
            notes=tuple(notes(choice, str(ctx.target.provider))),
            resolved=self.options.model_copy(update=decided) if done.fired else None,
            tuning_seconds=choice.seconds if choice is not None else 0.0,
        )

    def _chosen(self) -> tuple[Family, ...]:
        """The families that the options leave in, in the order of the table."""
        wanted, left_out = self.options.families, self.options.exclude_families
        return tuple(
            family
            for family in self.options.known()
            if (wanted is None or family.name in wanted) and family.name not in left_out
        )

    def _measured(self, ctx: PassContext, families: Sequence[Family]) -> Choice | None:
        """What measuring says; ``None``: the model cannot be run."""
        if ctx.feeds is None:
            return None
        before = ctx.model.clone()
        held_to_it = not checker_fault(before)

        def build(names: Sequence[str]) -> Candidate:
            model = before.clone()
            selection = Selection.of(model, self.options.only, self.options.skip)
            written = self._write(model, selection, families, names, ctx)
            if written.fired and held_to_it:
                model.check()
            return Candidate(model, written.fired)

        bench = SessionBench(before, ctx.source, ctx.feeds, ctx.compared or ctx.feeds, ctx.target, ctx.progress)
        defaults = {family.name: family.default for family in families}
        return choose(defaults, build, bench, seconds=ctx.tune_time if ctx.time_budget > 0 else 0.0)

    def _write(
        self, model: Model, selection: Selection, families: Sequence[Family], names: Sequence[str], ctx: PassContext
    ) -> _Written:
        """Apply the families called ``names`` to ``model``, in place, and tidy it."""
        applied = [family for family in families if family.name in names]
        held = model.editor.nodes()  # the selection knows nodes by id: none of them may be freed and its id taken
        sites: list[Site] = []
        for _ in range(ROUNDS):
            done, skips = apply_families(Scope(model, selection, Limits(0), target=ctx.target), applied)
            if not done:
                break
            sites += done
            # Rules look at shapes, and those of new tensors are known only now.
            model.finish()
        held.clear()
        rules = {site.rule for site in sites}
        fired = tuple(f.name for f in applied if any(rule.name in rules for rule in f.rules))
        return _Written(model, tuple(sites), tuple(skips), fired)


def figures(choice: Choice | None) -> dict[str, Json]:
    """What was measured, for the report: speed-ups are of the set with a family over the set without it."""
    if choice is None or not choice.tried:
        return {}
    tried: dict[str, Json] = {}
    for one in choice.tried:
        timed = _interval(one.timed) if one.timed is not None else {}
        tried[one.name] = {
            "kept": one.kept,
            "finding": one.finding,
            **timed,
            **({"fault": one.fault} if one.fault else {}),
        }
    own: dict[str, Json] = {"own_file": _interval(choice.own)} if choice.own is not None else {}
    return {"families": tried, **own}


def _interval(timed: PairedLatency) -> dict[str, Json]:
    return {"speedup": timed.ratio, "low_speedup": timed.low, "high_speedup": timed.high}


def notes(choice: Choice | None, provider: str) -> Iterator[str]:
    """What was decided, in sentences."""
    if choice is None:
        return
    for one in choice.tried:
        if one.finding == "unsound":
            yield f"taken back: {one.name} ({one.fault})"
    slower = choice.own is not None and choice.own.slower
    timed = [one for one in choice.tried if one.timed is not None]
    gone = [one for one in timed if not one.kept and (slower or one.finding != "pays")]
    parts = [*_listed("kept", [one for one in timed if one.kept]), *_listed("taken back", gone)]
    if parts:
        yield f"{TIMED_NOTE}{provider}, each family beside the rest: {'; '.join(parts)}"
    if choice.own is not None:
        what = "nothing is kept, since all of it together runs" if slower else "together"
        own = choice.own
        speed = f"{own.ratio:.2f}x [{own.low:.2f}, {own.high:.2f}]"
        yield f"{TIMED_NOTE}{provider}: {what} {speed} as fast as your own file"


def _listed(what: str, tried: Sequence[Tried]) -> Iterator[str]:
    if tried:
        yield f"{what} {', '.join(_figure(one) for one in tried)}"


def _figure(one: Tried) -> str:
    assert one.timed is not None
    doubt = " (inconclusive)" if one.finding == "inconclusive" else ""
    return f"{one.name} {one.timed.ratio:.2f}x{doubt}"
