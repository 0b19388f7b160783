"""What is checked of every model of the suite: opening and writing, passes that should change nothing, active passes.

Each check yields one line per fault and counts what it saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from graphopt.data.samples import Samples
from graphopt.errors import GraphoptError, InternalError, PassError, RuntimeFailure, UsageError
from graphopt.model.model import Model
from graphopt.pipeline.checks import Grounds
from graphopt.pipeline.contract import Safety
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.outcome import Outcome, OutcomeKind, Stage
from graphopt.pipeline.recipe import build_steps, parse_pass
from graphopt.pipeline.registry import Registry
from graphopt.runtime.session import open_session
from graphopt.runtime.target import Target
from graphopt.validation.equivalence import check_equivalence, prepare_feeds
from tests.backend.suite import canonical, same_values

OWN = tuple(name for name in Registry.discover().names() if Registry.discover().source(name) == "graphopt")
"""The passes that come with graphopt."""

_ZERO = {"prune-weights": "sparsity=0.0,min_elements=0", "remove-channels": "ratio=0.0,round_to=1"}
_EAGER = {
    "prune-weights": "min_elements=0",
    "remove-channels": "round_to=1",
    "quantize": "measure=false,min_sqnr=-1000.0,rounding=on,smoothing=on",
}

IDLE = tuple(f"{name}:skip='*'" for name in OWN)
"""Every pass, kept from every node."""
ZERO = tuple(f"{name}:{options}" for name, options in _ZERO.items())
"""Passes told to take nothing away."""
ACTIVE = (*OWN, "simplify:exact_only=true")
"""Every pass as it comes."""
EAGER = (*(f"{name}:{_EAGER[name]}" if name in _EAGER else name for name in OWN), "simplify:exact_only=true")
"""Every pass as it works most on small weights."""


def options() -> ort.SessionOptions:
    """One thread, nothing printed; both sides of a comparison get the same."""
    chosen = ort.SessionOptions()
    chosen.log_severity_level = 4
    chosen.intra_op_num_threads = chosen.inter_op_num_threads = 1
    return chosen


def bare_session(data: bytes) -> ort.InferenceSession | None:
    """A session without any of graphopt's own code; ``None`` where onnxruntime does not open the model."""
    try:
        return ort.InferenceSession(data, options(), providers=["CPUExecutionProvider"])
    except Exception:
        return None


def bare_run(session: ort.InferenceSession | None, feed: Mapping[str, Any]) -> dict[str, Any] | None:
    """All outputs; ``None`` where there is no session or it does not run."""
    if session is None:
        return None
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, {key: _native(value) for key, value in feed.items()}), strict=True))
    except Exception:
        return None


def _native(value: Any) -> Any:
    """Types that numpy does not know are handed over as their bits."""
    if not isinstance(value, np.ndarray) or not value.dtype.name.startswith(("bfloat16", "float8")):
        return value
    bits = value.view(np.uint16 if value.dtype.itemsize == 2 else np.uint8)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.helper.np_dtype_to_tensor_dtype(value.dtype))


def passes_checker(proto: onnx.ModelProto) -> bool:
    """Whether onnx's checker takes a model."""
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError:
        return False
    return True


def check_round_trip(
    name: str, source: onnx.ModelProto, feed: Mapping[str, Any], folder: Path, counts: Counter[str]
) -> Iterator[str]:
    """Open, save, open again: nothing is lost, and what onnxruntime computes stays the same to the bit."""
    counts["models"] += 1
    before = canonical(source)
    target = folder / "model.onnx"
    try:
        model = Model.from_proto(source)
        model.save(target, overwrite=True)
        written = Model.open(target).to_proto()
    except GraphoptError as error:
        counts[f"refused {error.code}"] += 1
        yield from _unmutated(name, source, before)
        return
    counts["handled"] += 1
    yield from _unmutated(name, source, before)
    yield from _nothing_lost(name, source, written, counts)
    if passes_checker(source) and not passes_checker(written):
        yield f"{name}: the checker takes the source, not the written model"
    yield from _same_outputs(name, before, target, model, feed, counts)


