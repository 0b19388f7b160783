"""Two sessions, the same samples: how far the outputs lie apart, and what that does to the accuracy."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from graphopt.blackbox import doing
from graphopt.data.samples import Samples
from graphopt.errors import RuntimeFailure, SampleError
from graphopt.progress import Progress
from graphopt.runtime.session import Session
from graphopt.validation.metrics import (
    Array,
    DiscreteAccumulator,
    FloatAccumulator,
    TopK,
    as_array,
    class_rows,
    is_float,
)

Outputs = dict[str, Array]
MetricFunction = Callable[[Sequence[Mapping[str, Array]], Samples, Mapping[str, str]], float]
"""``metric(outputs, samples, metadata) -> float``, higher is better: ``outputs`` holds one dict of arrays by
output name per sample, in sample order; ``samples`` the feeds (and ``samples.labels``); ``metadata`` the
model's ``metadata_props``."""


@dataclass(frozen=True)
class OutputComparison:
    """How one output of the candidate compares with the reference's, over all samples.

    Attributes:
        name: output name.
        kind: ``float``: compared as numbers; ``discrete``: integers, booleans and strings, by equality.
        sqnr_db: pooled over the samples, dB; ``None`` for a discrete output.
        worst_sqnr_db: of the worst sample, dB; ``None`` for a discrete output.
        worst_sample: index of the worst sample.
        cosine: pooled, in [-1, 1]; ``None`` for a discrete output.
        worst_cosine: smallest of any sample; ``None`` for a discrete output.
        max_abs: largest |Δ|, in the output's unit; ``None`` for a discrete output.
        max_ref: largest |reference|; ``None`` for a discrete output.
        agreement: float: share of rows whose argmax over the last axis agrees (``None``: no class axis);
            discrete: share of equal elements.
        nan_mismatch: positions where only one of the two is NaN or infinite, or infinite with another sign.
        shape_mismatch: samples on which the two shapes differ.
        finite_share: share of the reference's elements that are finite; at 0 nothing could be compared.
        empty: it held no element on any sample, in neither model.
    """

    name: str
    kind: Literal["float", "discrete"]
    sqnr_db: float | None = None
    worst_sqnr_db: float | None = None
    worst_sample: int | None = None
    cosine: float | None = None
    worst_cosine: float | None = None
    max_abs: float | None = None
    max_ref: float | None = None
    agreement: float | None = None
    nan_mismatch: int = 0
    shape_mismatch: int = 0
    finite_share: float = 1.0
    empty: bool = False

    @property
    def fidelity_db(self) -> float:
        """The SQNR; for a discrete output its counterpart, ``-10 log10`` of the share of unequal elements."""
        if self.sqnr_db is not None:
            return self.sqnr_db
        wrong = 1.0 - (self.agreement if self.agreement is not None else 1.0)
        return math.inf if wrong <= 0.0 else -10.0 * math.log10(wrong)

    @property
    def max_relative(self) -> float:
        """``max|Δ| / max|reference|``; for a discrete output the share of unequal elements."""
        if self.kind == "discrete":
            return 1.0 - (self.agreement if self.agreement is not None else 1.0)
        if self.nan_mismatch or self.shape_mismatch:
            return math.inf
        if not self.max_abs:
            return 0.0
        return self.max_abs / self.max_ref if self.max_ref else math.inf


@dataclass(frozen=True)
class Comparison:
    """A candidate against a reference on the same samples.

    Attributes:
        outputs: one entry per output, in the reference's order.
        samples: how many samples were compared.
        synthetic: the samples were seeded synthetic inputs: the figures say little about real data.
        class_output: the output that the labels were held against; ``None`` without labels or without such
            an output.
        reference_top1: share in [0, 1]; likewise the three below. ``None`` without labels.
        candidate_top1: see above.
        reference_top5: see above; ``None`` for five classes or fewer.
        candidate_top5: see above.
        metric: name of the user's metric; empty without one.
        reference_metric: the metric's value on the reference's outputs.
        candidate_metric: the metric's value on the candidate's outputs.
    """

    outputs: tuple[OutputComparison, ...]
    samples: int
    synthetic: bool = False
    class_output: str | None = None
    reference_top1: float | None = None
    candidate_top1: float | None = None
    reference_top5: float | None = None
    candidate_top5: float | None = None
    metric: str = ""
    reference_metric: float | None = None
    candidate_metric: float | None = None

    @property
    def worst(self) -> OutputComparison | None:
        """The output of least fidelity; ``None`` for a model without outputs."""
        return min(self.outputs, key=lambda o: o.fidelity_db, default=None)

    @property
    def identical(self) -> bool:
        """Every output equals the reference's everywhere."""
        return all(o.max_relative == 0.0 for o in self.outputs)

    @property
    def drop(self) -> tuple[str, float] | None:
        """What accuracy was lost, in points: ("top-1" or the metric's name, 100 * (reference - candidate)).

        The user's metric wins over top-1. ``None`` without labels and without a metric.
        """
        if self.reference_metric is not None and self.candidate_metric is not None:
            return self.metric, 100.0 * (self.reference_metric - self.candidate_metric)
        if self.reference_top1 is not None and self.candidate_top1 is not None:
            return "top-1", 100.0 * (self.reference_top1 - self.candidate_top1)
        return None


