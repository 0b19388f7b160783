"""The pass `fuse`; one rule a file beside it, its families in ``families``."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from pydantic import Field

from graphopt.passes.fuse.families import FAMILIES
from graphopt.pipeline.contract import Pass, PassContext, PassOptions, PassResult, Safety
from graphopt.pipeline.families import apply_families
from graphopt.pipeline.rules import Limits, Scope


class FuseOptions(PassOptions):
    """Options of `fuse`."""

    families: tuple[str, ...] | None = Field(
        None, description="rule families to apply; by default those that measuring shows to pay"
    )


class Fuse(Pass[FuseOptions]):
    """Rewrite float arithmetic into fewer, faster operators."""

    name: ClassVar[str] = "fuse"
    code: ClassVar[str] = "FUS"
    safety: ClassVar[Safety] = Safety.ROUNDING
    Options: ClassVar[type[PassOptions]] = FuseOptions
    after: ClassVar[tuple[str, ...]] = ("simplify",)

    def run(self, ctx: PassContext) -> PassResult:
        """See ``Pass.run``."""
        wanted = self.options.families
        families = [f for f in FAMILIES if (f.default if wanted is None else f.name in wanted)]
        scope = Scope(ctx.model, ctx.selection, Limits(0), target=ctx.target)
        sites, skips = apply_families(scope, families)
        counts = Counter(site.rule for site in sites)
        return PassResult(
            modified=bool(sites),
            applied=tuple(sites),
            skipped=tuple(skips),
            summary={"rules": dict(sorted(counts.items()))},
        )


__all__ = ["FAMILIES", "Fuse", "FuseOptions"]
