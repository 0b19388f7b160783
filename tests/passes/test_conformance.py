"""Every built-in pass holds the contract, on every model of the builders, with more than its defaults."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt.pipeline.registry import Registry
from graphopt.testing import check_pass

REGISTRY = Registry.discover()
BUILT_IN = [name for name in REGISTRY.names() if REGISTRY.source(name) == "graphopt"]
MORE_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("simplify", {"exact_only": True}),
    ("fuse", {"exclude_families": ["activations", "scale-shift"]}),
    ("prune-weights", {"sparsity": 0.75, "min_elements": 0}),
    ("prune-weights", {"scope": "global", "normalize": "lamp", "min_elements": 0}),
    ("remove-channels", {"round_to": 1}),
    ("quantize", {"calibration": "percentile"}),
]


def test_there_is_more_than_one_pass_to_check() -> None:
    assert {"simplify", "fuse", "prune-weights", "remove-channels", "quantize"} <= set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_with_the_defaults(name: str) -> None:
    check_pass(REGISTRY.load(name))


@pytest.mark.parametrize(("name", "options"), MORE_OPTIONS)
def test_with_other_options(name: str, options: dict[str, Any]) -> None:
    check_pass(REGISTRY.load(name), options)
