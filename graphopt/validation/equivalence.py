"""Does a rewritten model still compute the same? The numeric check behind EXACT and ROUNDING passes.

EXACT: bit-identical outputs with the runtime's optimizations off. ROUNDING: ``max|Δ| / max|y|`` of every output at
most ``max(1e-5, 4 · own noise)``, own noise being the same figure for the reference itself, optimizations off against
on, on the same feeds. The bound is measured on the model at hand and never widened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.blackbox import doing
from graphopt.data.samples import Samples
from graphopt.errors import RuntimeFailure, SampleError
from graphopt.model.model import Model
from graphopt.runtime.session import Optimization, Session, open_session
from graphopt.runtime.target import Target
from graphopt.validation.ahead import TensorPair, pairs_ahead
from graphopt.validation.feeds import PreparedFeeds, prepare_feeds
from graphopt.validation.metrics import Array, DiscreteAccumulator, FloatAccumulator, as_array, is_float

ROUNDING_FLOOR = 1e-5
"""Least bound of ROUNDING, about a hundred float32 roundings."""
WEAK_BOUND = 0.05
"""Above it the check says little; its message tells so, and the source is run twice to see that it is not random."""
NOISE_FACTOR = 4.0
"""A rewrite may move the outputs this many times as far as the runtime's own optimizations do."""

__all__ = ["Equivalence", "PreparedFeeds", "check_equivalence", "identical", "prepare_feeds"]


@dataclass(frozen=True)
class Equivalence:
    """What the check found.

    Attributes:
        passed: whether the bound holds on every output; ``None``: not validated, and ``message`` says why.
        max_relative: ``max|Δ| / max|y|`` of the worst output (a discrete one: share of unequal elements).
        bound: what that output was allowed.
        own_noise: the reference's own noise on that output.
        output: name of the worst output.
        message: one sentence with the numbers.
        ahead: tensors that were compared in place of discontinuous outputs.
    """

    passed: bool | None
    max_relative: float
    bound: float
    own_noise: float
    output: str
    message: str
    ahead: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Figure:
    """One output: how far it moved, and how far it may."""

    name: str
    moved: float
    own: float
    discrete: bool

    @property
    def bound(self) -> float:
        floor = 0.0 if self.discrete else ROUNDING_FLOOR
        return max(floor, NOISE_FACTOR * self.own)

    @property
    def fits(self) -> bool:
        return self.moved <= self.bound

    @property
    def excess(self) -> float:
        """Moved over bound; above 1 it does not fit."""
        if self.moved == 0.0:
            return 0.0
        return self.moved / self.bound if self.bound else np.inf


@doing("the comparison of outputs")
def check_equivalence(
    reference: Model,
    candidate: Model,
    samples: Samples,
    *,
    safety: Literal["exact", "rounding"],
    target: Target,
) -> Equivalence:
    """Compare two models as a safety class demands, on the target's first provider.

    A discontinuous output (ArgMax, Round, ...) that disagrees is compared ahead of the discontinuity where
    both models are the same behind it. A source whose outputs change from run to run cannot be validated.

    Args:
        reference: the model whose outputs count as right.
        candidate: the rewritten model.
        samples: a few feeds, real or synthetic.
        safety: ``exact`` or ``rounding``.
        target: provider and threads.

    Raises:
        SampleError: GO-401, no feed.
        RuntimeFailure: GO-603/604, the candidate does not open or run; GO-605, it lacks an output.
    """
    if len(samples) == 0:
        raise SampleError("GO-401", "there is no feed to compare on", where=samples.source)
    try:
        runs = _Runs.of(reference, samples, target)
    except RuntimeFailure as error:
        return Equivalence(None, 0.0, 0.0, 0.0, "", f"not validated: {error}")
    return _exact(runs, candidate) if safety == "exact" else _rounding(runs, candidate)


def identical(reference: Array, output: Array) -> bool:
    """Bit-identical: same type, shape and bits; NaN at the same positions, whatever its payload."""
    if reference.shape != output.shape or reference.dtype != output.dtype:
        return False
    if not is_float(reference):
        return bool(np.all(reference == output))
    nan = np.isnan(reference)
    if not np.array_equal(nan, np.isnan(output)):
        return False
    same = (reference == output) & (np.signbit(reference) == np.signbit(output))
    return bool(np.all(same | nan))


@dataclass(frozen=True)
class _Runs:
    """The reference, opened and known to run, and what everything is compared on."""

    model: Model
    plain: Session
    samples: Samples
    target: Target

    @classmethod
    def of(cls, model: Model, samples: Samples, target: Target) -> _Runs:
        session = _open(model, target, "none")
        session.run(samples[0])
        return cls(model, session, samples, target)

    def reproducible(self) -> bool:
        """Whether the reference gives the same bits twice."""
        first, second = self.plain.run(self.samples[0]), self.plain.run(self.samples[0])
        return all(identical(as_array(first[n]), as_array(second[n])) for n in self.plain.output_names)


