"""The pass `quantize`: static INT8 for onnxruntime's CPU provider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field

from graphopt.analysis.activations import Activations, observe
from graphopt.data.samples import Samples
from graphopt.errors import GraphoptError, ModelError
from graphopt.model.model import Model
from graphopt.passes.quantize.candidates import default_placement
from graphopt.passes.quantize.choose import WORTH, Bench, Trial
from graphopt.passes.quantize.emit import emit
from graphopt.passes.quantize.isa import kernels_saturate
from graphopt.passes.quantize.placement import quantizable
from graphopt.passes.quantize.plan import Plan
from graphopt.passes.quantize.prepare import prepare
from graphopt.passes.quantize.ranges import Ranges, find_ranges, observed_tensors
from graphopt.passes.quantize.search import Search
from graphopt.passes.quantize.units import HEAVY, Unit, Units, find_units
from graphopt.passes.quantize.verify import check_fusions, foreign_integer_op
from graphopt.pipeline.contract import Broken, Pass, PassContext, PassOptions, PassResult, Refusal, Safety, Site, Skip
from graphopt.runtime.providers import CPU
from graphopt.validation.threeway import three_way

HELD_OUT = 16
"""Calibration samples, at most, that judge placements instead of setting ranges."""
LEAST_SAMPLES_TO_SPLIT = 8
CLEAR_DB = 40.0
"""Above this SQNR the runtime's share of the noise is of no interest."""


class QuantizeOptions(PassOptions):
    """Options of `quantize`."""

    calibration: Literal["min-max", "percentile"] = Field(
        "min-max",
        description="what of a tensor's values its grid covers: all of them, or the middle `percentile` per cent",
    )
    percentile: float = Field(
        99.99, gt=50, le=100, description="share of the values that the grid covers, per cent; for percentile"
    )
    placement: Literal["auto", "explicit"] = Field(
        "auto", description="auto: chosen among rule-based candidates; explicit: exactly the nodes of `integer_nodes`"
    )
    integer_nodes: tuple[str, ...] = Field((), description="nodes to make integer; for placement = explicit")
    measure: bool = Field(
        True, description="time the candidates and keep the fastest that is accurate enough; false: the first candidate"
    )
    overflow: Literal["auto", "avoid", "ignore"] = Field(
        "auto",
        description="avoid: keep weights small enough for x86 processors without VNNI, whose 8-bit kernels saturate; "
        "auto: where this machine's do",
    )
    min_sqnr: float = Field(
        20.0, description="SQNR on held-out calibration samples that a candidate should reach, dB; a soft target"
    )


