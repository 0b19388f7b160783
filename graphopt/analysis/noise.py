"""Quantization noise: what rounding one tensor, or one weight, alone does to the outputs.

All roundings are written into one model, each behind an If that an extra input opens: one session serves every
measurement, and a run costs little more than the float model's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.data.samples import Array, Samples
from graphopt.model.model import Model
from graphopt.model.weights import stub
from graphopt.progress import Progress, Silent
from graphopt.runtime.session import Session, Skeleton, open_session
from graphopt.runtime.target import Target

_SWITCH = "graphopt_rounded"
_GROUP = 8


@dataclass(frozen=True)
class Rounding:
    """A uint8 grid to round a tensor on: ``value = scale · (code - zero)``.

    Attributes:
        scale: width of a step; several: one for each index of the last axis.
        zero: code of the value 0.
    """

    scale: float | tuple[float, ...]
    zero: int


class NoiseProbe:
    """A float model in which chosen tensors and weights can be rounded.

    Args:
        model: the float model; it is not changed.
        tensors: tensor name → grid. Graph inputs are allowed, graph outputs are not.
        weights: output name of a top-level node → what its constant inputs round to, by input position.
        target: threads and custom-op libraries.

    Raises:
        RuntimeFailure: GO-603, the model does not open.
    """

    def __init__(
        self,
        model: Model,
        tensors: Mapping[str, Rounding],
        weights: Mapping[str, Mapping[int, Array]],
        *,
        target: Target | None = None,
    ) -> None:
        machine = target or Target()
        self._tensors = list(tensors)
        self._weights = list(weights)
        self._session: Session = open_session(
            _switched(Skeleton(*model.skeleton()), tensors, weights),
            threads=machine.threads,
            custom_op_libraries=machine.custom_op_libraries,
        )

    @property
    def roundings(self) -> int:
        """How many tensors and weights can be rounded."""
        return len(self._tensors) + len(self._weights)

    def measure(
        self, samples: Samples, *, negligible: float = 0.0, deadline: float = math.inf, progress: Progress | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Relative noise energy, ``|y - y'|² / |y|²`` pooled over the samples, of the output that suffers most.

        Energies of independent errors add up: neighbours are first rounded together, and only groups that matter are
        looked into (group testing, Dorfman 1943).

        Args:
            samples: at least one.
            negligible: a group with less relative energy than this is not looked into; its members share it.
            deadline: ``time.perf_counter()`` after which groups are no longer looked into.
            progress: where to report.

        Returns:
            By tensor name, and by node output for weights.
        """
        exact = [_floats(self.run_exact(feed)) for feed in samples]
        found = np.zeros(self.roundings)
        step = _GROUP if negligible > 0 else 1
        split = len(self._tensors)
        starts = [*range(0, split, step), *range(split, self.roundings, step)]
        for start in (progress or Silent()).track(starts, label="measuring noise", total=len(starts)):
            end = min(start + step, split if start < split else self.roundings)
            pending = [(start, end)]
            while pending:
                low, high = pending.pop()
                energy = self._energy(samples, exact, range(low, high))
                if high - low == 1 or energy <= negligible or time.perf_counter() > deadline:
                    found[low:high] = energy / (high - low)
                else:
                    middle = (low + high) // 2
                    pending += [(low, middle), (middle, high)]
        return (
            dict(zip(self._tensors, found[:split].tolist(), strict=True)),
            dict(zip(self._weights, found[split:].tolist(), strict=True)),
        )

    def run_exact(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs with nothing rounded."""
        return self._run(feed, ())

    def _energy(self, samples: Samples, exact: Sequence[Mapping[str, Array]], rounded: Sequence[int]) -> float:
        noise: dict[str, float] = {}
        signal: dict[str, float] = {}
        for feed, outputs in zip(samples, exact, strict=True):
            for name, value in _floats(self._run(feed, rounded)).items():
                reference = outputs[name]
                delta = value - reference if value.shape == reference.shape else reference
                noise[name] = noise.get(name, 0.0) + float(np.vdot(delta, delta))
                signal[name] = signal.get(name, 0.0) + float(np.vdot(reference, reference))
        ratios = [noise[name] / signal[name] for name in noise if signal[name] > 0]
        return float(np.nan_to_num(max(ratios, default=0.0), nan=1.0, posinf=1.0))

    def _run(self, feed: Mapping[str, Array], rounded: Sequence[int]) -> dict[str, Array]:
        mask = np.zeros(self.roundings, np.bool_)
        mask[list(rounded)] = True
        return self._session.run({**feed, _SWITCH: mask})


def _floats(values: Mapping[str, Array]) -> dict[str, Array]:
    return {k: v.astype(np.float64) for k, v in values.items() if getattr(v, "dtype", np.dtype(object)).kind == "f"}


def _switched(model: Skeleton, tensors: Mapping[str, Rounding], weights: Mapping[str, Mapping[int, Array]]) -> Skeleton:
    proto, graph = model.proto, model.proto.graph
    constants: dict[str, Array] = {}
    before: list[onnx.NodeProto] = []
    behind: dict[str, list[onnx.NodeProto]] = {}
    renamed: dict[str, str] = {}
    for index, (name, grid) in enumerate(tensors.items()):
        renamed[name] = f"{name}/rounded"
        behind[name] = _switch(index, _rounding(name, grid), _copy(name), renamed[name])
        graph.initializer.extend(_grid_constants(name, grid))
    made = {output for node in graph.node for output in node.output}
    for name in tensors:
        if name not in made:
            before += behind.pop(name)
    by_output = {output: i + len(tensors) for i, output in enumerate(weights)}
    nodes: list[onnx.NodeProto] = list(before)
    for node in graph.node:
        _read_renamed(node, renamed)
        name = node.output[0] if node.output else ""
        if name in by_output:
            nodes += _switch(by_output[name], *_variants(node, weights[name], constants), name)
        else:
            nodes.append(node)
        for output in node.output:
            nodes += behind.get(output, [])
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    count = len(tensors) + len(weights)
    graph.input.append(helper.make_tensor_value_info(_SWITCH, TensorProto.BOOL, [count]))
    graph.initializer.extend(stub(name, value) for name, value in constants.items())
    return Skeleton(proto, {**model.weights, **constants})


def _switch(index: int, rounded: onnx.GraphProto, exact: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    number, condition = f"{output}/number", f"{output}/condition"
    return [
        helper.make_node("Constant", [], [number], value=numpy_helper.from_array(np.array(index, np.int64))),
        helper.make_node("Gather", [_SWITCH, number], [condition]),
        helper.make_node("If", [condition], [output], then_branch=rounded, else_branch=exact),
    ]


def _body(nodes: Sequence[onnx.NodeProto], output: str) -> onnx.GraphProto:
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "body", [], [result])


def _copy(name: str) -> onnx.GraphProto:
    return _body([helper.make_node("Identity", [name], [f"{name}/copy"])], f"{name}/copy")


def _rounding(name: str, grid: Rounding) -> onnx.GraphProto:
    parameters = [f"{name}/scale", f"{name}/zero"]
    return _body(
        [
            helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}/codes"], axis=-1),
            helper.make_node("DequantizeLinear", [f"{name}/codes", *parameters], [f"{name}/back"], axis=-1),
        ],
        f"{name}/back",
    )


def _grid_constants(name: str, grid: Rounding) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.array(grid.scale, np.float32), f"{name}/scale"),
        numpy_helper.from_array(np.full(np.shape(grid.scale), grid.zero, np.uint8), f"{name}/zero"),
    ]


def _variants(
    node: onnx.NodeProto, rounded: Mapping[int, Array], constants: dict[str, Array]
) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """The node with rounded constants, which are added to ``constants`` (a body sees the graph's), and as it is."""
    output = node.output[0]
    bodies = []
    for kind in ("rounded", "exact"):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{output}/{kind}"
        copy.output[0] = f"{output}/{kind}"
        for slot, value in rounded.items() if kind == "rounded" else ():
            copy.input.extend([""] * (slot + 1 - len(copy.input)))
            copy.input[slot] = f"{output}/input{slot}"
            constants[copy.input[slot]] = np.ascontiguousarray(value)
        bodies.append(_body([copy], copy.output[0]))
    return bodies[0], bodies[1]


def _read_renamed(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    for position, name in enumerate(node.input):
        node.input[position] = renamed.get(name, name)
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            for inner in body.node:
                _read_renamed(inner, renamed)
            for value in body.output:
                value.name = renamed.get(value.name, value.name)
