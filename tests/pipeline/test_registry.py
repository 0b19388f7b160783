"""Entry points: the only way passes are found."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from graphopt.errors import UsageError
from graphopt.pipeline.registry import GROUP, Registered, Registry


def entry(name: str, value: str, source: str = "somewhere") -> Registered:
    return Registered(name, source, EntryPoint(name, value, GROUP))


def test_the_built_in_passes_are_found() -> None:
    registry = Registry.discover()
    assert {"simplify", "prune-weights", "remove-channels", "quantize"} <= set(registry.names())
    for name in registry.names():
        assert registry.load(name).name == name


def test_two_packages_with_one_name_are_refused_by_both_names() -> None:
    with pytest.raises(UsageError) as caught:
        Registry([entry("a", "x:A", "one"), entry("a", "y:A", "two")])
    assert caught.value.code == "GO-206"
    assert "one and two" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module_here:A", "cannot be imported"),
        ("json:loads", "not a subclass"),
        ("tests.pipeline.doubles:Nudge", "calls itself 'nudge'"),
    ],
)
def test_what_is_not_a_pass_is_refused(value: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Registry([entry("mine", value)]).load("mine")
    assert caught.value.code == "GO-206"
    assert said in str(caught.value)
