"""The pass `quantize`: static INT8 for onnxruntime's CPU provider."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from graphopt.passes.quantize.calibrate import Calibrated, Work, calibrate, left_out, prepared
from graphopt.passes.quantize.candidates import default_placement
from graphopt.passes.quantize.choose import Bench
from graphopt.passes.quantize.emit import emit
from graphopt.passes.quantize.figures import headline, in_order, not_worth, sites, totals, trial_figures, used
from graphopt.passes.quantize.fused import LEFT_FLOAT, fusing
from graphopt.passes.quantize.isa import kernels_saturate
from graphopt.passes.quantize.plan import Plan
from graphopt.passes.quantize.prepare import prepare
from graphopt.passes.quantize.refine import Maker, Means, Switch, refined
from graphopt.passes.quantize.search import Search
from graphopt.passes.quantize.units import HEAVY, find_units, read_outside
from graphopt.passes.quantize.verify import check_fusions, foreign_integer_op, nothing_to_do
from graphopt.pipeline.contract import Broken, Pass, PassContext, PassOptions, PassResult, Refusal, Safety, Skip
from graphopt.runtime.providers import CPU
from graphopt.validation.threeway import three_way

MOST_HARM_DB = 10.0
"""Fused kernels may round ties the other way; steep networks were seen to make 6 dB of that."""
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
    rounding: Switch = Field(
        "auto",
        description="round weights of linear layers so that their errors make up for each other on the calibration "
        "samples; auto: where held-out samples gain by it",
    )
    bias_correction: Switch = Field(
        "auto",
        description="let biases make up for the mean error of rounded weights; auto: where held-out samples gain by it",
    )
    smoothing: Switch = Field(
        "auto",
        description="divide the channels of what linear layers read by factors that their weights take back; "
        "auto: where `min_sqnr` is missed without, and held-out samples gain by it; with min-max alone",
    )
    min_sqnr: float = Field(
        20.0, description="SQNR on held-out calibration samples that a candidate should reach, dB; a soft target"
    )


class Quantize(Pass[QuantizeOptions]):
    """Make a model compute in 8-bit integers where that pays on onnxruntime's CPU provider.

    What it does:
        Calibrates the ranges of the activations, then writes QuantizeLinear and DequantizeLinear nodes in the form that
        the CPU provider fuses into integer kernels: uint8 activations with explicit zero points, int8 weights per
        output channel, int32 biases on the canonical scale. Which nodes become integer is decided by measuring: time
        per node in float and in integers, and the noise that each rounded tensor and weight adds, go into a minimum
        cut; the placements it gives at several prices of noise, and simple ones, are written, timed against the float
        model and compared on calibration samples. The fastest that reaches `min_sqnr` is kept; one that misses it by
        3 dB has to be twice as fast. Nodes that only move values (Reshape, MaxPool, Pad, …) work on the integer codes;
        HardSwish and HardSigmoid are written with two integer kernels; a product with a positive scalar costs nothing.
        Where this machine's 8-bit kernels saturate (x86 without VNNI), weights are kept small enough, per output
        channel and only as far as the calibrated activations demand. Three means make numbers more accurate, each used
        where held-out samples gain by it: weights of linear layers whose rounding errors make up for each other;
        biases that make up for the mean error of rounded weights; and, where `min_sqnr` is missed without, activations
        divided channel by channel by factors that the weights take back, so that few channels that reach far do not
        leave the others without steps.

    When it applies:
        To float32 models with a Conv, Gemm or MatMul whose weight is constant, for the CPU provider, given calibration
        samples. The opset is raised to 13 where it is lower, and to 14 where linear layers read two open dimensions.

    When it refuses:
        For another provider; when the model already holds quantized nodes; when nothing in it has a constant float32
        weight (float16 models included); when the opset cannot be raised. It changes nothing where no placement is
        at least 1.02 times as fast as the float model. Tensors that hold NaN, only zeros, or values beyond 1e30 stay
        float, as do the bodies of If, Loop and Scan.

    Safety:
        APPROXIMATE. Every result is opened at ORT_ENABLE_ALL and compared with ORT_DISABLE_ALL; the number of integer
        kernels that onnxruntime loads must be the number written. A layer that it makes none of is left float; a float
        node that it would quantize by itself is kept float by a no-op.

    Options:
        Ranges: calibration, percentile. Placement: placement, integer_nodes, measure, min_sqnr; only and skip leave
        nodes float. Numbers: overflow, rounding, bias_correction, smoothing. The resolved recipe holds what was
        decided, and repeats it without measuring.

    Example:
        graphopt run model.onnx --calib calib.npz --eval eval.npz -o out.onnx --pass simplify --pass quantize

    Cost:
        Two runs of the model per calibration sample and about a second per linear layer, then measuring for as long as
        the time budget allows: one to three seconds a placement, half of what is left for noise where no simple
        placement reaches `min_sqnr`.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference
        (2018); Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient Inference (2018); Nagel et al.,
        Data-Free Quantization through Weight Equalization and Bias Correction (2019); Xiao et al., SmoothQuant (2023),
        with factors from a convex problem instead of its formula; Frantar et al., GPTQ (2022); Kolmogorov and Zabih,
        What Energy Functions Can Be Minimized via Graph Cuts? (2004).
    """

    name: ClassVar[str] = "quantize"
    code: ClassVar[str] = "QNT"
    safety: ClassVar[Safety] = Safety.APPROXIMATE
    Options: ClassVar[type[PassOptions]] = QuantizeOptions
    after: ClassVar[tuple[str, ...]] = ("simplify", "prune-weights", "remove-channels", "fuse")
    needs_samples: ClassVar[bool] = True

    def requires(self, ctx: PassContext) -> None:
        """Raise ``Refusal`` for another provider, a quantized model, or one with nothing to quantize."""
        if ctx.target.provider.name != CPU:
            raise Refusal(f"the integer form is made for {CPU}, not for {ctx.target.provider.name}")
        foreign = foreign_integer_op(ctx.model)
        if foreign is not None:
            raise Refusal(f"the model is quantized already: it holds {foreign.op}", foreign.name)
        units = find_units(ctx.model)
        if not any(unit.kind in HEAVY for unit in units.all):
            raise Refusal(nothing_to_do(ctx.model, units))

    def run(self, ctx: PassContext) -> PassResult:
        """Calibrate, choose a placement, write it."""
        assert ctx.samples is not None
        work = prepared(ctx)
        calibrated = calibrate(work, ctx, self._percentile(), split=self._measured(ctx))
        limit = self.options.overflow == "avoid" or (self.options.overflow == "auto" and kernels_saturate())
        bench = None
        if self._measured(ctx):
            template = calibrated.rest.plan(limit_pairs=limit)
            whole = replace(template, integer=default_placement(work.units, calibrated.possible))
            calibrated = calibrated.without(fusing(work.model, work.units, whole, ctx.target)[1], LEFT_FLOAT)
            bench = self._bench(work, calibrated, template, ctx)
            bench.template = self._refined(work, calibrated, bench, ctx)
        placed = replace(calibrated.whole.plan(limit_pairs=limit), integer=self._choose(work, calibrated, bench, ctx))
        placed, loose = fusing(work.model, work.units, placed, ctx.target)
        skipped = tuple(Skip(where, why) for where, why in calibrated.without(loose, LEFT_FLOAT).reasons.items())
        if not placed.integer:
            return PassResult(False, skipped=skipped, summary=trial_figures(bench), notes=(not_worth(bench),))
        maker = Maker(work, calibrated.whole, ctx.samples, placed.integer, limit, ctx.target, ctx.progress)
        means = self._given() if bench is None else Means.of(bench.template)
        plan = maker.make(means)
        notes = prepare(ctx.model, left_out(ctx))
        emit(ctx.model, plan)
        return PassResult(
            True,
            applied=sites(work.units, plan),
            skipped=skipped,
            summary={**totals(work.units, plan), **used(plan), **trial_figures(bench)},
            notes=notes,
            headline=headline(work.units, plan),
            resolved=self._resolved(work, plan),
        )

    def ensures(self, ctx: PassContext, result: PassResult) -> None:
        """Raise ``Broken`` where onnxruntime loads other kernels than written, or spoils the result by fusing."""
        if not result.modified:
            return
        check_fusions(ctx.model, ctx.target)
        assert ctx.samples is not None
        found = three_way(ctx.source, ctx.model, ctx.samples.first(8), target=ctx.target)
        if found.optimized_db < min(found.unoptimized_db - MOST_HARM_DB, CLEAR_DB):
            raise Broken(
                "runtime optimizations",
                found.message,
                {"unoptimized_db": found.unoptimized_db, "optimized_db": found.optimized_db},
            )

    def _percentile(self) -> float:
        return self.options.percentile if self.options.calibration == "percentile" else 100.0

    def _measured(self, ctx: PassContext) -> bool:
        return self.options.measure and self.options.placement == "auto" and ctx.time_budget > 0

    def _bench(self, work: Work, calibrated: Calibrated, template: Plan, ctx: PassContext) -> Bench:
        return Bench(
            work.model,
            ctx.model,
            template,
            calibrated.held_out,
            self.options.min_sqnr,
            ctx.target,
            ctx.time_budget,
            ctx.progress,
        )

    def _resolved(self, work: Work, plan: Plan) -> QuantizeOptions:
        """Options that repeat this plan without measuring."""
        means = Means.of(plan)
        decided = {
            "placement": "explicit",
            "integer_nodes": in_order(work.units, plan),
            "measure": False,
            "overflow": "avoid" if plan.limit_pairs else "ignore",
            "rounding": means.rounding,
            "bias_correction": means.correction,
            "smoothing": means.smoothing,
        }
        return self.options.model_copy(update=decided)

    def _given(self) -> Means:
        # Factors follow what channels reach: with a percentile, what it cuts off would count again.
        smoothing = self.options.smoothing if self.options.calibration == "min-max" else "off"
        return Means(self.options.rounding, self.options.bias_correction, smoothing)

    def _refined(self, work: Work, calibrated: Calibrated, bench: Bench, ctx: PassContext) -> Plan:
        """Ranges and the like of placements on trial."""
        limit, whole = bench.template.limit_pairs, default_placement(work.units, calibrated.possible)
        if not whole:
            return bench.template
        maker = Maker(work, calibrated.rest, calibrated.fitting, whole, limit, ctx.target, ctx.progress)
        means = self._given()
        if calibrated.fitting is ctx.samples and means.rounding == "auto":
            # Too few samples to judge on others than those that it was made from: it would always seem to gain.
            means = replace(means, rounding="off")
        half = bench.left / 2
        return refined(
            maker, means, self._judge(work, bench, ctx), self.options.min_sqnr, has_time=lambda: bench.left > half
        )

    def _judge(self, work: Work, bench: Bench, ctx: PassContext) -> Callable[[Plan], float]:
        """SQNR of a plan; one whose quotients cost a layer its integer kernel has none."""

        def judge(plan: Plan) -> float:
            loses = plan.smoothing and fusing(work.model, work.units, plan, ctx.target)[1]
            return -math.inf if loses else bench.sqnr_of(plan)

        return judge

    def _choose(self, work: Work, calibrated: Calibrated, bench: Bench | None, ctx: PassContext) -> frozenset[str]:
        """The units to make integer; none if it is not worth it."""
        if self.options.placement == "explicit":
            unknown = sorted(set(self.options.integer_nodes) - set(work.units.named()))
            if unknown:
                raise Refusal("this node cannot be made integer", unknown[0])
            return frozenset(self.options.integer_nodes) & calibrated.possible
        if bench is None:
            return default_placement(work.units, calibrated.possible)
        assert ctx.samples is not None
        outside = read_outside(work.model, work.units)
        search = Search(bench, work.units, calibrated.possible, ctx.samples, calibrated.elements, outside)
        best = search.run()
        return frozenset() if best is None else best.plan.integer
