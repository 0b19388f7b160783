"""The best placement for given times and noises: a minimum cut.

Each unit is integer (source side) or float (sink side). What a unit costs either way, what each rounded tensor adds to
the noise, and what crossing between the two costs are all terms that a cut can pay: the minimum is exact (Kolmogorov
and Zabih, What Energy Functions Can Be Minimized via Graph Cuts?, 2004).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from graphopt.passes.quantize.units import Kind, Unit, Units

QUANTIZE_NS = 0.8
"""Nanoseconds an element costs on its way from float to integer kernels: QuantizeLinear and a change of layout."""
DEQUANTIZE_NS = 0.7
"""The way back."""
UNFUSED_NS = 0.5
"""An elementwise float node costs this once its convolution no longer takes it in."""
_FOREVER = 1 << 29
_RESOLUTION = 1e8
"""Whole-numbered capacity of all float times together; the flow cannot be larger."""
_SOURCE, _SINK = 0, 1
_INHERITING = frozenset({Kind.MOVE, Kind.SCALE})


@dataclass(frozen=True)
class Costs:
    """What a placement is made of.

    Attributes:
        float_ms: unit name → milliseconds in float.
        integer_ms: unit name → milliseconds in integers.
        elements: tensor name → elements.
        tensor_noise: tensor name → relative noise energy when it is rounded.
        weight_noise: unit name → relative noise energy when its weight is rounded.
        swallowed: unit name → the unit whose float kernel does its work.
    """

    float_ms: Mapping[str, float]
    integer_ms: Mapping[str, float]
    elements: Mapping[str, float]
    tensor_noise: Mapping[str, float] = field(default_factory=dict)
    weight_noise: Mapping[str, float] = field(default_factory=dict)
    swallowed: Mapping[str, str] = field(default_factory=dict)


def best_placement(
    units: Units, possible: Collection[str], costs: Costs, price: float, floating: Collection[str] = ()
) -> frozenset[str]:
    """The units to make integer so that time + ``price`` · noise is least.

    Args:
        units: all units.
        possible: names of those that may become integer.
        costs: times and noises.
        price: milliseconds that a relative noise energy of 1 is worth, ≥ 0.
        floating: tensors that something outside of all units reads.
    """
    total = sum(costs.float_ms.get(name, 0.0) for name in possible)
    network = _Network(_RESOLUTION / max(total, 1e-6))
    chosen = [unit for unit in units.all if unit.name in possible]
    vertex = {unit.name: network.vertex() for unit in chosen}
    for unit in chosen:
        network.edge(_SOURCE, vertex[unit.name], costs.float_ms.get(unit.name, 0.0))
        noise = price * costs.weight_noise.get(unit.name, 0.0)
        network.edge(vertex[unit.name], _SINK, costs.integer_ms.get(unit.name, 0.0) + noise)
        taken_by = costs.swallowed.get(unit.name)
        if taken_by in vertex:
            network.edge(vertex[taken_by], vertex[unit.name], _milliseconds(costs, unit.writes[0], UNFUSED_NS))
    producers, readers = units.producers(), units.readers()
    for tensor in dict.fromkeys(t for unit in chosen for t in (*unit.reads, *unit.writes)):
        producer = producers.get(tensor)
        reading = readers.get(tensor, [])
        ends = _Ends(
            producer if producer is not None and producer.name in vertex else None,
            [vertex[unit.name] for unit in reading if unit.name in vertex],
            tensor in floating or any(unit.name not in vertex for unit in reading),
        )
        _price_tensor(network, tensor, ends, vertex, costs, price)
    side = network.source_side()
    return frozenset(name for name, v in vertex.items() if v in side)


def predicted_noise(units: Units, integer: Collection[str], costs: Costs) -> float:
    """The sum of what the weights and tensors that ``integer`` rounds add to the noise; relative energy."""
    total = sum(costs.weight_noise.get(name, 0.0) for name in integer)
    rounded: set[str] = set()
    for unit in units.all:
        if unit.name not in integer:
            continue
        rounded.update(unit.reads)
        if unit.kind not in _INHERITING and not unit.float_output:
            rounded.update(unit.writes)
    inherited = {t for unit in units.all if unit.kind in _INHERITING and unit.name in integer for t in unit.writes}
    return total + sum(costs.tensor_noise.get(tensor, 0.0) for tensor in rounded - inherited)


@dataclass(frozen=True)
class _Ends:
    """Who writes and who reads one tensor."""

    producer: Unit | None
    readers: list[int]
    read_in_float: bool


def _price_tensor(
    network: _Network, tensor: str, ends: _Ends, vertex: Mapping[str, int], costs: Costs, price: float
) -> None:
    noise = price * costs.tensor_noise.get(tensor, 0.0)
    enter = _milliseconds(costs, tensor, QUANTIZE_NS)
    leave = _milliseconds(costs, tensor, DEQUANTIZE_NS)
    writer = _SINK if ends.producer is None else vertex[ends.producer.name]
    inherits = ends.producer is not None and ends.producer.kind in _INHERITING
    floats = ends.producer is not None and ends.producer.float_output
    if ends.readers:
        anyone = network.vertex()
        for reader in ends.readers:
            network.tie(reader, anyone)
        # A linear layer hands over floats: its output is rounded only for integer readers.
        network.edge(anyone, _SINK if floats else writer, enter + (noise if inherits else 0.0))
        if not inherits:
            rounded = network.vertex()
            network.tie(anyone, rounded)
            network.edge(rounded, _SINK, noise)
            if ends.producer is not None and not floats:
                network.tie(writer, rounded)
    elif ends.producer is not None and not floats and not inherits:
        network.edge(writer, _SINK, noise)
    if ends.producer is None or floats:
        return
    if ends.read_in_float or not ends.readers:
        network.edge(writer, _SINK, leave)
        return
    everyone = network.vertex()
    for reader in ends.readers:
        network.tie(everyone, reader)
    network.edge(writer, everyone, leave)


def _milliseconds(costs: Costs, tensor: str, nanoseconds: float) -> float:
    return costs.elements.get(tensor, 0.0) * nanoseconds / 1e6


class _Network:
    """A flow network; milliseconds become whole-numbered capacities."""

    def __init__(self, per_millisecond: float) -> None:
        self._count = 2
        self._per_millisecond = per_millisecond
        self._edges: dict[tuple[int, int], int] = {}

    def vertex(self) -> int:
        self._count += 1
        return self._count - 1

    def edge(self, start: int, end: int, milliseconds: float) -> None:
        """Add an edge; parallel ones add up."""
        units = round(min(milliseconds * self._per_millisecond, _FOREVER))
        if units > 0 and start != end:
            self._edges[start, end] = min(self._edges.get((start, end), 0) + units, _FOREVER)

    def tie(self, start: int, end: int) -> None:
        """Where ``start`` is on the source's side, ``end`` must be."""
        self._edges[start, end] = _FOREVER

    def source_side(self) -> set[int]:
        """The vertices that a minimum cut leaves with the source."""
        if not self._edges:
            return {_SOURCE}
        keys = np.array(list(self._edges), np.int32)
        capacities = np.array(list(self._edges.values()), np.int32)
        graph = csr_matrix((capacities, (keys[:, 0], keys[:, 1])), shape=(self._count, self._count), dtype=np.int32)
        residual = (graph - maximum_flow(graph, _SOURCE, _SINK).flow).tocsr()
        seen, queue = {_SOURCE}, deque([_SOURCE])
        while queue:
            at = queue.popleft()
            row = slice(residual.indptr[at], residual.indptr[at + 1])
            for neighbour, left in zip(residual.indices[row], residual.data[row], strict=True):
                if left > 0 and int(neighbour) not in seen:
                    seen.add(int(neighbour))
                    queue.append(int(neighbour))
        return seen
