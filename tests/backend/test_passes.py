"""Every pass on the models of the ONNX suite, with the suite's own inputs as samples.

In configurations that should change nothing, on all of them; as they come, on every fifth (on all with ``-m slow``);
and on the operators' models with the second and further inputs held as weights, which is where passes find work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.backend.suite import Case, all_cases, every_fifth, frozen, listed
from tests.backend.sweep import ACTIVE, EAGER, IDLE, ZERO, check_active, check_idle

PARTS = 6


@pytest.mark.parametrize("part", range(PARTS))
def test_a_pass_that_may_touch_nothing_changes_nothing(part: int, counts: Counter[str]) -> None:
    faults: list[str] = []
    for case in all_cases()[part::PARTS]:
        faults += check_idle(case.name, case.proto(), case.feed(), (*IDLE, *ZERO), counts)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("text", ACTIVE)
def test_a_pass_breaks_no_model(text: str, counts: Counter[str]) -> None:
    _assert_sound(every_fifth(), text, counts)


@pytest.mark.parametrize("text", EAGER)
def test_a_pass_breaks_no_model_with_weights(text: str, counts: Counter[str]) -> None:
    _assert_sound_with_weights(every_fifth(), text, counts)


@pytest.mark.slow
@pytest.mark.parametrize("text", ACTIVE)
def test_a_pass_breaks_no_model_of_all(text: str, counts: Counter[str]) -> None:
    _assert_sound(all_cases(), text, counts)


@pytest.mark.slow
@pytest.mark.parametrize("text", EAGER)
def test_a_pass_breaks_no_model_with_weights_of_all(text: str, counts: Counter[str]) -> None:
    _assert_sound_with_weights(all_cases(), text, counts)


def test_what_may_be_overridden_is_frozen(counts: Counter[str]) -> None:
    faults: list[str] = []
    for case in every_fifth():
        held = frozen(case)
        if held is not None:
            faults += check_active(case.name, listed(held[0]), held[1], "freeze-initializers", counts)
    assert not faults, "\n".join(faults)
    assert counts["applied"] > 100


def _assert_sound(cases: Iterable[Case], text: str, counts: Counter[str]) -> None:
    faults: list[str] = []
    for case in cases:
        faults += check_active(case.name, case.proto(), case.feed(), text, counts)
    assert not faults, "\n".join(faults)


def _assert_sound_with_weights(cases: Iterable[Case], text: str, counts: Counter[str]) -> None:
    faults: list[str] = []
    for case in cases:
        held = frozen(case)
        if held is not None:
            faults += check_active(case.name, *held, text, counts)
    assert not faults, "\n".join(faults)