class Quantize(Pass[QuantizeOptions]):
    """Make a model compute in 8-bit integers where that pays on onnxruntime's CPU provider.

    What it does:
        Calibrates the ranges of the activations, then writes QuantizeLinear and DequantizeLinear nodes in the form that
        the CPU provider fuses into integer kernels: uint8 activations with explicit zero points, int8 weights per
        output channel, int32 biases on the canonical scale. Which nodes become integer is decided by measuring:
        candidate placements are written, timed against the float model and compared on calibration samples that no
        range was taken from. Nodes that only move values (Reshape, MaxPool, Pad, …) work on the integer codes;
        HardSwish and HardSigmoid are written with two integer kernels; a product with a positive scalar costs nothing.

    When it applies:
        To float32 models with a Conv, Gemm or MatMul whose weight is constant, for the CPU provider, given calibration
        samples. The opset is raised to 13 where it is lower.

    When it refuses:
        For another provider; when the model already holds quantized nodes; when nothing in it has a constant float32
        weight (float16 models included); when the opset cannot be raised. It changes nothing where no placement is
        at least 1.02 times as fast as the float model. Tensors that hold NaN, only zeros, or values beyond 1e30 stay
        float, as do the bodies of If, Loop and Scan.

    Safety:
        APPROXIMATE. Every result is opened at ORT_ENABLE_ALL and compared with ORT_DISABLE_ALL; the number of integer
        kernels that onnxruntime loads must be the number written. A float node that onnxruntime would quantize by
        itself is kept float by a no-op.

    Options:
        calibration, percentile, placement, integer_nodes, measure, min_sqnr; only and skip leave nodes float.

    Example:
        graphopt run model.onnx --calib calib.npz --eval eval.npz -o out.onnx --pass simplify --pass quantize

    Cost:
        One run of the model per calibration sample, then one to three seconds per candidate placement.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference
        (2018); Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient Inference (2018).
    """

    name: ClassVar[str] = "quantize"
    code: ClassVar[str] = "QNT"
    safety: ClassVar[Safety] = Safety.APPROXIMATE
    Options: ClassVar[type[PassOptions]] = QuantizeOptions
    after: ClassVar[tuple[str, ...]] = ("simplify", "prune-weights", "remove-channels")
    needs_samples: ClassVar[bool] = True

    def requires(self, ctx: PassContext) -> None:
        """Raise ``Refusal`` for another provider, a quantized model, or one with nothing to quantize."""
        if ctx.target.provider.name != CPU:
            raise Refusal(f"the integer form is made for {CPU}, not for {ctx.target.provider.name}")
        if ctx.samples is None or len(ctx.samples) == 0:
            raise Refusal("there are no calibration samples")
        foreign = foreign_integer_op(ctx.model)
        if foreign is not None:
            raise Refusal(f"the model is quantized already: it holds {foreign.op}", foreign.name)
        if not any(unit.kind in HEAVY for unit in find_units(ctx.model).all):
            raise Refusal(_nothing_to_do(ctx.model))

    def run(self, ctx: PassContext) -> PassResult:
        """Calibrate, choose a placement, write it."""
        assert ctx.samples is not None
        work = _prepared(ctx)
        calibrated = _calibrate(work, ctx, self.options)
        trial, bench = self._choose(work, calibrated, ctx)
        skipped = tuple(Skip(where, reason) for where, reason in calibrated.reasons.items())
        if trial is None:
            return PassResult(False, skipped=skipped, summary=_trials(bench), notes=(_not_worth(bench),))
        notes = prepare(ctx.model)
        plan = replace(trial.plan, ranges=calibrated.ranges.intervals)
        emit(ctx.model, plan)
        resolved = self.options.model_copy(
            update={
                "placement": "explicit",
                "integer_nodes": _ordered(work.units, plan),
                "measure": False,
                "overflow": "avoid" if plan.limit_pairs else "ignore",
            }
        )
        return PassResult(
            True,
            applied=_sites(work.units, plan),
            skipped=skipped,
            summary={**_totals(work.units, plan), **_trials(bench)},
            notes=notes,
            resolved=resolved,
        )

    def ensures(self, ctx: PassContext, result: PassResult) -> None:
        """Raise ``Broken`` where onnxruntime loads other kernels than written, or spoils the result by fusing."""
        if not result.modified:
            return
        check_fusions(ctx.model, ctx.target)
        assert ctx.samples is not None
        found = three_way(ctx.source, ctx.model, ctx.samples.first(4), target=ctx.target)
        if found.runtime_harms and found.optimized_db < CLEAR_DB:
            raise Broken(
                "runtime optimizations",
                found.message,
                {"unoptimized_db": found.unoptimized_db, "optimized_db": found.optimized_db},
            )

    def _choose(self, work: _Work, calibrated: _Calibrated, ctx: PassContext) -> tuple[Trial | None, Bench | None]:
        limit = self.options.overflow == "avoid" or (self.options.overflow == "auto" and kernels_saturate())
        template = Plan(frozenset(), calibrated.trial_ranges.intervals, limit)
        if self.options.placement == "explicit":
            unknown = sorted(set(self.options.integer_nodes) - set(work.units.named()))
            if unknown:
                raise Refusal("this node cannot be made integer", unknown[0])
            plan = replace(template, integer=frozenset(self.options.integer_nodes) & calibrated.possible)
            return (Trial("explicit", plan, float("nan"), float("nan")) if plan.integer else None), None
        if not self.options.measure or ctx.time_budget <= 0:
            plan = replace(template, integer=default_placement(work.units, calibrated.possible))
            return (Trial("all", plan, float("nan"), float("nan")) if plan.integer else None), None
        bench = Bench(
            work.model,
            ctx.model,
            template,
            calibrated.held_out,
            self.options.min_sqnr,
            ctx.target,
            ctx.time_budget,
            ctx.progress,
        )
        assert ctx.samples is not None
        search = Search(
            bench, work.units, calibrated.possible, ctx.samples, calibrated.elements, _read_outside(work.model, work.units)
        )
        return search.run(), bench


@dataclass(frozen=True)
class _Work:
    """A float clone of the candidate in the form that units are found in."""

    model: Model
    units: Units
    allowed: frozenset[str]


@dataclass(frozen=True)
class _Calibrated:
    """Ranges from all samples, ranges without the held-out ones, and what they rule out."""

    ranges: Ranges
    trial_ranges: Ranges
    held_out: Samples
    elements: Mapping[str, float]
    possible: frozenset[str]
    reasons: dict[str, str]


