"""Activation statistics: what values each tensor of a model takes on calibration samples.

One pass over the samples, fixed memory: every tensor has a ``TensorStatistics`` that counts and forgets. Tensors whose
values together exceed a memory budget are observed in groups, one session each; the result is the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx

from graphopt.analysis.histogram import ChannelStatistics, TensorStatistics
from graphopt.data.samples import Array, Feed, Samples
from graphopt.model.model import Model
from graphopt.model.shapes import infer
from graphopt.progress import Progress, Silent
from graphopt.runtime.session import open_session
from graphopt.runtime.target import Target

MEMORY_BUDGET = 512 << 20
"""Bytes of tensor values that one run may hand back."""


@dataclass(frozen=True)
class Activations:
    """Statistics of the observed tensors over all samples.

    Attributes:
        tensors: tensor name → its statistics; tensors that hold no floating-point numbers are missing.
        elements: tensor name → elements in one sample, averaged over the samples.
        dtypes: tensor name → the type that the runtime handed back.
        channels: tensor name → statistics per channel, where they were asked for.
        samples: how many samples were seen.
    """

    tensors: Mapping[str, TensorStatistics]
    elements: Mapping[str, float] = field(default_factory=dict)
    dtypes: Mapping[str, np.dtype[np.generic]] = field(default_factory=dict)
    channels: Mapping[str, ChannelStatistics] = field(default_factory=dict)
    samples: int = 0

    def merged(self, other: Activations) -> Activations:
        """The statistics of both sets of samples together; neither operand changes.

        Raises:
            ValueError: the two observed different tensors, or only one kept histograms.
        """
        if set(self.tensors) != set(other.tensors):
            raise ValueError("statistics of different tensors cannot be merged")
        total = self.samples + other.samples
        joined: dict[str, TensorStatistics] = {}
        for name, statistics in self.tensors.items():
            both = TensorStatistics(histogram=statistics.has_histogram)
            both.merge(statistics)
            both.merge(other.tensors[name])
            joined[name] = both
        elements = {
            name: (count * self.samples + other.elements[name] * other.samples) / max(total, 1)
            for name, count in self.elements.items()
        }
        channels: dict[str, ChannelStatistics] = {}
        for name, part in self.channels.items():
            channels[name] = ChannelStatistics(part.axis)
            channels[name].merge(part)
            channels[name].merge(other.channels[name])
        return Activations(MappingProxyType(joined), elements, dict(self.dtypes), channels, total)


def observe(
    model: Model,
    tensors: Sequence[str],
    samples: Samples,
    *,
    histograms: bool = False,
    channel_axes: Mapping[str, int] | None = None,
    target: Target | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress | None = None,
) -> Activations:
    """Run ``model`` on every sample and count the values of ``tensors``.

    Args:
        model: the float model; it is not changed.
        tensors: names of top-level tensors; graph inputs are allowed. Duplicates count once; outputs of Constant
            nodes are left out.
        samples: at least one; shapes may differ from sample to sample.
        histograms: keep histograms (128 KiB a tensor) for percentiles.
        channel_axes: tensor name → its channel axis, where statistics per channel are wanted too.
        target: custom-op libraries and threads; the provider is always the CPU's, the reference for values.
        memory_budget: bytes that the tensors of one run may take together.
        progress: where to report each run.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the model does not open or run.
    """
    machine = target or Target()
    # onnxruntime cannot hand out a sparse constant.
    fixed = {t.name for node in model.editor.nodes() if node.op == "Constant" for t in node.outputs}
    wanted = [name for name in dict.fromkeys(tensors) if name not in fixed]
    counts = {name: TensorStatistics(histogram=histograms) for name in wanted}
    seen: dict[str, int] = dict.fromkeys(wanted, 0)
    dtypes: dict[str, np.dtype[np.generic]] = {}
    channels = {name: ChannelStatistics(axis) for name, axis in (channel_axes or {}).items()}
    groups = _groups(model, wanted, samples, memory_budget)
    walks = itertools.chain.from_iterable(walk_values(model, group, samples, machine) for group in groups)
    for values in (progress or Silent()).track(walks, label="calibrating", total=len(groups) * len(samples)):
        for name, value in values.items():
            dtypes[name] = value.dtype
            seen[name] += value.size
            if value.dtype.kind == "f":
                counts[name].update(value)
                if name in channels:
                    channels[name].update(value)
    kept = {n: s for n, s in counts.items() if n in dtypes and dtypes[n].kind == "f"}
    elements = {name: seen[name] / max(len(samples), 1) for name in kept}
    return Activations(MappingProxyType(kept), elements, dtypes, channels, len(samples))


def walk_values(model: Model, tensors: Sequence[str], samples: Samples, target: Target) -> Iterator[dict[str, Array]]:
    """The values of ``tensors``, sample by sample.

    Args:
        model: the float model; it is not changed.
        tensors: names of top-level tensors; graph inputs are allowed.
        samples: shapes may differ from sample to sample.
        target: custom-op libraries and threads; the provider is always the CPU's.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the model does not open or run.
    """
    given = {spec.name for spec in model.interface.inputs}
    session = open_session(
        model,
        threads=target.threads,
        custom_op_libraries=target.custom_op_libraries,
        extra_outputs=[name for name in tensors if name not in given],
    )
    for feed in samples:
        asked = [name for name in tensors if name not in feed]
        values = {**feed, **(session.run(feed, asked) if asked else {})}
        yield {name: np.asarray(values[name]) for name in tensors}


def _groups(model: Model, names: Sequence[str], samples: Samples, budget: int) -> list[tuple[str, ...]]:
    """Cut ``names`` into consecutive groups whose values fit the budget; every group holds at least one."""
    sizes = _sizes(model, samples[0]) if len(samples) else {}
    unknown = max(sizes.values(), default=0)
    groups: list[tuple[str, ...]] = []
    group: list[str] = []
    used = 0
    for name in names:
        size = sizes.get(name, unknown)
        if group and used + size > budget:
            groups.append(tuple(group))
            group, used = [], 0
        group.append(name)
        used += size
    return [*groups, tuple(group)] if group else groups


def _sizes(model: Model, feed: Feed) -> dict[str, int]:
    """Bytes that tensors take on one feed, as far as shape inference gets from the shapes of its arrays."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.skeleton()[0])
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        if value.name in feed:
            fixed = onnx.helper.make_tensor_value_info(
                value.name, value.type.tensor_type.elem_type, list(np.shape(feed[value.name]))
            )
            value.CopyFrom(fixed)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    sizes: dict[str, int] = {}
    inferred = infer(proto).proto
    if inferred is None:
        return sizes
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            sizes[value.name] = 4 * math.prod(d.dim_value for d in tensor.shape.dim)
    return sizes
