"""Quantization noise: what rounding one tensor, or one weight, alone does to the outputs.

All roundings are written into one model, each behind an If that an extra input opens: one session serves every
measurement, and a run costs little more than the float model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.data.samples import Array, Samples
from graphopt.model.model import Model
from graphopt.progress import Progress, Silent
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import Target

_SWITCH = "graphopt_rounded"
_NOTHING = -1


@dataclass(frozen=True)
class Rounding:
    """A uint8 grid to round a tensor on: ``value = scale · (code - zero)``."""

    scale: float
    zero: int


class NoiseProbe:
    """A float model in which one tensor or weight at a time can be rounded.

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
        proto = _switched(model.to_proto(), tensors, weights)
        self._session: Session = open_session(
            proto.SerializeToString(), threads=machine.threads, custom_op_libraries=machine.custom_op_libraries
        )

    @property
    def measurements(self) -> int:
        """Runs that ``measure`` takes per sample."""
        return 1 + len(self._tensors) + len(self._weights)

    def measure(
        self, samples: Samples, *, progress: Progress | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Relative noise energy, ``|y - y'|² / |y|²`` pooled over the samples, of the output that suffers most.

        Args:
            samples: at least one.
            progress: where to report.

        Returns:
            By tensor name, and by node output for weights.
        """
        count = len(self._tensors) + len(self._weights)
        noise: dict[str, Array] = {}
        signal: dict[str, float] = {}
        for feed in (progress or Silent()).track(samples, label="measuring noise", total=len(samples)):
            exact = self._floats(self._run(feed, _NOTHING))
            for name, value in exact.items():
                signal[name] = signal.get(name, 0.0) + float(np.vdot(value, value))
                noise.setdefault(name, np.zeros(count))
            for index in range(count):
                for name, value in self._floats(self._run(feed, index)).items():
                    delta = value - exact[name] if value.shape == exact[name].shape else exact[name]
                    noise[name][index] += float(np.vdot(delta, delta))
        worst = np.zeros(count)
        for name, energies in noise.items():
            if signal[name] > 0:
                worst = np.maximum(worst, np.nan_to_num(energies / signal[name], nan=1.0, posinf=1.0))
        split = len(self._tensors)
        return (
            dict(zip(self._tensors, worst[:split].tolist(), strict=True)),
            dict(zip(self._weights, worst[split:].tolist(), strict=True)),
        )

    def run_exact(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs with nothing rounded."""
        return self._run(feed, _NOTHING)

    def _run(self, feed: Mapping[str, Array], index: int) -> dict[str, Array]:
        return self._session.run({**feed, _SWITCH: np.array(index, np.int64)})

    @staticmethod
    def _floats(values: Mapping[str, Array]) -> dict[str, Array]:
        return {k: v.astype(np.float64) for k, v in values.items() if getattr(v, "dtype", np.dtype(object)).kind == "f"}


def _switched(
    proto: onnx.ModelProto, tensors: Mapping[str, Rounding], weights: Mapping[str, Mapping[int, Array]]
) -> onnx.ModelProto:
    graph = proto.graph
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
            nodes += _switch(by_output[name], *_variants(node, weights[name]), name)
        else:
            nodes.append(node)
        for output in node.output:
            nodes += behind.get(output, [])
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(_SWITCH, TensorProto.INT64, []))
    return proto


def _switch(
    index: int, rounded: onnx.GraphProto, exact: onnx.GraphProto, output: str
) -> list[onnx.NodeProto]:
    number, condition = f"{output}/number", f"{output}/condition"
    return [
        helper.make_node("Constant", [], [number], value=numpy_helper.from_array(np.array(index, np.int64))),
        helper.make_node("Equal", [_SWITCH, number], [condition]),
        helper.make_node("If", [condition], [output], then_branch=rounded, else_branch=exact),
    ]


def _body(nodes: Sequence[onnx.NodeProto], output: str, weights: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "body", [], [result], list(weights))


def _copy(name: str) -> onnx.GraphProto:
    return _body([helper.make_node("Identity", [name], [f"{name}/copy"])], f"{name}/copy")


def _rounding(name: str, grid: Rounding) -> onnx.GraphProto:
    parameters = [f"{name}/scale", f"{name}/zero"]
    return _body(
        [
            helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}/codes"]),
            helper.make_node("DequantizeLinear", [f"{name}/codes", *parameters], [f"{name}/back"]),
        ],
        f"{name}/back",
    )


def _grid_constants(name: str, grid: Rounding) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.array(grid.scale, np.float32), f"{name}/scale"),
        numpy_helper.from_array(np.array(grid.zero, np.uint8), f"{name}/zero"),
    ]


def _variants(node: onnx.NodeProto, rounded: Mapping[int, Array]) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """The node with its rounded constants inside a body, and as it is."""
    output = node.output[0]
    bodies = []
    for kind in ("rounded", "exact"):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{output}/{kind}"
        copy.output[0] = f"{output}/{kind}"
        constants = []
        for slot, value in rounded.items() if kind == "rounded" else ():
            copy.input.extend([""] * (slot + 1 - len(copy.input)))
            copy.input[slot] = f"{output}/input{slot}"
            constants.append(numpy_helper.from_array(np.ascontiguousarray(value), copy.input[slot]))
        bodies.append(_body([copy], copy.output[0], constants))
    return bodies[0], bodies[1]


def _read_renamed(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    for position, name in enumerate(node.input):
        node.input[position] = renamed.get(name, name)
    for attribute in node.attribute:
        for body in ([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs):
            for inner in body.node:
                _read_renamed(inner, renamed)
            for value in body.output:
                value.name = renamed.get(value.name, value.name)