def _prepared(ctx: PassContext) -> _Work:
    blocked = {tensor.name for node in ctx.editor.nodes() if not ctx.selection.allows(node) for tensor in node.outputs}
    model = ctx.model.clone()
    try:
        prepare(model)
    except ModelError as error:
        raise Refusal(f"the opset cannot be raised to 13: {error.what}", error.where) from error
    units = find_units(model)
    allowed = frozenset(u.name for u in units.all if not any(t.name in blocked for n in u.nodes for t in n.outputs))
    return _Work(model, units, allowed)


def _calibrate(work: _Work, ctx: PassContext, options: QuantizeOptions) -> _Calibrated:
    assert ctx.samples is not None
    samples = ctx.samples
    percentile = options.percentile if options.calibration == "percentile" else 100.0
    split = options.measure and options.placement == "auto" and len(samples) >= LEAST_SAMPLES_TO_SPLIT
    held = (
        [i for i in range(len(samples)) if i % 4 == 3][:HELD_OUT] if split else list(range(min(HELD_OUT, len(samples))))
    )
    rest = [i for i in range(len(samples)) if i not in held] if split else []

    def watch(part: Samples) -> Activations:
        names = observed_tensors(work.units)
        return observe(work.model, names, part, histograms=percentile < 100, target=ctx.target, progress=ctx.progress)

    if split:
        partial = watch(samples.take(rest))
        whole = partial.merged(watch(samples.take(held)))
    else:
        partial = whole = watch(samples)
    ranges = find_ranges(work.model, work.units, whole, percentile)
    trial_ranges = find_ranges(work.model, work.units, partial, percentile)
    possible, reasons = quantizable(work.units, trial_ranges, lambda unit: unit.name in work.allowed)
    still, more = quantizable(work.units, ranges, lambda unit: unit.name in possible)
    reasons = {**work.units.refused, **_bodies(work.model), **reasons, **more}
    return _Calibrated(ranges, trial_ranges, samples.take(held), whole.elements, still, reasons)


def _read_outside(model: Model, units: Units) -> frozenset[str]:
    """Tensors that a node outside of all units reads: it reads floats."""
    inside = {id(node) for unit in units.all for node in unit.nodes}
    names = {tensor for unit in units.all for tensor in unit.writes}
    found = ((name, model.editor.tensor(name)) for name in names)
    return frozenset(
        name for name, tensor in found if tensor and any(id(n) not in inside for n in model.editor.consumers(tensor))
    )


def _bodies(model: Model) -> dict[str, str]:
    """Nodes with bodies: what is inside stays float."""
    heavy = {"Conv", "Gemm", "MatMul"}
    inside = Counter(
        id(graph) for node, graph in model.editor.all_nodes() if graph is not model.graph and node.op in heavy
    )
    if not inside:
        return {}
    return {
        node.name or node.op: "its bodies stay float: units inside If, Loop and Scan are not calibrated yet"
        for node in model.editor.nodes()
        if node.op in ("If", "Loop", "Scan")
    }


def _nothing_to_do(model: Model) -> str:
    types = {
        str(c.dtype) for n in model.editor.nodes() for t in n.inputs[1:2] if (c := model.editor.constant(t)) is not None
    }
    if "float16" in types:
        return "the weights are float16: the integer kernels start from float32 models"
    return "there is no convolution or linear layer with a constant float32 weight"


def _ordered(units: Units, plan: Plan) -> tuple[str, ...]:
    return tuple(unit.name for unit in units.all if unit.name in plan.integer)


def _sites(units: Units, plan: Plan) -> tuple[Site, ...]:
    return tuple(Site(unit.name, f"{unit.kind.value} in integers") for unit in units.all if unit.name in plan.integer)


def _totals(units: Units, plan: Plan) -> dict[str, int]:
    def count(wanted: frozenset[str] | None) -> int:
        return sum(_is_heavy(unit) and (wanted is None or unit.name in wanted) for unit in units.all)

    return {
        "integer_layers": count(plan.integer),
        "layers": count(None),
        "integer_units": len(plan.integer),
        "units": len(units.all),
    }


def _is_heavy(unit: Unit) -> bool:
    return unit.kind in HEAVY


def _trials(bench: Bench | None) -> dict[str, dict[str, dict[str, float]]]:
    if bench is None:
        return {}
    found = {t.label: {"sqnr_db": round(t.sqnr_db, 2), "ratio": round(t.ratio, 3)} for t in bench.trials}
    return {"placements": found}


def _not_worth(bench: Bench | None) -> str:
    if bench is None or not bench.trials:
        return "The model stays float: no node can be made integer."
    best = max(bench.trials, key=lambda trial: trial.ratio)
    return (
        f"The model stays float: the fastest of {len(bench.trials)} integer placements runs {best.ratio:.2f}x as fast "
        f"({best.sqnr_db:.1f} dB); {WORTH:.2f}x is the least that is worth an error."
    )