class Comparator:
    """Takes pairs of outputs, one sample at a time, and sums them up; fixed memory."""

    def __init__(self, output_names: Sequence[str], labels: Array | None = None, *, strict: bool = False) -> None:
        self._names = tuple(output_names)
        self._labels = labels
        self._strict = strict
        self._sums: dict[str, FloatAccumulator | DiscreteAccumulator] = {}
        self._class_output: str | None = None
        self._top = (TopK(), TopK())
        self._samples = 0

    def update(self, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """Take one sample's outputs, by output name.

        Raises:
            SampleError: GO-406, the labels of this sample do not fit the class output.
        """
        for name in self._names:
            ref, out = as_array(reference[name]), as_array(candidate[name])
            if name not in self._sums:
                self._sums[name] = FloatAccumulator() if is_float(ref) else DiscreteAccumulator()
            self._sums[name].update(ref, out)
        if self._labels is not None:
            self._score(reference, candidate, np.atleast_1d(self._labels[self._samples]).ravel())
        self._samples += 1

    def _score(self, reference: Mapping[str, Any], candidate: Mapping[str, Any], ids: Array) -> None:
        if self._samples == 0:
            self._class_output = _find_class_output(self._names, reference, self._labels)
            if self._strict and self._class_output is None:
                _refuse_labels(self._names, reference, self._labels)
        name = self._class_output
        if name is None:
            return
        ref, out = class_rows(as_array(reference[name])), class_rows(as_array(candidate[name]))
        if ref is None or out is None or ref.shape[0] != ids.size or out.shape != ref.shape:
            raise SampleError(
                "GO-406",
                f"sample {self._samples} has {ids.size} label(s), but output {name!r} has "
                f"{0 if ref is None else ref.shape[0]} row(s) of class scores",
                where=f"sample {self._samples}",
                hint="give one label per row, or score the model with --metric module:function",
            )
        self._top[0].update(ref, ids)
        self._top[1].update(out, ids)

    def result(self, *, synthetic: bool = False) -> Comparison:
        """The figures of everything taken so far."""
        return Comparison(
            outputs=tuple(_figures(name, self._sums[name]) for name in self._names if name in self._sums),
            samples=self._samples,
            synthetic=synthetic,
            class_output=self._class_output,
            reference_top1=self._top[0].top1,
            candidate_top1=self._top[1].top1,
            reference_top5=self._top[0].top5,
            candidate_top5=self._top[1].top5,
        )


def _figures(name: str, sums: FloatAccumulator | DiscreteAccumulator) -> OutputComparison:
    if isinstance(sums, DiscreteAccumulator):
        return OutputComparison(
            name,
            "discrete",
            agreement=sums.agreement,
            worst_sample=sums.worst_sample,
            shape_mismatch=sums.shape_mismatch,
            finite_share=float(not sums.empty),
            empty=sums.empty,
        )
    return OutputComparison(
        name,
        "float",
        sqnr_db=sums.sqnr_db,
        worst_sqnr_db=sums.worst_sqnr_db,
        worst_sample=sums.worst_sample,
        cosine=sums.cosine,
        worst_cosine=sums.worst_cosine,
        max_abs=sums.max_abs,
        max_ref=sums.max_ref,
        agreement=sums.agreement,
        nan_mismatch=sums.nan_mismatch,
        shape_mismatch=sums.shape_mismatch,
        finite_share=sums.finite_share,
        empty=sums.empty,
    )


def _find_class_output(names: Sequence[str], outputs: Mapping[str, Any], labels: Array | None) -> str | None:
    """The first float output whose last axis is long enough to hold every label as a class id."""
    if labels is None or labels.size == 0 or int(labels.min()) < 0:
        return None
    for name in names:
        rows = class_rows(as_array(outputs[name]))
        if rows is not None and rows.shape[1] > int(labels.max()):
            return name
    return None


def _refuse_labels(names: Sequence[str], outputs: Mapping[str, Any], labels: Array | None) -> None:
    """Labels that are no class ids of an output which looks like class scores.

    Raises:
        SampleError: GO-406.
    """
    rows = {name: class_rows(as_array(outputs[name])) for name in names}
    classes = {name: found.shape[1] for name, found in rows.items() if found is not None}
    if labels is None or labels.size == 0 or not classes:
        return
    name = max(classes, key=lambda key: classes[key])
    raise SampleError(
        "GO-406",
        f"labels go from {int(labels.min())} to {int(labels.max())}, but output {name!r} has {classes[name]} classes",
        hint=f"give class ids from 0 to {classes[name] - 1}, or score the model with --metric module:function",
    )


@doing("the comparison of outputs")
def compare(
    reference: Session,
    candidate: Session,
    samples: Samples,
    *,
    metric: MetricFunction | None = None,
    metric_name: str = "metric",
    reference_metadata: Mapping[str, str] | None = None,
    candidate_metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    label: str = "validating",
) -> Comparison:
    """Run both sessions on every sample and compare what comes out.

    Args:
        reference: the model whose outputs count as right.
        candidate: the model under test; it must have the reference's output names.
        samples: what to feed; at least one.
        metric: a user's own score of a whole set of outputs, higher is better. With it, and only then, the
            outputs of all samples are held in memory.
        metric_name: what to call it in the report.
        reference_metadata: the reference's ``metadata_props``, for the metric.
        candidate_metadata: the candidate's, for the metric.
        progress: where to report each sample.
        label: what to call this work there.

    Raises:
        SampleError: GO-401, no sample; GO-406, labels do not fit.
        RuntimeFailure: GO-604, a session fails; GO-605, an output is missing; GO-606, the metric raises or
            returns no finite number.
    """
    if len(samples) == 0:
        raise SampleError("GO-401", "there is no sample to compare on", where=samples.source)
    missing = [name for name in reference.output_names if name not in candidate.output_names]
    if missing:
        raise RuntimeFailure("GO-605", f"the candidate has no output {missing[0]!r}")
    comparator = Comparator(reference.output_names, samples.labels, strict=metric is None)
    kept: tuple[list[Outputs], list[Outputs]] = ([], [])
    feeds: Iterable[Mapping[str, Array]] = samples
    if progress is not None:
        feeds = progress.track(samples, label=label, total=len(samples))
    for feed in feeds:
        ref, out = reference.run(feed), candidate.run(feed)
        comparator.update(ref, out)
        if metric is not None:
            kept[0].append(dict(ref))
            kept[1].append(dict(out))
    result = comparator.result(synthetic=samples.synthetic)
    if metric is None:
        return result
    scores = (
        score(metric, kept[0], samples, reference_metadata or {}, metric_name),
        score(metric, kept[1], samples, candidate_metadata or {}, metric_name),
    )
    return _with_metric(result, metric_name, scores)


def _with_metric(result: Comparison, name: str, scores: tuple[float, float]) -> Comparison:
    return replace(result, metric=name, reference_metric=scores[0], candidate_metric=scores[1])


def score(
    metric: MetricFunction,
    outputs: Sequence[Mapping[str, Array]],
    samples: Samples,
    metadata: Mapping[str, str],
    name: str = "metric",
) -> float:
    """Call a user's metric.

    Raises:
        RuntimeFailure: GO-606, it raises, or what it returns is no finite number.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            value = metric(outputs, samples, metadata)
    except Exception as error:
        raise RuntimeFailure(
            "GO-606",
            f"the metric {name!r} raised {type(error).__name__}",
            why=str(error) or None,
            hint="it is called as metric(outputs, samples, metadata); --debug shows its traceback",
        ) from error
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise _bad_value(name, value) from error
    if not math.isfinite(number):
        raise _bad_value(name, value)
    return number


def _bad_value(name: str, value: object) -> RuntimeFailure:
    return RuntimeFailure(
        "GO-606",
        f"the metric {name!r} returned {value!r}",
        why="it must return one finite number, higher is better",
    )
