"""Time per node, as onnxruntime's own profiler sees it."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.data.samples import Feed
from graphopt.errors import RuntimeFailure
from graphopt.model.model import Model
from graphopt.runtime.session import first_line
from graphopt.runtime.target import Target

_LABEL = re.compile(r"(?<![A-Za-z0-9])[nt](\d+)_")


@dataclass(frozen=True)
class NodeTime:
    """What one node, or the fused node that took it in, costs.

    Attributes:
        op: operator that ran, e.g. ``QLinearConv``; several where one node became several.
        milliseconds: median time of one run of the model.
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
        runs: timed runs; two more warm up.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the model does not open or run.
    """
    proto, outputs = _labelled(model)
    with tempfile.TemporaryDirectory() as folder:
        events = _events(proto.SerializeToString(), feed, target, runs, Path(folder))
    per_run: dict[tuple[int, str], list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        found = _LABEL.search(name)
        index = int(found.group(1)) if found else -1
        per_run[index, str(event.get("args", {}).get("op_name", ""))].append(event["dur"] / 1e3)
    return _summed(per_run, outputs, runs)


def _summed(per_run: dict[tuple[int, str], list[float]], outputs: Sequence[str], runs: int) -> Profile:
    nodes: dict[str, NodeTime] = {}
    total = 0.0
    for (index, op), times in per_run.items():
        each = len(times) / (runs + 2)
        cost = float(np.median(times)) * each
        total += cost
        if index < 0:
            continue
        before = nodes.get(outputs[index])
        joined = NodeTime(op, cost) if before is None else NodeTime(f"{before.op}+{op}", before.milliseconds + cost)
        nodes[outputs[index]] = joined
    return Profile(nodes, total)


def _labelled(model: Model) -> tuple[onnx.ModelProto, list[str]]:
    """The model with numbered names inside, so that names onnxruntime makes from them can be read back."""
    proto = model.to_proto()
    graph = proto.graph
    outputs = [node.output[0] for node in graph.node]
    fixed = {v.name for v in (*graph.input, *graph.output)} | {t.name for t in graph.initializer} | {""}
    new: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        node.name = f"n{index}_"
        for position, name in enumerate(node.output):
            if name not in fixed:
                new[name] = f"t{index}_{position}"
    del graph.value_info[:]
    _rename(graph, new)
    return proto, outputs


def _rename(graph: onnx.GraphProto, new: dict[str, str]) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = new.get(name, name)
        for position, name in enumerate(node.output):
            node.output[position] = new.get(name, name)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, new)
            for body in attribute.graphs:
                _rename(body, new)
    for value in graph.output:
        value.name = new.get(value.name, value.name)


def _events(model: bytes, feed: Feed, target: Target, runs: int, folder: Path) -> list[dict[str, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    try:
        for library in target.custom_op_libraries:
            options.register_custom_ops_library(library)
        session = ort.InferenceSession(
            model, options, providers=[(target.provider.name, dict(target.provider.options))], enable_fallback=0
        )
    except Exception as error:
        raise RuntimeFailure("GO-603", "the model does not open in onnxruntime", why=first_line(error)) from error
    try:
        for _ in range(runs + 2):
            session.run(None, dict(feed))
    except Exception as error:
        raise RuntimeFailure("GO-604", "the model fails in onnxruntime", why=first_line(error)) from error
    loaded: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return loaded
