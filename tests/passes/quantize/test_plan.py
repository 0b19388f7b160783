"""Grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.quantize.plan import Grid, Interval

BOUND = st.floats(2.0**-10, 2.0**20, width=32)


@given(BOUND, BOUND)
def test_a_grid_covers_its_interval_to_half_a_step_and_holds_zero(below: float, above: float) -> None:
    grid = Grid.covering(Interval(-below, above))
    assert 0 <= grid.zero <= 255
    assert grid.scale == float(np.float32(grid.scale))
    ends = [(code - grid.zero) * grid.scale for code in (0, 255)]
    assert ends[0] <= -below + grid.scale / 2 * 1.001
    assert ends[1] >= above - grid.scale / 2 * 1.001


@given(BOUND)
def test_an_interval_above_zero_starts_at_code_zero(high: float) -> None:
    assert Grid.covering(Interval(high / 2, high)).zero == 0


@pytest.mark.parametrize("interval", [Interval(0, 0), Interval(0, math.inf), Interval(-1e-60, 0)])
def test_an_interval_without_a_grid_is_refused(interval: Interval) -> None:
    with pytest.raises(ValueError, match="no grid"):
        Grid.covering(interval)


def test_the_scale_of_a_relu6_is_small_enough_for_the_runtime_to_swallow_it() -> None:
    # Measured: with zero point 0 and scale 5.9/255 the Clip is swallowed, with 6.1/255 it is not.
    assert Grid.covering(Interval(0, 6.1)).clipping(0, 6).scale <= np.float32(6 / 255)
    assert Grid.covering(Interval(0, 5.9)).clipping(0, 6) == Grid.covering(Interval(0, 5.9))


@given(BOUND, BOUND, BOUND, BOUND)
def test_a_clipping_grid_does_the_work_of_the_clip_in_float32(a: float, b: float, low: float, high: float) -> None:
    grid = Grid.covering(Interval(-a, b)).clipping(-low, high)
    scale = np.float32(grid.scale)
    assert np.rint(np.float32(high) / scale) + grid.zero >= 255
    assert np.rint(np.float32(-low) / scale) + grid.zero <= 0


def test_a_relu_needs_code_zero_at_zero() -> None:
    assert Grid(0.1, 3).clipping(0, math.inf).zero == 0
