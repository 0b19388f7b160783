"""Runs chosen rules of `fuse` on small models and compares what comes out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphopt.data.synthetic import synthetic_samples
from graphopt.model.model import Model
from graphopt.pipeline.contract import Site, Skip
from graphopt.pipeline.families import Family, apply_families
from graphopt.pipeline.rules import GraphRule, Limits, Rule, Scope
from graphopt.pipeline.selection import Selection
from graphopt.runtime.session import open_session

ROUNDING = 1e-5
"""Bound of max|Δ| / max|y| for a ROUNDING rule (design §4), before the model's own noise is added to it."""


def examples() -> int:
    """How many random graphs a rule is tried on: 200, or what ``GRAPHOPT_EXAMPLES`` says."""
    return int(os.environ.get("GRAPHOPT_EXAMPLES", "200"))


@dataclass(frozen=True)
class Done:
    """One run: the model before and after, and what was reported."""

    before: Model
    after: Model
    sites: list[Site]
    skips: list[Skip]

    @property
    def ops(self) -> list[str]:
        """Op types left, in graph order."""
        return [node.op for node in self.after.editor.nodes()]

    @property
    def rules(self) -> Counter[str]:
        """How often each rule was applied."""
        return Counter(site.rule for site in self.sites)

    def reasons(self, rule: str) -> list[str]:
        """What a rule gave as reasons for leaving places alone."""
        return [skip.reason for skip in self.skips if skip.rule == rule]


def rewritten(proto: onnx.ModelProto, *rules: type[Rule] | type[GraphRule]) -> Done:
    """Apply the rules to a fixed point and tidy up, as the manager would."""
    source = Model.from_proto(proto)
    candidate = source.clone()
    scope = Scope(candidate, Selection.of(candidate, (), ()), Limits(0))
    sites, skips = apply_families(scope, [Family("tested", "", rules)])
    candidate.finish()
    candidate.check()
    assert candidate.interface == source.interface
    return Done(source, candidate, sites, skips)


def distance(done: Done, feed: Mapping[str, Any] | None = None, **dims: int) -> float:
    """max|Δ| / max|y| over all outputs with the runtime's own optimizations off, less the model's own noise.

    The own noise is four times the same figure for the source alone, optimizations off against on, as the manager
    grants it.
    """
    if feed is None:
        feed = synthetic_samples(done.before.interface, seed=0, dims=dims, shapes={}, bounds={}, count=1)[0]
    plain = open_session(done.before, optimization="none").run(feed)
    optimized = open_session(done.before).run(feed)
    result = open_session(done.after, optimization="none").run(feed)
    far = 0.0
    for name, exact in plain.items():
        noise = 4 * _relative(exact, optimized[name])
        error = _relative(exact, result[name])
        far = max(far, 0.0 if error <= noise else error)
    return far


def _relative(exact: Any, other: Any) -> float:
    exact, other = np.asarray(exact, np.float64), np.asarray(other, np.float64)
    assert exact.shape == other.shape
    assert np.array_equal(np.isnan(exact), np.isnan(other))
    finite = np.isfinite(exact)
    assert np.array_equal(exact[~finite & ~np.isnan(exact)], other[~finite & ~np.isnan(exact)])
    scale = float(np.abs(exact[finite]).max(initial=0.0))
    delta = float(np.abs(exact[finite] - other[finite]).max(initial=0.0))
    return delta / scale if scale else delta
