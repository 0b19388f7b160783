"""The table of rule families; one rule a file beside it."""

from __future__ import annotations

from graphopt.pipeline.families import Family

FAMILIES: tuple[Family, ...] = ()
"""In the order in which their rules are tried at a node."""
