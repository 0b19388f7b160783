"""Time per node, as onnxruntime's own profiler sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphopt.data.samples import Feed
from graphopt.model.model import Model
from graphopt.runtime.fusion import plain_op
from graphopt.runtime.kernels import BLOCK, record
from graphopt.runtime.labels import label, labelled_node
from graphopt.runtime.target import Target


@dataclass(frozen=True)
class NodeTime:
    """What one node, or the fused node that took it in, costs.

    Attributes:
        op: operator that ran, e.g. ``QLinearConv``; several where one node became several.
        milliseconds: time of one run of the model, where most of the runs lie.
    """

    op: str
    milliseconds: float


@dataclass(frozen=True)
class Profile:
    """Time per node of one model.

    Attributes:
        nodes: name of a node's first output → its time. A fused node counts for one of those that it took in, usually
            the first or the last.
        total: milliseconds of all nodes together, those that onnxruntime added included.
    """

    nodes: dict[str, NodeTime]
    total: float


def profile(model: Model, feed: Feed, *, target: Target, runs: int = 20) -> Profile:
    """Run the model with onnxruntime's profiler on.

    Args:
        model: what to run, at ORT_ENABLE_ALL.
        feed: one sample.
        target: its first provider, threads and custom-op libraries are used.
        runs: least number of timed runs.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the model does not open or run.
    """
    labelled = label(model)
    recording = record(labelled.skeleton, [feed], target=target, runs=math.ceil(runs / BLOCK), beside=False)
    nodes: dict[str, NodeTime] = {}
    for kernel in recording.kernels:
        number = labelled_node(kernel.node.name)
        if number is None or number >= len(labelled.nodes):
            continue
        output, op, cost = next(iter(labelled.nodes[number].outputs), ""), plain_op(kernel.node.op), kernel.milliseconds
        before = nodes.get(output)
        nodes[output] = (
            NodeTime(op, cost) if before is None else NodeTime(f"{before.op}+{op}", before.milliseconds + cost)
        )
    return Profile(nodes, recording.total_ms)