def _exact(runs: _Runs, candidate: Model) -> Equivalence:
    session = _open(candidate, runs.target, "none")
    _require_outputs(runs.plain, session)
    for index, (_, ref, out) in enumerate(_both(runs.plain, session, runs.samples)):
        for name in runs.plain.output_names:
            left, right = as_array(ref[name]), as_array(out[name])
            if identical(left, right):
                continue
            if not runs.reproducible():
                return _not_reproducible(name)
            moved = _moved(left, right)
            message = f"output {name!r} is not bit-identical: max|Δ|/max|y| {moved:.2g} on sample {index}"
            return Equivalence(False, moved, 0.0, 0.0, name, message)
    message = f"bit-identical outputs on {_counted(runs.samples)}"
    return Equivalence(True, 0.0, 0.0, 0.0, "", message)


def _rounding(runs: _Runs, candidate: Model) -> Equivalence:
    same_names = [(name, name) for name in runs.plain.output_names]
    figures = _measure(runs, candidate, same_names, ())
    misfits = [f for f in figures if not f.fits]
    doubtful = next((f for f in figures if not f.fits or f.bound > WEAK_BOUND), None)
    if doubtful is not None and not runs.reproducible():
        return _not_reproducible(doubtful.name)
    ahead: list[_Figure] = []
    for misfit in misfits:
        found = _ahead(runs, candidate, misfit.name)
        if found is None:
            return _verdict(figures, [], runs.samples)
        ahead += found
    return _verdict([f for f in figures if f.fits] + ahead, ahead, runs.samples)


def _ahead(runs: _Runs, candidate: Model, output: str) -> list[_Figure] | None:
    """Figures of the tensors ahead of the discontinuity behind which ``output`` stands, if there is one."""
    pairs = pairs_ahead(runs.model, candidate, output)
    if not pairs:
        return None
    return _measure(runs, candidate, pairs, pairs)


def _verdict(figures: Sequence[_Figure], ahead: Sequence[_Figure], samples: Samples) -> Equivalence:
    names = tuple(f.name for f in ahead)
    worst = max(figures, key=lambda f: f.excess, default=None)
    if worst is None:
        return Equivalence(True, 0.0, ROUNDING_FLOOR, 0.0, "", "the model has no outputs", names)
    what = "share of unequal elements" if worst.discrete else "max|Δ|/max|y|"
    sign = "≤" if worst.fits else ">"
    message = (
        f"output {worst.name!r}: {what} {worst.moved:.2g} {sign} {worst.bound:.2g}"
        f" (own noise {worst.own:.2g}) on {_counted(samples)}"
    )
    if worst.bound > WEAK_BOUND:
        message += "; weak evidence: the source itself moves this far, real samples may say more"
    if names:
        message += f"; discontinuous outputs compared ahead, at {', '.join(names)}"
    return Equivalence(worst.fits, worst.moved, worst.bound, worst.own, worst.name, message, names)


def _measure(runs: _Runs, candidate: Model, pairs: Sequence[TensorPair], extra: Sequence[TensorPair]) -> list[_Figure]:
    """How far each pair of tensors lies apart, and the reference's own noise on it."""
    ours = [left for left, _ in extra]
    plain = _open(runs.model, runs.target, "none", ours) if extra else runs.plain
    tuned = _open(runs.model, runs.target, "all", ours)
    other = _open(candidate, runs.target, "none", [right for _, right in extra])
    if not extra:
        _require_outputs(plain, other)
    moved: dict[str, FloatAccumulator | DiscreteAccumulator] = {}
    own: dict[str, FloatAccumulator | DiscreteAccumulator] = {}
    for feed, ref, out in _both(plain, other, runs.samples):
        noisy = tuned.run(feed)
        for left, right in pairs:
            value = as_array(ref[left])
            fresh = FloatAccumulator if is_float(value) else DiscreteAccumulator
            moved.setdefault(left, fresh()).update(value, as_array(out[right]))
            own.setdefault(left, fresh()).update(value, as_array(noisy[left]))
    return [
        _Figure(name, _share(moved[name]), _share(own[name]), isinstance(moved[name], DiscreteAccumulator))
        for name, _ in pairs
    ]


def _share(sums: FloatAccumulator | DiscreteAccumulator) -> float:
    return sums.max_relative if isinstance(sums, FloatAccumulator) else 1.0 - sums.agreement


def _moved(reference: Array, output: Array) -> float:
    one = FloatAccumulator() if is_float(reference) else DiscreteAccumulator()
    one.update(reference, output)
    return _share(one)


def _both(
    left: Session, right: Session, samples: Samples
) -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array], Mapping[str, Array]]]:
    for feed in samples:
        yield feed, left.run(feed), right.run(feed)


def _require_outputs(reference: Session, candidate: Session) -> None:
    for name in reference.output_names:
        if name not in candidate.output_names:
            raise RuntimeFailure("GO-605", "the result lacks an output of the source", where=f"output {name}")


def _not_reproducible(name: str) -> Equivalence:
    message = f"not validated: the source's own output {name!r} changes from run to run"
    return Equivalence(None, 0.0, 0.0, 0.0, name, message)


def _counted(samples: Samples) -> str:
    kind = "synthetic feed" if samples.synthetic else "sample"
    return f"{len(samples)} {kind}{'' if len(samples) == 1 else 's'}"


def _open(model: Model, target: Target, level: Optimization, extra: Sequence[str] = ()) -> Session:
    return open_session(
        model,
        provider=target.provider,
        threads=target.threads,
        optimization=level,
        custom_op_libraries=target.custom_op_libraries,
        extra_outputs=extra,
        light=True,
    )
