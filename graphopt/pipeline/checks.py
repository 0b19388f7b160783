"""The checks that the manager makes around every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphopt.data.samples import Feed, Samples
from graphopt.errors import GraphoptError, RuntimeFailure
from graphopt.model.arrays import Array
from graphopt.model.interface import Interface
from graphopt.model.model import Model
from graphopt.pipeline.contract import Broken, Pass, PassContext, PassOptions, PassResult, Safety
from graphopt.pipeline.outcome import CheckResult
from graphopt.runtime.session import open_session
from graphopt.runtime.target import Target
from graphopt.validation.equivalence import Equivalence, check_equivalence


@dataclass(frozen=True)
class Grounds:
    """What the checks compare on.

    Attributes:
        feeds: a few real or synthetic feeds; ``None``: the source cannot be run.
        why_not: why the source cannot be run, where it cannot.
        target: where sessions are opened.
        larger: a feed of another batch, where the source takes one; for comparing, not for timing.
    """

    feeds: Samples | None
    why_not: str
    target: Target
    larger: Feed | None = None

    @property
    def compared(self) -> Samples | None:
        """The feeds, and the one of another batch."""
        if self.feeds is None or self.larger is None:
            return self.feeds
        return Samples([*self.feeds, self.larger], source=self.feeds.source, synthetic=self.feeds.synthetic)


def structural_checks(
    before: Model, candidate: Model, rewrite: Pass[PassOptions], ctx: PassContext, result: PassResult
) -> Iterator[CheckResult]:
    """Tidy the candidate and check everything that needs no session, one check at a time."""
    yield _attempt("shapes", lambda: "; ".join(candidate.finish()))
    yield _ensured(rewrite, ctx, result)
    yield _checked(before, candidate)
    expected = expected_interface(before.interface, result)
    same = candidate.interface == expected
    yield CheckResult("interface", same, "" if same else interface_difference(expected, candidate.interface))


def training_conflict(before: Model, candidate: Model) -> str:
    """Why a model with training information cannot hold the edits of a pass; empty: it can.

    Training starts from the initializers that its bindings name, so those keep their values, to the bit. That none of
    them is removed or renamed, ``Model.finish`` sees to.
    """
    if not before.has_training_info:
        return ""
    for info in before.skeleton()[0].training_info:
        for binding in (*info.initialization_binding, *info.update_binding):
            old, new = (_constant(model, binding.key) for model in (before, candidate))
            if old is not None and new is not None and not _same_bits(old, new):
                return f"it would change {binding.key!r}, which the model's training_info refers to as it is"
    return ""


def _constant(model: Model, name: str) -> Array | None:
    tensor = model.editor.tensor(name)
    return None if tensor is None else model.editor.constant(tensor)


def _same_bits(old: Array, new: Array) -> bool:
    # Bytes, since NaN equals nothing and -0.0 equals 0.0; the arrays that a pass did not touch are the same object.
    return old is new or (old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes())


def expected_interface(before: Interface, result: PassResult) -> Interface:
    """The interface after a pass: as before, less the inputs that it declares to have made constants.

    An input without a default value cannot be left out, whatever the pass declares.
    """
    gone = set(result.dropped_inputs)
    return replace(before, overridable=tuple(spec for spec in before.overridable if spec.name not in gone))


def numeric_checks(
    before: Model, candidate: Model, safety: Safety, oracle: Model | None, on: Grounds
) -> Iterator[CheckResult]:
    """Open and run the candidate, and compare its outputs as its safety class demands."""
    feeds = on.compared
    if feeds is None:
        yield CheckResult("outputs", None, f"not validated: {on.why_not}")
        return
    opens = _attempt("session", lambda: _run_finite(before, candidate, feeds, on.target))
    yield opens
    if not opens.passed:
        return
    if safety is not Safety.APPROXIMATE:
        yield _compared("outputs", before, candidate, safety, feeds, on.target)
    if oracle is not None:
        yield _compared("masked oracle", oracle, candidate, Safety.ROUNDING, feeds, on.target)


def checker_fault(model: Model) -> str:
    """What onnx's checker says against a model; empty where it takes it. What it rejects, a pass is not held to."""
    found = _attempt("checker", model.check)
    return "" if found.passed else found.message


def _checked(before: Model, candidate: Model) -> CheckResult:
    found = _attempt("checker", candidate.check)
    if found.passed or not checker_fault(before):
        return found
    return CheckResult("checker", None, "onnx's checker rejects the source too")


def _compared(
    name: str, reference: Model, candidate: Model, safety: Safety, feeds: Samples, target: Target
) -> CheckResult:
    try:
        found: Equivalence = check_equivalence(
            reference,
            candidate,
            feeds,
            safety="exact" if safety is Safety.EXACT else "rounding",
            target=target,
        )
    except GraphoptError as error:
        return CheckResult(name, False, str(error))
    return CheckResult(
        name,
        found.passed,
        found.message,
        {
            "max_relative": found.max_relative,
            "bound": found.bound,
            "own_noise": found.own_noise,
            "synthetic": feeds.synthetic,
            "samples": len(feeds),
        },
    )


def _run_finite(before: Model, candidate: Model, feeds: Samples, target: Target) -> str:
    """Run the candidate on the first feed and the last; it may be NaN only where ``before`` is.

    Raises:
        RuntimeFailure: GO-603/604, or GO-605 for new NaN or infinite values.
    """
    sessions = [
        open_session(
            m,
            provider=target.provider,
            threads=target.threads,
            custom_op_libraries=target.custom_op_libraries,
            light=True,
        )
        for m in (before, candidate)
    ]
    for feed in (feeds[0], feeds[-1]):
        _require_finite(*(session.run(feed) for session in sessions))
    return ""


def _require_finite(reference: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        fine = np.isfinite(reference[name]) if reference[name].shape == value.shape else np.ones(value.shape, bool)
        if not np.isfinite(value)[fine].all():
            raise RuntimeFailure(
                "GO-605", "the result has NaN or infinite outputs where the source has none", where=name
            )


def _ensured(rewrite: Pass[PassOptions], ctx: PassContext, result: PassResult) -> CheckResult:
    try:
        rewrite.ensures(ctx, result)
    except Broken as broken:
        return CheckResult(broken.check, False, str(broken), broken.evidence)
    except GraphoptError as error:
        return CheckResult("postcondition", False, str(error))
    return CheckResult("postcondition", True)


def _attempt(name: str, action: Callable[[], str | None]) -> CheckResult:
    try:
        note = action()
    except GraphoptError as error:
        return CheckResult(name, False, str(error))
    return CheckResult(name, True, note or "")


def interface_difference(before: Interface, after: Interface) -> str:
    """What differs, in one line."""
    for kind in ("inputs", "outputs", "overridable"):
        old, new = getattr(before, kind), getattr(after, kind)
        if old != new:
            lost = [f"{s.name}: {s.shape}" for s in old if s not in new]
            got = [f"{s.name}: {s.shape}" for s in new if s not in old]
            return f"{kind} changed: {', '.join(lost) or 'nothing'} became {', '.join(got) or 'nothing'}"
    return "the interface changed"
