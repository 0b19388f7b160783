"""The table of rule families; one rule a file beside it."""

from __future__ import annotations

from graphopt.passes.fuse.absorb_pad import AbsorbPad
from graphopt.passes.fuse.compose_transposes import ComposeTransposes
from graphopt.passes.fuse.compose_views import ComposeViews
from graphopt.pipeline.families import Family

FAMILIES: tuple[Family, ...] = (
    Family("pads", "Conv and pools pad for themselves", (AbsorbPad,)),
    Family("views", "chains of reshapes and transposes become one", (ComposeTransposes, ComposeViews)),
)
"""In the order in which their rules are tried at a node."""
