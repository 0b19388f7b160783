"""Where a rewritten model's error comes from: the rewrite, or what the runtime makes of it.

onnxruntime's own optimizations decide which Q/DQ pairs become integer kernels. A result that is right with
them off and wrong with them on was rewritten into a pattern that the runtime fuses differently; one that is
wrong with both was rewritten wrongly. Every quantized model is therefore run three ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphopt.data.samples import Samples
from graphopt.errors import SampleError
from graphopt.model.model import Model
from graphopt.progress import Progress
from graphopt.runtime.session import Optimization, open_session
from graphopt.runtime.target import Target
from graphopt.validation.compare import Comparator, Comparison

SUSPICIOUS_LOSS_DB = 6.0
"""More loss than doubled noise amplitude is pointed out; rounding in fused integer kernels stays below."""


@dataclass(frozen=True)
class ThreeWay:
    """SQNR of the worst output, in dB, of each pair of the three.

    Attributes:
        unoptimized_db: the source against the result with runtime optimizations off.
        optimized_db: the source against the result with runtime optimizations on.
        runtime_db: the result with them off against the result with them on.
        message: one sentence; says so where the runtime's share stands out.
    """

    unoptimized_db: float
    optimized_db: float
    runtime_db: float
    message: str

    @property
    def runtime_harms(self) -> bool:
        """The runtime's optimizations add more noise than the rewrite itself did."""
        return self.unoptimized_db - self.optimized_db > SUSPICIOUS_LOSS_DB


def three_way(
    reference: Model, candidate: Model, samples: Samples, *, target: Target, progress: Progress | None = None
) -> ThreeWay:
    """Run the source, and the result without and with runtime optimizations, on the same samples.

    Args:
        reference: the user's own model.
        candidate: the rewritten model.
        samples: what to feed; a few suffice.
        target: its first provider and its threads are used.
        progress: where to report each sample.

    Raises:
        SampleError: GO-401, no sample.
        RuntimeFailure: GO-601 to 604, a session does not open or run.
    """
    if len(samples) == 0:
        raise SampleError("GO-401", "there is no sample to compare on", where=samples.source)
    levels: tuple[tuple[Model, Optimization], ...] = (
        (reference, "all"),
        (candidate, "none"),
        (candidate, "all"),
    )
    sessions = [
        open_session(
            model,
            provider=target.provider,
            threads=target.threads,
            optimization=level,
            custom_op_libraries=target.custom_op_libraries,
            light=True,
        )
        for model, level in levels
    ]
    names = sessions[0].output_names
    pairs = (Comparator(names), Comparator(names), Comparator(names))
    feeds = samples if progress is None else progress.track(samples, label="three-way check", total=len(samples))
    for feed in feeds:
        source, plain, fused = (session.run(feed) for session in sessions)
        for comparator, left, right in zip(pairs, (source, source, plain), (plain, fused, fused), strict=True):
            comparator.update(left, right)
    off, on, between = (_worst_db(c.result()) for c in pairs)
    return ThreeWay(off, on, between, _message(off, on))


def _worst_db(found: Comparison) -> float:
    worst = found.worst
    return math.inf if worst is None else worst.fidelity_db


def _message(off: float, on: float) -> str:
    text = f"{off:.1f} dB with runtime optimizations off, {on:.1f} dB with them on"
    if off - on > SUSPICIOUS_LOSS_DB:
        return f"{text}: onnxruntime's own fusions add most of the noise"
    return text
