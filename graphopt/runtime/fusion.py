"""Which nodes of the model each node of onnxruntime's optimized graph stands for.

A tensor that survives the optimization keeps its name. Where the layout changes, onnxruntime makes up a name, but
calls the node after the tensor that its first part wrote (``t5_0_nchwc``); the tensor that it really writes now, after
it has taken in an Add or a Relu as well, follows from who reads it. From there one walks back through the model to
the tensors that other kernels write: what lies between was taken in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from graphopt.runtime.labels import Labelled, labelled_node, labelled_tensor
from graphopt.runtime.optimized import OptimizedNode

Kind = Literal["source", "layout", "added"]
"""``source``: does work of the model's; ``layout``: reorders only; ``added``: other nodes of the provider's making."""

REORDERS = frozenset({"com.microsoft.nchwc:ReorderInput", "com.microsoft.nchwc:ReorderOutput"})


@dataclass(frozen=True)
class Attribution:
    """What one node of the optimized graph stands for.

    Attributes:
        kind: what sort of node it is.
        sources: numbers of the model's nodes that it took in, in the model's order.
    """

    kind: Kind
    sources: tuple[int, ...] = ()


def attribute(kernels: Sequence[OptimizedNode], labelled: Labelled) -> list[Attribution]:
    """Attribute each node of the optimized graph, in order."""
    return _Attributor(kernels, labelled).all()


def plain_op(op: str) -> str:
    """The operator without its domain."""
    return op.rpartition(":")[2]


class _Attributor:
    def __init__(self, kernels: Sequence[OptimizedNode], labelled: Labelled) -> None:
        self._kernels = kernels
        self._nodes = labelled.nodes
        self._producer = {name: i for i, node in enumerate(self._nodes) for name in node.writes if name}
        self._layout = [self._is_layout(kernel) for kernel in kernels]
        self._same = self._same_tensors()
        self._ends = [() if layout else self._ends_of(k) for k, layout in zip(kernels, self._layout, strict=True)]
        self._claimed = {tensor: index for index, ends in enumerate(self._ends) for tensor in ends}
        self._constant = self._constants(labelled)
        self._taken: set[int] = set()

    def all(self) -> list[Attribution]:
        found = []
        for index, layout in enumerate(self._layout):
            sources = () if layout else self._walk(index)
            found.append(Attribution("layout" if layout else "source" if sources else "added", sources))
        return found

    def _is_layout(self, kernel: OptimizedNode) -> bool:
        if kernel.op in REORDERS:
            return True
        if kernel.op != "Transpose":
            return False
        named = labelled_node(kernel.name)
        return named is None or named >= len(self._nodes) or self._nodes[named].op != "Transpose"

    def _same_tensors(self) -> dict[str, str]:
        """Tensors with made-up names → the model's tensor that they hold, as their readers tell it."""
        same: dict[str, str] = {}
        for kernel, layout in zip(self._kernels, self._layout, strict=True):
            if layout:
                pairs = [(kernel.inputs[0], kernel.outputs[0])] if kernel.inputs and kernel.outputs else []
            else:
                pairs = self._operands(kernel)
            for held, tensor in pairs:
                if held and held not in self._producer and tensor in self._producer:
                    same.setdefault(held, tensor)
        return same

    def _operands(self, kernel: OptimizedNode) -> list[tuple[str, str]]:
        """Inputs of a kernel beside those of the model's node that it is named after."""
        node = self._named_after(kernel)
        if node is None or self._nodes[node].op != plain_op(kernel.op):
            return []
        reads = self._nodes[node].reads
        wide = 1 if plain_op(kernel.op) == "Conv" else len(reads)  # a Conv's later inputs are constants, or an Add's
        return list(zip([name for name in kernel.inputs if name][:wide], reads, strict=False))

    def _named_after(self, kernel: OptimizedNode) -> int | None:
        """The model's node of the kernel's operator, found from its name and backwards."""
        node = labelled_node(kernel.name)
        for _ in range(4):  # a Conv with BatchNormalization and activation is named after the last of them
            if node is None or node >= len(self._nodes):
                return None
            if self._nodes[node].op == plain_op(kernel.op):
                return node
            reads = self._nodes[node].reads
            node = self._producer.get(reads[0]) if reads else None
        return None

    def _ends_of(self, kernel: OptimizedNode) -> tuple[str, ...]:
        """The model's tensors that a kernel writes."""
        known = [name if name in self._producer else self._same.get(name, "") for name in kernel.outputs]
        ends = [name for name in known if name]
        if ends:
            return tuple(ends)
        tensor = labelled_tensor(kernel.name)
        if tensor in self._producer:
            return (tensor,) if tensor else ()
        node = labelled_node(kernel.name)
        return self._nodes[node].writes[:1] if node is not None and node < len(self._nodes) else ()

    def _constants(self, labelled: Labelled) -> set[int]:
        """Nodes that onnxruntime computes once, on loading."""
        given = labelled.skeleton.proto.graph
        known: Mapping[str, None] = dict.fromkeys(t.name for t in given.initializer)
        values = set(known) - {value.name for value in given.input}
        found = set()
        for index, node in enumerate(self._nodes):
            if all(name in values for name in node.reads) and not node.op.startswith("Random"):
                found.add(index)
                values.update(node.writes)
        return found

    def _walk(self, kernel: int) -> tuple[int, ...]:
        stack = [self._producer[t] for t in self._ends[kernel] if t in self._producer]
        found: set[int] = set()
        while stack:
            node = stack.pop()
            if node in self._taken or node in self._constant:
                continue
            self._taken.add(node)
            found.add(node)
            for name in self._nodes[node].reads:
                if name in self._producer and self._claimed.get(name, kernel) == kernel:
                    stack.append(self._producer[name])
        return tuple(sorted(found))
