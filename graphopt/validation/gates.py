"""Gates: what a result must hold before it may replace the user's model.

A gate is judged on measured facts and answers with its bound, what was measured, and one sentence. Accuracy
gates need real samples: they are refused, not waved through, when there are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from graphopt.errors import SampleError, UsageError
from graphopt.explain import explain
from graphopt.runtime.latency import PairedLatency
from graphopt.validation.compare import Comparison, OutputComparison

FLOOR_DROP = 1.0
"""Default floor with labels or a metric: points lost at most."""
FLOOR_SQNR_DB = 10.0
"""Default floor without: SQNR of every output at least."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?\s*", re.IGNORECASE)


def parse_size(value: object) -> object:
    """Bytes from ``1500000``, ``"1.5 MB"`` (10^6) or ``"1.5MiB"`` (2^20); else the value itself.

    Raises:
        ValueError: text that is not a size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is no size: write bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
    return round(float(match[1]) * _UNITS[(match[2] or "").lower()])


class Gates(BaseModel):
    """The gates of a run. ``None``: not gated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_speedup: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="least latency ratio original / optimized; must be conclusive",
    )
    max_drop: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="most points lost: of top-1 accuracy, or of 100 times the --metric where given",
    )
    min_sqnr: float | None = Field(default=None, allow_inf_nan=False, description="least SQNR of every output, in dB")
    max_size: Annotated[int, BeforeValidator(parse_size)] | None = Field(
        default=None, gt=0, description='largest model, weights included: bytes, "5MB" or "5MiB"'
    )
    never_slower: bool = Field(
        default=True,
        description="reject a model that is certainly slower: the whole 95 % interval of the ratio below 1",
    )
    floor: bool = Field(
        default=False,
        description="the default run's floor, judged on real samples only: at most 1 point lost with labels "
        "or a metric, else SQNR ≥ 10 dB on every output",
    )

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Gates:
        """Build from the gates that a user set.

        Raises:
            UsageError: GO-201, an unknown gate, or a bound that cannot be.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise UsageError("GO-201", "bad gates", why=explain(error, cls)) from error

    @property
    def needs_samples(self) -> bool:
        """Whether a gate is set that real samples must decide."""
        return self.max_drop is not None or self.min_sqnr is not None


@dataclass(frozen=True)
class Facts:
    """What was measured, for the gates to judge.

    Attributes:
        size: bytes of the candidate, weights included.
        comparisons: provider name → the candidate against the user's model on held-back samples; synthetic
            ones do not count for accuracy gates.
        latencies: provider name → the user's model (baseline) against the candidate.
    """

    size: int
    comparisons: tuple[tuple[str, Comparison], ...] = ()
    latencies: tuple[tuple[str, PairedLatency], ...] = ()


@dataclass(frozen=True)
class GateVerdict:
    """What one gate says about the candidate.

    Attributes:
        name: of the gate, as on the command line without dashes in front, e.g. ``min-sqnr``.
        passed: whether it holds.
        user_set: set by the user; ``False``: a default.
        bound: what was demanded.
        measured: what was found; ``None``: it could not be measured.
        unit: of bound and measured: ``x``, ``points``, ``dB`` or ``B``.
        message: one sentence with the numbers.
        provider: where it was measured; empty where that does not matter.
        timed: decided by timing, so that another run may decide otherwise.
    """

    name: str
    passed: bool
    user_set: bool
    bound: float
    measured: float | None
    unit: str
    message: str
    provider: str = ""
    timed: bool = False


def require_samples(gates: Gates, *, real_samples: bool, scored: bool) -> None:
    """Refuse accuracy gates that nothing could decide; call it before any work.

    Args:
        gates: the user's gates.
        real_samples: samples were given (synthetic inputs are none).
        scored: they have labels, or there is a metric.

    Raises:
        SampleError: GO-405, naming the gate and what it lacks.
    """
    if gates.needs_samples and not real_samples:
        name = "--max-drop" if gates.max_drop is not None else "--min-sqnr"
        raise SampleError(
            "GO-405",
            f"{name} cannot be judged without real samples",
            hint="give --data PATH, or --calib PATH and --eval PATH",
        )
    if gates.max_drop is not None and not scored:
        raise SampleError(
            "GO-405",
            "--max-drop cannot be judged without labels",
            hint="give samples with labels, or --metric module:function; --min-sqnr needs neither",
        )


def judge(gates: Gates, facts: Facts) -> tuple[GateVerdict, ...]:
    """Judge every gate that is set, in a fixed order.

    Args:
        gates: what is demanded.
        facts: what was measured.

    Returns:
        One verdict per gate, and per provider where it is measured on providers. Defaults that have nothing
        to judge (no latency measured, no real samples) give none.

    Raises:
        SampleError: GO-405, an accuracy gate the user set has no real samples, or no labels and no metric.
    """
    real = tuple((p, c) for p, c in facts.comparisons if not c.synthetic)
    scored = bool(real) and all(c.drop is not None for _, c in real)
    require_samples(gates, real_samples=bool(real), scored=scored)
    return (
        *_size(gates, facts),
        *_speed(gates, facts),
        *(v for provider, c in real for v in _accuracy(gates, provider, c)),
    )


def _size(gates: Gates, facts: Facts) -> Iterator[GateVerdict]:
    if gates.max_size is None:
        return
    passed = facts.size <= gates.max_size
    sign = "≤" if passed else ">"
    message = f"{facts.size:,} bytes {sign} {gates.max_size:,}"
    yield GateVerdict("max-size", passed, True, gates.max_size, facts.size, "B", message)


def _speed(gates: Gates, facts: Facts) -> Iterator[GateVerdict]:
    if gates.min_speedup is not None and not facts.latencies:
        message = "the latency was not measured"
        yield GateVerdict("min-speedup", False, True, gates.min_speedup, None, "x", message, timed=True)
    for provider, latency in facts.latencies:
        if gates.min_speedup is not None:
            yield _min_speedup(gates.min_speedup, provider, latency)
        if gates.never_slower:
            said = "slower than the original" if latency.slower else "not certainly slower than the original"
            yield GateVerdict(
                "never-slower",
                not latency.slower,
                "never_slower" in gates.model_fields_set,
                1.0,
                latency.ratio,
                "x",
                f"{interval(latency)}: {said}",
                provider,
                timed=True,
            )


def _min_speedup(bound: float, provider: str, latency: PairedLatency) -> GateVerdict:
    """The measured ratio must reach the bound, and the measurement must be conclusive."""
    passed = latency.conclusive and latency.ratio >= bound
    if not latency.conclusive:
        said = f"{interval(latency)} is inconclusive: the interval is too wide to decide"
    else:
        said = f"{interval(latency)} {'≥' if passed else '<'} {bound:g}x"
    return GateVerdict("min-speedup", passed, True, bound, latency.ratio, "x", said, provider, timed=True)


def interval(latency: PairedLatency) -> str:
    """A ratio with its 95 % interval, e.g. ``2.35x [2.31, 2.39]``."""
    return f"{latency.ratio:.2f}x [{latency.low:.2f}, {latency.high:.2f}]"


def _accuracy(gates: Gates, provider: str, found: Comparison) -> Iterator[GateVerdict]:
    if gates.max_drop is not None:
        yield _drop("max-drop", gates.max_drop, True, provider, found)
    if gates.min_sqnr is not None:
        yield _sqnr("min-sqnr", gates.min_sqnr, True, provider, found)
    if gates.floor and not gates.needs_samples:
        if found.drop is not None:
            yield _drop("floor", FLOOR_DROP, False, provider, found)
        else:
            yield _sqnr("floor", FLOOR_SQNR_DB, False, provider, found)


def _drop(name: str, bound: float, user_set: bool, provider: str, found: Comparison) -> GateVerdict:
    assert found.drop is not None
    what, points = found.drop
    # A thousandth of a point forgives the binary fractions of 0.93 - 0.92.
    passed = points <= bound + 1e-3
    change = f"loses {points:.2f} points" if points > 0 else f"gains {-points:.2f} points" if points else "is the same"
    said = f"{what} {change}"
    message = f"{said} on {found.samples} samples, {'within' if passed else 'over'} {bound:g}"
    return GateVerdict(name, passed, user_set, bound, points, "points", message, provider)


def _sqnr(name: str, bound: float, user_set: bool, provider: str, found: Comparison) -> GateVerdict:
    worst = found.worst
    if worst is None:
        return GateVerdict(name, False, user_set, bound, None, "dB", "the model has no output", provider)
    blind = next((o for o in found.outputs if o.finite_share == 0.0 and not o.empty), None)
    if blind is not None:
        message = f"output {blind.name!r} of the original is NaN or infinite everywhere: nothing can be compared"
        return GateVerdict(name, False, user_set, bound, None, "dB", message, provider)
    if all(output.empty for output in found.outputs):
        message = f"no output holds an element on any of {found.samples} samples: nothing can be compared"
        return GateVerdict(name, False, user_set, bound, None, "dB", message, provider)
    measured = worst.fidelity_db
    passed = measured >= bound
    message = f"{measured:.1f} dB {'≥' if passed else '<'} {bound:g} dB on output {worst.name!r}{_why(worst)}"
    return GateVerdict(name, passed, user_set, bound, measured, "dB", message, provider)


def _why(output: OutputComparison) -> str:
    if output.nan_mismatch:
        return f" ({output.nan_mismatch} positions are NaN or infinite in one model only)"
    if output.shape_mismatch:
        return f" (its shape differs on {output.shape_mismatch} samples)"
    if output.kind == "discrete":
        return " (from the share of equal elements)"
    return ""
