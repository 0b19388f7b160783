"""The pass `freeze-initializers`: initializers that are also graph inputs become constants."""

from __future__ import annotations

import fnmatch
from typing import ClassVar

from pydantic import Field

from graphopt.errors import UsageError
from graphopt.nearest import did_you_mean
from graphopt.pipeline.contract import (
    TIMED_NOTE,
    Json,
    Pass,
    PassContext,
    PassOptions,
    PassResult,
    Patterns,
    Safety,
    Site,
    Skip,
)
from graphopt.pipeline.overridable import Listing, describe_gain, freeze, freezing_gain, listing

FED = "the samples give values for it: a deliberate input"
KEPT = "left out by the option `keep`"
NOT_SELECTED = "a node that reads it is left out by `only` or `skip`"
SOME = "only some of the weights are listed, which looks deliberate; --freeze-initializers (partial = true) freezes it"


class FreezeOptions(PassOptions):
    """Options of `freeze-initializers`."""

    partial: bool = Field(True, description="freeze also where only some of the weights are listed among the inputs")
    keep: Patterns = Field((), description="inputs that stay: names or globs")


class FreezeInitializers(Pass[FreezeOptions]):
    """Turn initializers that are also graph inputs into constants.

    What it does:
        Takes initializers off the list of graph inputs. From then on callers cannot give them another value, and the
        runtime knows theirs: it folds BatchNormalization and constants, fuses activations and lays weights out
        ahead of time. Nothing else of the interface changes, and the manager checks that.

    When it applies:
        To files of IR version 4 and later, where such an initializer is an input with a default value. Old exporters
        listed every weight among the inputs, because IR version 3 asked for it; newer files often still do. The
        default run freezes exactly these (`partial = false`) and says so; `--keep-overridable` leaves them. Where only
        some weights are listed, somebody may have meant it: they are kept, the report and `graphopt inspect` name them
        and what freezing them would bring, measured, and `--freeze-initializers` does it. Naming the pass is consent.

    When it refuses:
        Inputs that the user's samples give values for, that `keep` names, or that feed a node which `only` or `skip`
        leaves out; each is in the report. Below IR version 4 initializers are constants anyway, and their listing
        among the inputs is kept.

    Safety:
        ROUNDING. No number of the model changes, and with the runtime's optimizations and its packing of weights both
        off, outputs are bit-identical. Packing cannot be told from the other optimizations by their switch: a weight
        that became constant is laid out ahead of time, and its kernel then sums in another order (measured: up to
        6e-7 of the largest output on small models).

    Options:
        `keep` and `partial` decide together: a kept input stays even where everything else is frozen.

    Example:
        `graphopt run model.onnx -o out.onnx --freeze-initializers`

        In a recipe:

            [[pass]]
            name = "freeze-initializers"
            keep = ["threshold"]

    Cost:
        None. Where inputs are kept because only some weights are listed, up to 10 s of timing.

    References:
        ONNX, `docs/IR.md`, "Graphs": an initializer of the name of a graph input is its default value (since IR
        version 4).
    """

    name: ClassVar[str] = "freeze-initializers"
    code: ClassVar[str] = "FRZ"
    safety: ClassVar[Safety] = Safety.ROUNDING
    Options: ClassVar[type[PassOptions]] = FreezeOptions

    def run(self, ctx: PassContext) -> PassResult:
        """See ``Pass.run``."""
        found = listing(ctx.model)
        self._require_matches(found)
        reasons = {name: self._why_kept(name, found, ctx) for name in found.names}
        frozen = tuple(name for name, reason in reasons.items() if not reason)
        skipped = tuple(Skip(name, reason) for name, reason in reasons.items() if reason)
        advice, figures = self._advice(tuple(n for n, reason in reasons.items() if reason == SOME), ctx)
        elements, size = _weight_of(frozen, ctx)
        freeze(ctx.model, frozen)
        summary: dict[str, Json] = {"inputs_frozen": len(frozen), "inputs_kept": len(skipped), **figures}
        if frozen:
            summary |= {"elements_frozen": elements, "bytes_frozen": size}
        return PassResult(
            modified=bool(frozen),
            applied=tuple(Site(name, "is a constant now; callers cannot give it any more") for name in frozen),
            skipped=skipped,
            summary=summary if found.names else {},
            notes=advice,
            dropped_inputs=frozen,
            headline=f"{len(frozen)} inputs with a default are constants now" if frozen else "",
        )

    def _require_matches(self, found: Listing) -> None:
        """Refuse a word of ``keep`` that is no input: a slip there would freeze what was to stay.

        Raises:
            UsageError: GO-207.
        """
        for pattern in self.options.keep:
            if found.names and not any(fnmatch.fnmatchcase(name, pattern) for name in found.names):
                hint = did_you_mean(pattern, found.names, most=3) or "`graphopt inspect -v` lists them"
                raise UsageError("GO-207", f"`keep` names {pattern!r}, which is no input with a default", hint=hint)

    def _why_kept(self, name: str, found: Listing, ctx: PassContext) -> str:
        """Why an input stays; empty: it is frozen."""
        if name in ctx.fed:
            return FED
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.options.keep):
            return KEPT
        if not self._selected(name, ctx):
            return NOT_SELECTED
        return "" if self.options.partial or found.every else SOME

    def _selected(self, name: str, ctx: PassContext) -> bool:
        tensor = ctx.editor.tensor(name)
        readers = [] if tensor is None else ctx.editor.consumers(tensor)
        if not readers:
            # An input that nothing reads belongs to no node that `only` or `skip` could name.
            return not (self.options.only or self.options.skip)
        return all(ctx.selection.allows(node) for node in readers)

    def _advice(self, names: tuple[str, ...], ctx: PassContext) -> tuple[tuple[str, ...], dict[str, Json]]:
        """What freezing the kept ``names`` would bring, where there is time to measure it."""
        if not names or ctx.feeds is None or ctx.time_budget <= 0:
            return (), {}
        gain = freezing_gain(ctx.model, names, ctx.feeds, ctx.target, max_seconds=ctx.time_budget)
        if gain is None:
            return (), {}
        figures: dict[str, Json] = {
            "freezing_speedup": gain.ratio,
            "freezing_low_speedup": gain.low,
            "freezing_high_speedup": gain.high,
        }
        return (f"{TIMED_NOTE}{ctx.target.provider}: {describe_gain(gain, len(names))}",), figures


def _weight_of(names: tuple[str, ...], ctx: PassContext) -> tuple[int, int]:
    """Elements and bytes of the default values of ``names``."""
    arrays = [ctx.model.graph.envelope.defaults[name].values for name in names]
    return sum(int(a.size) for a in arrays), sum(int(a.nbytes) for a in arrays)
