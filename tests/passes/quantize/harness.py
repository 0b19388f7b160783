"""Shared by the tests of `quantize`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from graphopt.analysis.activations import observe
from graphopt.analysis.cache import Analyses
from graphopt.data.samples import Samples
from graphopt.data.synthetic import synthetic_samples
from graphopt.model.model import Model
from graphopt.passes.quantize import Quantize, QuantizeOptions
from graphopt.passes.quantize.placement import settle
from graphopt.passes.quantize.plan import Plan
from graphopt.passes.quantize.ranges import find_ranges, observed_tensors
from graphopt.passes.quantize.units import find_units
from graphopt.passes.simplify import Simplify, SimplifyOptions
from graphopt.pipeline.contract import PassContext, PassResult
from graphopt.pipeline.selection import Selection
from graphopt.runtime.session import Optimization, open_session
from graphopt.runtime.target import Target
from graphopt.testing.draft import Draft
from graphopt.testing.trial import DIMS
from graphopt.validation.compare import compare


def outliers(far: float = 40.0, activation: str = "Elu") -> onnx.ModelProto:
    """Two linear layers; between them two of 128 channels reach ``far`` times as far as the others."""
    draft = Draft(0)
    up, down = (draft.rng.standard_normal(shape) / 8 for shape in ((64, 128), (128, 64)))
    up[:, 3::64] *= far
    down[3::64] /= far
    x = draft.node(
        "MatMul", [draft.input("input", [2, 12, 64]), draft.const("up", up.astype(np.float32))], "up.product"
    )
    x = draft.node(activation, [draft.node("Add", [x, draft.weight("up.bias", 128, scale=0.1)], "up.sum")], "act")
    x = draft.node("MatMul", [x, draft.const("down", down.astype(np.float32))], "down.product")
    draft.node("Add", [x, draft.weight("down.bias", 64, scale=0.1)], "output")
    draft.output("output", [2, 12, 64])
    return draft.model("outliers")


def context(model: Model, samples: Samples | None, options: Any, *, seconds: float = 0.0, **more: Any) -> PassContext:
    """What the manager would hand over."""
    return PassContext(
        model=model,
        source=model.clone(),
        analyses=Analyses(model),
        selection=Selection.of(model, options.only, options.skip),
        samples=samples,
        target=more.get("target", Target()),
        time_budget=seconds,
    )


def simplified(proto: onnx.ModelProto) -> Model:
    """The model with BatchNormalization folded."""
    model = Model.from_proto(proto)
    rewrite = Simplify(SimplifyOptions())
    rewrite.run(context(model, None, rewrite.options))
    model.finish()
    return model


def feeds(model: Model, count: int = 6, seed: int = 5) -> Samples:
    """Seeded synthetic feeds."""
    return synthetic_samples(model.interface, seed=seed, dims=DIMS, shapes={}, bounds={}, count=count)


def quantized(
    model: Model, samples: Samples | None = None, *, seconds: float = 0.0, **options: Any
) -> tuple[Model, PassResult]:
    """Run the pass on a clone as the manager would, its own checks included."""
    rewrite = Quantize(QuantizeOptions(**options))
    ctx = context(model.clone(), samples or feeds(model), rewrite.options, seconds=seconds)
    rewrite.requires(ctx)
    result = rewrite.run(ctx)
    if result.modified:
        ctx.model.finish()
        rewrite.ensures(ctx, result)
        onnx.checker.check_model(ctx.model.to_proto(), full_check=True)
    return ctx.model, result


def plan_of(model: Model, integer: frozenset[str] | None = None, *, samples: Samples | None = None) -> Plan:
    """A plan with ranges from seeded feeds; by default everything that makes sense is integer."""
    units = find_units(model)
    found = observe(model, observed_tensors(units), samples or feeds(model))
    ranges = find_ranges(model, units, found)
    possible = {u.name for u in units.all if not any(t in ranges.problems for t in (*u.reads, *u.writes))}
    return Plan(settle(units, possible) if integer is None else integer, ranges.intervals, limit_pairs=True)


def sqnr(reference: Model, candidate: Model, samples: Samples, optimization: Optimization = "all") -> float:
    """SQNR of the worst output, dB."""
    sessions = open_session(reference), open_session(candidate, optimization=optimization)
    worst = compare(*sessions, samples).worst
    assert worst is not None
    return worst.fidelity_db


def ops(model: Model) -> list[str]:
    """Operators in graph order, without Q and DQ."""
    return [n.op for n in model.editor.nodes() if n.op not in ("QuantizeLinear", "DequantizeLinear")]
