"""All models of the ONNX suite survive opening and saving: nothing is lost, nothing computes differently."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.backend.suite import all_cases
from tests.backend.sweep import check_round_trip

PARTS = 6


def test_the_suite_is_all_there() -> None:
    """2,033 models in onnx 1.23: if a part stayed away, the sweeps would say less than they seem to."""
    cases = all_cases()
    assert len(cases) >= 1900
    assert len({case.name for case in cases}) == len(cases)
    assert {case.kind for case in cases} == {"node", "simple", "pytorch-converted", "pytorch-operator", "light"}


@pytest.mark.parametrize("part", range(PARTS))
def test_opening_and_saving_loses_nothing(part: int, tmp_path: Path, counts: Counter[str]) -> None:
    faults: list[str] = []
    for case in all_cases()[part::PARTS]:
        faults += check_round_trip(case.name, case.proto(), case.feed(), tmp_path, counts)
    assert not faults, "\n".join(faults)
    assert counts["handled"] == counts["models"]
