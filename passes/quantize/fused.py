"""Leaves float what onnxruntime makes no integer kernel of."""

from __future__ import annotations

from dataclasses import replace

from graphopt.errors import RuntimeFailure
from graphopt.model.model import Model
from graphopt.passes.quantize.emit import emit
from graphopt.passes.quantize.placement import settle
from graphopt.passes.quantize.plan import Plan
from graphopt.passes.quantize.units import Units
from graphopt.passes.quantize.verify import unfused_layers
from graphopt.runtime.target import Target

LEFT_FLOAT = "onnxruntime makes no integer kernel of it here: its weight would be read back to floats in every run"
_TRIES = 8
"""A layer may lose its kernel when a neighbour turns float; more rounds than two were not seen."""


def fusing(model: Model, units: Units, plan: Plan, target: Target) -> tuple[Plan, frozenset[str]]:
    """The plan without layers that onnxruntime does not fuse, as it shows when the plan is written.

    Args:
        model: the float model, never changed.
        units: its units.
        plan: the placement to start from.
        target: where to run.

    Returns:
        The plan that is left, and the names of the layers that were taken out.
    """
    dropped: frozenset[str] = frozenset()
    for _ in range(_TRIES):
        if not plan.integer:
            break
        candidate = model.clone()
        owners = emit(candidate, plan)
        try:
            loose = {owners[name] for name in unfused_layers(candidate, target) if name in owners}
        except RuntimeFailure:
            # What does not load is judged by the checks that every written model goes through.
            break
        if not loose:
            break
        dropped |= loose
        plan = replace(plan, integer=settle(units, plan.integer - loose))
    return plan, dropped
