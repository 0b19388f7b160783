"""The pass `fuse`; one rule a file beside it, its families in ``families``."""

from __future__ import annotations

from typing import ClassVar

from graphopt.passes.fuse.families import FAMILIES
from graphopt.pipeline.contract import PassOptions, Safety
from graphopt.pipeline.families import Family
from graphopt.pipeline.family_pass import FamilyOptions, FamilyPass


class FuseOptions(FamilyOptions):
    """Options of `fuse`."""

    @classmethod
    def known(cls) -> tuple[Family, ...]:
        """See ``FamilyOptions.known``."""
        return FAMILIES


class Fuse(FamilyPass[FuseOptions]):
    """Rewrite float arithmetic into fewer, faster operators, as far as that pays on this model.

    What it does:
        Applies rewrite rules that change nothing but rounding and that onnxruntime does not apply by itself. Rules
        belong to families, listed below. With time to measure, all families are applied first; then each is timed in
        interleaved pairs against the model without it, and one that makes the model slower, with its whole interval
        below 1, is taken back; where the interval holds 1, the family's default decides, and where a default would be
        overruled, several openings of both have the last word. This is repeated until nothing changes. What is left is
        timed against your own file, and nothing is kept where that is faster with certainty. A family whose result does
        not open in onnxruntime, or whose outputs move beyond ROUNDING, is taken back on its own. All figures are in the
        report; the resolved recipe names the families that were kept, and repeats them without measuring.

    When it applies:
        To the top-level graph of float models. Each rule states its pattern and its conditions below, and fires only
        where shapes, types and constants prove that nothing but rounding changes. No samples are needed: without
        them it is timed on seeded synthetic inputs.

    When it refuses:
        Near misses are in the report, each with its node and reason. Values that another node or a graph output takes
        are kept. QuantizeLinear and DequantizeLinear, operators of other domains, bodies of If, Loop and Scan and
        overridable initializers are never touched, and names of graph inputs and outputs stay. Rewrites that were
        tried and made models slower are in docs/decisions/0005-kept-only-where-it-pays.md, with their figures.

    Safety:
        ROUNDING, checked on every run. Where a rule needs a newer operator set, the whole model is raised to it, and
        only if every operator in it has a tested adapter.

    Options:
        Names of families are those below. `families` applies exactly these, without measuring.

    Example:
        `graphopt run model.onnx -o out.onnx --pass simplify --pass fuse`

        In a recipe:

            [[pass]]
            name = "fuse"
            exclude_families = ["views"]

    Cost:
        Rewriting is linear in nodes and edges. Measuring takes up to six seconds a family, 15 more where its default
        would be overruled, for at most `--tune-time` (120 s) in all; `--no-measure` keeps the defaults.

    References:
        Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference" (folding into weights). Howard et al., 2019, "Searching for MobileNetV3" (hard-swish). Hendrycks
        and Gimpel, 2016, "Gaussian Error Linear Units". Hahn and Meeker, 1991, "Statistical Intervals" (the intervals
        of the timings).
    """

    name: ClassVar[str] = "fuse"
    code: ClassVar[str] = "FUS"
    safety: ClassVar[Safety] = Safety.ROUNDING
    Options: ClassVar[type[PassOptions]] = FuseOptions
    after: ClassVar[tuple[str, ...]] = ("simplify",)


__all__ = ["FAMILIES", "Fuse", "FuseOptions"]
