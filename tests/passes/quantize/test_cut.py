"""The minimum cut against all placements tried one by one."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest

from graphopt.passes.quantize.cut import (
    DEQUANTIZE_NS,
    QUANTIZE_NS,
    Costs,
    best_placement,
    predicted_noise,
)
from graphopt.passes.quantize.units import Kind, Units, find_units
from graphopt.testing.builders import flatten_gemm, residual, squeeze_excite
from tests.passes.quantize.harness import simplified

INHERITING = (Kind.MOVE, Kind.SCALE)


def energy(units: Units, chosen: frozenset[str], costs: Costs, price: float, floating: frozenset[str]) -> float:
    """What a placement costs, said as plainly as possible."""
    total = sum((costs.integer_ms if u.name in chosen else costs.float_ms)[u.name] for u in units.all)
    total += price * sum(costs.weight_noise.get(name, 0.0) for name in chosen)
    producers, readers = units.producers(), units.readers()
    for tensor in dict.fromkeys(t for u in units.all for t in (*u.reads, *u.writes)):
        producer = producers.get(tensor)
        reading = [u.name in chosen for u in readers.get(tensor, [])]
        made = producer is not None and producer.name in chosen
        inherits = producer is not None and producer.kind in INHERITING
        floats = producer is not None and producer.float_output
        size = costs.elements[tensor] / 1e6
        if any(reading) and (not made or floats):
            total += size * QUANTIZE_NS + (price * costs.tensor_noise[tensor] if inherits else 0.0)
        if not inherits and (any(reading) or (made and not floats)):
            total += price * costs.tensor_noise[tensor]
        if made and not floats and (not all(reading) or not reading or tensor in floating):
            total += size * DEQUANTIZE_NS
    return total


@pytest.mark.parametrize("build", [residual, squeeze_excite, flatten_gemm])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_placement_is_better(build: object, seed: int) -> None:
    units = find_units(simplified(build(0)))  # type: ignore[operator]
    rng = np.random.default_rng(seed)
    names = [unit.name for unit in units.all]
    tensors = list(dict.fromkeys(t for u in units.all for t in (*u.reads, *u.writes)))
    costs = Costs(
        dict(zip(names, rng.uniform(0, 1, len(names)), strict=True)),
        dict(zip(names, rng.uniform(0, 1, len(names)), strict=True)),
        dict(zip(tensors, rng.uniform(0, 5e5, len(tensors)), strict=True)),
        dict(zip(tensors, rng.uniform(0, 0.3, len(tensors)), strict=True)),
        dict(zip(names, rng.uniform(0, 0.1, len(names)), strict=True)),
    )
    floating = frozenset(t for t in tensors if rng.uniform() < 0.2 and t in units.producers())
    price = float(rng.choice([0.0, 1.0, 3.0]))
    assert len(names) <= 14
    everything = chain.from_iterable(combinations(names, k) for k in range(len(names) + 1))
    least = min(energy(units, frozenset(some), costs, price, floating) for some in everything)
    found = best_placement(units, names, costs, price, floating)
    assert energy(units, found, costs, price, floating) == pytest.approx(least, abs=1e-4)


def test_a_higher_price_of_noise_never_buys_more_of_it() -> None:
    units = find_units(simplified(residual(0)))
    names = [unit.name for unit in units.all]
    tensors = list(dict.fromkeys(t for u in units.all for t in (*u.reads, *u.writes)))
    costs = Costs(
        dict.fromkeys(names, 1.0),
        dict.fromkeys(names, 0.4),
        dict.fromkeys(tensors, 1e4),
        {t: 0.01 * (i + 1) for i, t in enumerate(tensors)},
    )
    noises = [predicted_noise(units, best_placement(units, names, costs, p), costs) for p in (0, 1, 10, 100, 1000)]
    assert noises == sorted(noises, reverse=True)
    assert noises[0] > 0 and noises[-1] == 0


def test_what_is_not_possible_stays_float() -> None:
    units = find_units(simplified(residual(0)))
    names = [unit.name for unit in units.all]
    costs = Costs(dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.1), {})
    assert best_placement(units, names[:2], costs, 0.0) == frozenset(names[:2])