def _unmutated(name: str, source: onnx.ModelProto, before: bytes) -> Iterator[str]:
    if canonical(source) != before:
        yield f"{name}: the source was mutated"


def _nothing_lost(name: str, source: onnx.ModelProto, written: onnx.ModelProto, counts: Counter[str]) -> Iterator[str]:
    if canonical(source) == canonical(written):
        counts["byte-identical"] += 1
        return
    for field in ("input", "output", "initializer", "node", "value_info"):
        old, new = getattr(source.graph, field), getattr(written.graph, field)
        if [x.SerializeToString(deterministic=True) for x in old] != [
            x.SerializeToString(deterministic=True) for x in new
        ]:
            yield f"{name}: graph.{field} is not byte-identical after load and save"


def _same_outputs(
    name: str, before: bytes, target: Path, model: Model, feed: Mapping[str, Any], counts: Counter[str]
) -> Iterator[str]:
    session = bare_session(before)
    if session is None:
        counts["onnxruntime does not open the source"] += 1
        return
    counts["onnxruntime opens the source"] += 1
    expected = bare_run(session, feed)
    for way, data in (("file", target.read_bytes()), ("skeleton", None)):
        try:
            other = bare_session(data) if data is not None else open_session(model).raw
        except GraphoptError as error:
            yield f"{name}: opens in onnxruntime, but not as {way}: {error}"
            continue
        if other is None:
            yield f"{name}: the written {way} does not open in onnxruntime"
        elif expected is not None:
            yield from _equal_run(name, way, session, expected, bare_run(other, feed), feed, counts)


def _equal_run(
    name: str,
    way: str,
    session: Any,
    expected: Mapping[str, Any],
    found: Mapping[str, Any] | None,
    feed: Mapping[str, Any],
    counts: Counter[str],
) -> Iterator[str]:
    if found is not None and same_values(expected, found):
        counts[f"{way}: bit-identical outputs"] += 1
    elif not same_values(expected, bare_run(session, feed) or {}):
        counts[f"{way}: random outputs"] += 1
    else:
        yield f"{name}: outputs of the {way} differ" + (" (it does not run)" if found is None else "")


def _manager(model: Model, feed: Mapping[str, Any] | None) -> PassManager:
    samples = Samples.of([feed]) if feed else None
    target = Target()
    if samples is None:
        grounds = Grounds(None, "the suite has no input for it", target)
    else:
        prepared = prepare_feeds(model, samples, seed=0, target=target)
        grounds = Grounds(prepared.feeds, prepared.reason, target, prepared.larger)
    return PassManager(source=model, grounds=grounds, samples=samples, validate=False, time_budget=0.0)


def run_pass(model: Model, feed: Mapping[str, Any] | None, text: str) -> Stage:
    """One pass on one model, under the manager's checks."""
    steps = build_steps([parse_pass(text)], Registry.discover(), named=True)
    return _manager(model, feed).run(steps)[-1]


def check_idle(
    name: str, source: onnx.ModelProto, feed: Mapping[str, Any], texts: Sequence[str], counts: Counter[str]
) -> Iterator[str]:
    """Passes that should change nothing change nothing."""
    try:
        model = Model.from_proto(source)
    except GraphoptError as error:
        counts[f"refused {error.code}"] += 1
        return
    manager = PassManager(
        source=model,
        grounds=Grounds(Samples.of([feed]), "", Target()),
        samples=Samples.of([feed]),
        time_budget=0.0,
    )
    for text in texts:
        try:
            stage = manager.run(build_steps([parse_pass(text)], Registry.discover(), named=True))[-1]
        except GraphoptError as error:
            yield f"{name}: {text} raises {error.code} {error}"
            continue
        counts[stage.outcome.kind.value] += 1
        if stage.outcome.kind not in (OutcomeKind.UNCHANGED, OutcomeKind.SKIPPED):
            yield f"{name}: {text} was {stage.outcome.kind.value}: {stage.outcome.reason}"
        if stage.model is not model:
            yield f"{name}: {text} handed back another model"
    if canonical(model.to_proto()) != canonical(source):
        yield f"{name}: the model changed"


