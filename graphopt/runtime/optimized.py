"""What onnxruntime makes of a graph: the nodes that are left after its own optimizations."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from graphopt.errors import RuntimeFailure
from graphopt.runtime.session import Backend, Optimization, first_line, open_session

if TYPE_CHECKING:
    from graphopt.model.model import Model
    from graphopt.runtime.target import ProviderSpec


@dataclass(frozen=True)
class OptimizedNode:
    """One node of the graph as onnxruntime runs it.

    Attributes:
        op: operator with its domain, e.g. ``com.microsoft.nchwc:Conv``; plain for the standard domain.
        name: node name; fused nodes have names that onnxruntime made up.
        inputs: names of the tensors read; an absent optional input is empty.
        outputs: names of the tensors written.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def optimized_nodes(
    model: Model | bytes | Path,
    *,
    provider: ProviderSpec | None = None,
    threads: int = 1,
    optimization: Optimization = "all",
    custom_op_libraries: Sequence[str] = (),
    backend: Backend | None = None,
) -> tuple[OptimizedNode, ...]:
    """The nodes left after onnxruntime's optimizations, bodies of If, Loop and Scan included.

    Args:
        model: as for ``open_session``.
        provider: as for ``open_session``.
        threads: as for ``open_session``.
        optimization: how far onnxruntime rewrites the graph.
        custom_op_libraries: as for ``open_session``.
        backend: as for ``open_session``.

    Raises:
        RuntimeFailure: as for ``open_session``; GO-603 too where onnxruntime cannot write its graph down.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(
            model,
            provider=provider,
            threads=threads,
            optimization=optimization,
            custom_op_libraries=custom_op_libraries,
            optimized_path=path,
            light=True,
            backend=backend,
        )
        return read_optimized(path)


def read_optimized(path: Path, *, bodies: bool = True) -> tuple[OptimizedNode, ...]:
    """The nodes of a graph that onnxruntime wrote down.

    Args:
        path: the file a session was told to write.
        bodies: include the nodes inside If, Loop and Scan.

    Raises:
        RuntimeFailure: GO-603, the file is missing or cannot be read.
    """
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except Exception as error:
        what = "onnxruntime did not write down its optimized graph"
        raise RuntimeFailure("GO-603", what, why=first_line(error)) from error
    return tuple(_nodes(proto.graph, bodies))


def optimized_ops(
    model: Model | bytes | Path,
    *,
    provider: ProviderSpec | None = None,
    threads: int = 1,
    optimization: Optimization = "all",
    custom_op_libraries: Sequence[str] = (),
) -> Counter[str]:
    """How many nodes of each operator are left after onnxruntime's optimizations.

    Arguments and errors are those of ``optimized_nodes``; keys are operators with their domain.
    """
    return Counter(
        node.op
        for node in optimized_nodes(
            model,
            provider=provider,
            threads=threads,
            optimization=optimization,
            custom_op_libraries=custom_op_libraries,
        )
    )


def _nodes(graph: onnx.GraphProto, bodies: bool) -> Iterator[OptimizedNode]:
    pending = [graph]
    while pending:
        body = pending.pop()
        for node in body.node:
            op = f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            yield OptimizedNode(op, node.name, tuple(node.input), tuple(node.output))
            for attribute in node.attribute if bodies else ():
                pending.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
