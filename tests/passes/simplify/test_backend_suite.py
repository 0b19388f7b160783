"""ONNX's own operator models (and their function bodies, expanded) through the exact rules: not one bit may change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx.backend.test.case.node import collect_testcases

from graphopt.errors import GraphoptError

from .harness import Done, outputs, simplified


def _changed() -> Iterator[tuple[str, Done, dict[str, Any]]]:
    """The models that the exact rules change, with their own test inputs."""
    cases = [case for case in collect_testcases(None) if case.model is not None and case.data_sets]
    for case in cases:
        try:
            done = simplified(case.model, exact_only=True)
        except GraphoptError as error:
            assert error.code in ("GO-305", "GO-308"), f"{case.name}: {error}"
            continue
        if done.result.modified:
            names = [spec.name for spec in done.before.interface.inputs]
            yield case.name, done, dict(zip(names, case.data_sets[0][0], strict=False))


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return bool(first.dtype == second.dtype and np.array_equal(first, second, equal_nan=first.dtype.kind == "f"))
    return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_operator_models_keep_every_bit() -> None:
    compared = 0
    for name, done, feed in _changed():
        assert done.before.interface == done.after.interface, name
        try:
            before = outputs(done.before, feed)
        except GraphoptError:
            continue  # no kernel for it in this onnxruntime
        after = outputs(done.after, feed)
        assert all(_same(value, after[key]) for key, value in before.items()), name
        compared += 1
    assert compared >= 200