def check_active(
    name: str, source: onnx.ModelProto, feed: Mapping[str, Any], text: str, counts: Counter[str]
) -> Iterator[str]:
    """An active pass neither crashes nor is taken back for a model that it broke; what it commits holds."""
    try:
        model = Model.from_proto(source)
    except GraphoptError as error:
        counts[f"refused {error.code}"] += 1
        return
    try:
        stage = run_pass(model, feed, text)
    except GraphoptError as error:
        if isinstance(error, InternalError | PassError | UsageError):
            yield f"{name}: {text} raises {error.code} {error}"
        counts[f"refused {error.code}"] += 1
        return
    counts[stage.outcome.kind.value] += 1
    yield from _no_crash(name, text, stage.outcome)
    if stage.outcome.kind is OutcomeKind.APPLIED:
        yield from _valid(name, text, source, stage, feed, counts)


EXCUSED = (
    # The expanded AffineGrid hands Range a vector of one, out of a branch that onnxruntime cannot see into. Once the
    # condition is constant it can, and refuses the model.
    ("affine_grid", "Input to 'Range' op should be scalars"),
    # One rounding of a float16 output is more than the bound, and this source makes no noise of its own.
    ("fp16", "max|Δ|/max|y|"),
)
"""Models on which a pass is rightly rolled back: part of the name, part of the reason."""


def _excused(name: str, reason: str) -> bool:
    return any(part in name and words in reason for part, words in EXCUSED)


def _no_crash(name: str, text: str, outcome: Outcome) -> Iterator[str]:
    if outcome.kind is OutcomeKind.FAILED:
        cause = outcome.error.__cause__ if outcome.error is not None else None
        yield f"{name}: {text} failed: {outcome.reason} {cause!r}"
    if outcome.kind is OutcomeKind.ROLLED_BACK and not _excused(name, outcome.reason):
        yield f"{name}: {text} was rolled back: {outcome.reason}"


def _valid(
    name: str, text: str, source: onnx.ModelProto, stage: Stage, feed: Mapping[str, Any], counts: Counter[str]
) -> Iterator[str]:
    """Judged without the manager: the checker, a bare session, and outputs within the safety class."""
    written = stage.model.to_proto()
    if passes_checker(source) and not passes_checker(written):
        yield f"{name}: {text} wrote a model that the checker rejects"
    if [v.SerializeToString() for v in written.graph.output] != [v.SerializeToString() for v in source.graph.output]:
        yield f"{name}: {text} changed the declared outputs"
    session = bare_session(canonical(source))
    if session is None:
        counts["structure only"] += 1
        return
    other = bare_session(canonical(written))
    if other is None:
        yield f"{name}: {text} wrote a model that onnxruntime does not open"
        return
    expected = bare_run(session, feed)
    found = bare_run(other, feed)
    if expected is not None and found is None:
        yield f"{name}: {text} wrote a model that does not run"
    elif expected is not None:
        yield from _within(name, text, source, stage, feed, counts)


def _within(
    name: str, text: str, source: onnx.ModelProto, stage: Stage, feed: Mapping[str, Any], counts: Counter[str]
) -> Iterator[str]:
    safety = stage.outcome.step.rewrite.safety
    if safety is Safety.APPROXIMATE:
        counts["applied, approximate"] += 1
        return
    exact = safety is Safety.EXACT or "exact_only" in text
    model = Model.from_proto(source)
    try:
        found = check_equivalence(
            model, stage.model, Samples.of([feed]), safety="exact" if exact else "rounding", target=Target()
        )
    except RuntimeFailure as error:
        yield f"{name}: {text}: {error}"
        return
    counts["bit-identical" if found.max_relative == 0 else "within the bound"] += 1
    if found.passed is False:
        yield f"{name}: {text}: {found.message}"
