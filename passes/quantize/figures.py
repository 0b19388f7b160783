"""What the pass reports: places, totals, and the placements that were tried."""

from __future__ import annotations

from graphopt.passes.quantize.choose import WORTH, Bench
from graphopt.passes.quantize.plan import Plan
from graphopt.passes.quantize.units import HEAVY, Units
from graphopt.pipeline.contract import Json, Site


def in_order(units: Units, plan: Plan) -> tuple[str, ...]:
    """Names of the integer units, in graph order."""
    return tuple(unit.name for unit in units.all if unit.name in plan.integer)


def sites(units: Units, plan: Plan) -> tuple[Site, ...]:
    """One place for each integer unit."""
    return tuple(Site(unit.name, f"{unit.kind.value} in integers") for unit in units.all if unit.name in plan.integer)


def totals(units: Units, plan: Plan) -> dict[str, int]:
    """How much became integer."""
    layers = [unit for unit in units.all if unit.kind in HEAVY]
    return {
        "integer_layers": sum(unit.name in plan.integer for unit in layers),
        "layers": len(layers),
        "integer_units": len(plan.integer),
        "units": len(units.all),
    }


def used(plan: Plan) -> dict[str, Json]:
    """What makes its numbers more accurate."""
    return {
        "compensated_rounding": len(plan.weights),
        "bias_correction": bool(plan.channel_mean),
        "smoothed_tensors": len(plan.smoothing),
    }


def headline(units: Units, plan: Plan) -> str:
    """``9 of 10 layers in INT8, and 3 other nodes; 4 activations smoothed``."""
    found = totals(units, plan)
    others = int(found["integer_units"]) - int(found["integer_layers"])
    rest = f", and {others} other nodes" if others else ""
    smoothed = f"; {len(plan.smoothing)} activations smoothed" if plan.smoothing else ""
    return f"{found['integer_layers']} of {found['layers']} layers in INT8{rest}{smoothed}"


def trial_figures(bench: Bench | None) -> dict[str, Json]:
    """SQNR and speed of every placement that was tried."""
    if bench is None:
        return {}
    tried: dict[str, Json] = {}
    for trial in bench.trials:
        tried[trial.label] = {"sqnr_db": round(trial.sqnr_db, 2), "ratio": round(trial.ratio, 3)}
    return {"placements": tried}


def not_worth(bench: Bench | None) -> str:
    """Why the model stays float, in one sentence."""
    if bench is None or not bench.trials:
        return "The model stays float: no node can be made integer."
    best = max(bench.trials, key=lambda trial: trial.ratio)
    return (
        f"The model stays float: the fastest of {len(bench.trials)} integer placements runs {best.ratio:.2f}x as fast "
        f"({best.sqnr_db:.1f} dB); {WORTH:.2f}x is the least that is worth an error."
    )
