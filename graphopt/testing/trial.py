"""One pass run once on one model, with everything the conformance rules want to know about it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from graphopt.analysis.cache import Analyses
from graphopt.data.samples import Samples
from graphopt.data.synthetic import synthetic_samples
from graphopt.model.model import Model
from graphopt.pipeline.contract import Broken, Pass, PassContext, PassOptions, PassResult, Refusal
from graphopt.pipeline.selection import Selection
from graphopt.runtime.target import Target

MakeSamples = Callable[[Model], Samples]

DIMS: Mapping[str, int] = {"batch": 2, "height": 8, "width": 6}
"""Sizes that synthetic samples take for the named dimensions of the builders."""


def default_samples(model: Model) -> Samples:
    """Four seeded synthetic feeds, which is enough to see a structural mistake."""
    return synthetic_samples(model.interface, seed=0, dims=DIMS, shapes={}, bounds={}, count=4)


def canonical(model: Model) -> bytes:
    """The model as bytes that are equal exactly when the models are."""
    data: bytes = model.to_proto().SerializeToString(deterministic=True)
    return data


@dataclass(frozen=True)
class Trial:
    """What one run of a pass did.

    Attributes:
        source: the model the pass was given a clone of.
        candidate: the clone, edited and finished.
        raw: the candidate's bytes right after ``run``, before it was tidied.
        result: what the pass returned; ``None`` after a refusal or a fault.
        refusal: the refusal, where the pass refused.
        fault: what went wrong, where something did: an escaped exception or a broken postcondition.
    """

    source: Model
    candidate: Model
    raw: bytes
    result: PassResult | None
    refusal: Refusal | None = None
    fault: str = ""

    @property
    def modified(self) -> bool:
        """Whether the pass says it changed the model."""
        return self.result is not None and self.result.modified


def run_once(
    cls: type[Pass[Any]], options: PassOptions, source: Model, samples: Samples, target: Target | None = None
) -> Trial:
    """Run a fresh instance of a pass on a clone of ``source``, as the manager would, without its checks."""
    return run_instance(cls(options), source, samples, target)


def run_instance(rewrite: Pass[Any], source: Model, samples: Samples, target: Target | None = None) -> Trial:
    """Run this instance of a pass on a clone of ``source``."""
    candidate = source.clone()
    options = rewrite.options
    ctx = PassContext(
        model=candidate,
        source=source,
        analyses=Analyses(candidate),
        selection=Selection.of(candidate, options.only, options.skip),
        samples=samples,
        target=target or Target(),
        time_budget=0.0,
    )
    try:
        rewrite.requires(ctx)
        result = rewrite.run(ctx)
    except Refusal as refusal:
        return Trial(source, candidate, canonical(candidate), None, refusal)
    except Exception as error:
        return Trial(source, candidate, b"", None, fault=_escaped(error))
    return _finished(rewrite, ctx, result)


def _escaped(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error} (line {frame.lineno} of {Path(frame.filename).name})"


def _finished(rewrite: Pass[Any], ctx: PassContext, result: PassResult) -> Trial:
    raw = canonical(ctx.model)
    trial = Trial(ctx.source, ctx.model, raw, result)
    if not result.modified:
        return trial
    try:
        ctx.model.finish()
        rewrite.ensures(ctx, result)
        onnx.checker.check_model(ctx.model.to_proto(), full_check=True)
    except Broken as broken:
        return replace(trial, fault=f"broke its own check {broken.check!r}: {broken}")
    except Exception as error:
        return replace(trial, fault=f"left an invalid model: {error}")
    return trial
