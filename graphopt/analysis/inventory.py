"""What a model is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.analysis.costs import NodeCost, node_costs
from graphopt.analysis.dequantize import quantized_weights
from graphopt.model.interface import TensorSpec
from graphopt.model.model import Model

SHOWN_NAMES = 5
"""So many names stand in a note, unless each layer is asked for."""


@dataclass(frozen=True)
class Wired:
    """A node and what it stands between.

    Attributes:
        name: as a selection names it; a node without one in the file is named after its operator and its place.
        op: operator type.
        inputs: name and sizes of each tensor that it reads, weights and other constants left out, as text.
        outputs: likewise of each that it gives.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """A model in numbers.

    Attributes:
        inputs: name, dtype and shape of each input, as text.
        outputs: likewise.
        overridable: names of initializers that are also inputs.
        ops: op type (domain-qualified outside ai.onnx) → count, subgraph bodies included, most frequent first.
        nodes: all nodes, those in bodies included.
        parameters: elements of all weights.
        weight_bytes: their size.
        opsets: domain → version.
        ir_version: of the file.
        metadata: the model's own metadata keys.
        quantized: whether it holds QuantizeLinear or DequantizeLinear.
        space_only: weights behind DequantizeLinear whose layers compute in float all the same.
        bodies: of them, nodes inside If, Loop and Scan bodies.
        functions: local functions, domain-qualified; nothing inside them is counted.
        layers: the nodes that multiply matrices or hold weights, in graph order, those in bodies last.
        wiring: each top-level node, in graph order: all that a selection can name.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    overridable: tuple[str, ...]
    ops: tuple[tuple[str, int], ...]
    nodes: int
    parameters: int
    weight_bytes: int
    opsets: tuple[tuple[str, int], ...]
    ir_version: int
    metadata: tuple[str, ...]
    quantized: bool
    space_only: int
    bodies: int
    functions: tuple[str, ...]
    layers: tuple[NodeCost, ...]
    wiring: tuple[Wired, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates; a dimension known only at run time counts as 1, a body as run once."""
        return sum(layer.macs for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """The document ``graphopt/inspect``, version 1: the figures as JSON can hold them."""
        return {
            "schema_id": "graphopt/inspect",
            "schema_version": 1,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()},
            "ops": dict(self.ops),
            "opsets": dict(self.opsets),
            "layers": [vars(layer) for layer in self.layers],
            "wiring": [vars(node) for node in self.wiring],
            "macs": self.macs,
        }

    def lines(self, *, layers: bool = False, wiring: bool = False) -> list[str]:
        """The figures as lines for a terminal.

        Args:
            layers: one line for each of them too.
            wiring: one line for each node too.
        """
        lines = [f"input   {text}" for text in self.inputs] + [f"output  {text}" for text in self.outputs]
        lines.append(f"opset   {', '.join(f'{d} {v}' for d, v in self.opsets)}, IR {self.ir_version}")
        inside = f", {self.bodies:,} of them in bodies of If, Loop and Scan" if self.bodies else ""
        taken = "open dimensions taken as 1" + (", each body as run once" if self.bodies else "")
        lines.append(f"nodes   {self.nodes:,}{inside}")
        lines.append(f"weights {self.parameters:,} parameters, {self.weight_bytes / 1e6:,.2f} MB")
        lines.append(f"work    {self.macs:,} multiply-adds ({taken})")
        width = max((len(op) for op, _ in self.ops), default=0)
        lines += [f"  {op:<{width}} {count:>6,}" for op, count in self.ops]
        if layers:
            lines += [f"  {'layer':<48} {'operator':<14} {'parameters':>12} {'multiply-adds':>15}"]
            lines += [f"  {c.name:<48} {c.op:<14} {c.parameters:>12,} {c.macs:>15,}" for c in self.layers]
        if wiring:
            lines += [f"  {'node':<48} {'operator':<14} inputs -> outputs"]
            lines += [f"  {n.name:<48} {n.op:<14} {', '.join(n.inputs)} -> {', '.join(n.outputs)}" for n in self.wiring]
        if self.metadata:
            lines.append(f"metadata keys: {', '.join(self.metadata)}")
        return lines

    def notes(self, *, layers: bool = False) -> list[str]:
        """What a user should know before optimizing it, a line each.

        Args:
            layers: name each initializer that is also an input, not the first few only.
        """
        found = []
        if self.functions:
            names = _shortened(self.functions, SHOWN_NAMES)
            found.append(f"what local functions hold and do is not counted ({len(self.functions)}: {names})")
        if self.quantized:
            found.append("it already holds Q/DQ nodes; passes leave them alone")
        if self.space_only:
            what = f"weights behind DequantizeLinear whose layers compute in float: {self.space_only}"
            found.append(f"{what}; --dequantize-constants folds them: faster, but a larger file")
        if count := len(self.overridable):
            names = _shortened(self.overridable, count if layers else SHOWN_NAMES)
            found.append(f"{count} initializers are also inputs, so the runtime cannot fold them: {names}")
        return [f"note: {text}" for text in found]


def _shortened(names: tuple[str, ...], most: int) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def inventory(model: Model) -> Inventory:
    """Count what a model is made of."""
    ops: Counter[str] = Counter()
    bodies = 0
    for node, graph in model.editor.all_nodes():
        ops[f"{node.domain}.{node.op}" if node.domain else node.op] += 1
        bodies += graph is not model.graph
    interface = model.interface
    return Inventory(
        inputs=tuple(_spec(s) for s in interface.inputs),
        outputs=tuple(_spec(s) for s in interface.outputs),
        overridable=tuple(s.name for s in interface.overridable),
        ops=tuple(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        nodes=model.node_count,
        parameters=model.parameter_count,
        weight_bytes=model.weight_bytes,
        opsets=tuple(sorted((domain or "ai.onnx", version) for domain, version in model.opsets.items())),
        ir_version=model.ir_version,
        metadata=tuple(sorted(model.metadata)),
        space_only=sum(not reason for _, reason in quantized_weights(model)),
        quantized=any(op in ("QuantizeLinear", "DequantizeLinear") for op in ops),
        bodies=bodies,
        functions=tuple(f"{domain}.{name}" for domain, name in model.functions),
        layers=tuple(cost for cost in node_costs(model) if cost.macs or cost.parameters),
        wiring=tuple(_wired(model)),
    )


def _wired(model: Model) -> Iterator[Wired]:
    def told(tensors: Iterable[gs.Tensor]) -> tuple[str, ...]:
        return tuple(f"{tensor.name} [{_sizes(model.shape_of(tensor))}]" for tensor in tensors if tensor.name)

    for node in model.editor.nodes():
        read = [tensor for tensor in node.inputs if model.editor.constant(tensor) is None]
        yield Wired(node.name, node.op, told(read), told(node.outputs))


def _spec(spec: TensorSpec) -> str:
    if spec.kind != "tensor":
        return f"{spec.name} {spec.kind}"
    return f"{spec.name} {spec.dtype}[{_sizes(spec.shape)}]"


def _sizes(shape: tuple[int | str | None, ...] | None) -> str:
    return "?" if shape is None else ", ".join("?" if size is None else str(size) for size in shape)
