"""Rule families: rules that are kept, timed and taken back together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.pipeline.contract import Site, Skip
from graphopt.pipeline.nested import nested_skips
from graphopt.pipeline.rewrite import rewrite
from graphopt.pipeline.rules import GraphRule, Rule, Scope

ROUNDS = 8
"""Whole-graph rules and node rules feed each other; each round must shrink something, so few are needed."""


@dataclass(frozen=True)
class Family:
    """Rules that stand or fall together.

    Attributes:
        name: how reports and recipes call it.
        what: what it does, in one line.
        rules: its rules, in the order in which they are tried.
        default: whether it is kept where nothing is measured.
    """

    name: str
    what: str
    rules: tuple[type[Rule] | type[GraphRule], ...]
    default: bool = True


def apply_families(scope: Scope, families: Sequence[Family]) -> tuple[list[Site], list[Skip]]:
    """Apply the rules of all ``families`` together, to a fixed point.

    Returns:
        What was changed, in order, and the reasons for what was left alone in the end.
    """
    rules = [kind() for family in families for kind in family.rules]
    node_rules = [rule for rule in rules if isinstance(rule, Rule)]
    graph_rules = [rule for rule in rules if isinstance(rule, GraphRule)]
    sites: list[Site] = []
    for _ in range(ROUNDS):
        if sites:  # a model in which nothing fires is left as it is, dead code and all
            scope.remove_dead_code()
        changed, left = rewrite(scope, node_rules)
        for rule in graph_rules:
            done, refused = rule.apply(scope)
            changed.extend(done)
            left.extend(refused)
        sites.extend(changed)
        if not changed:
            break
    return sites, [*left, *nested_skips(scope.model, scope.selection)]
