"""Runs `simplify` on small models and compares what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt.analysis.cache import Analyses
from graphopt.data.synthetic import synthetic_samples
from graphopt.model.model import Model
from graphopt.passes.simplify import Simplify
from graphopt.pipeline.contract import PassContext, PassResult
from graphopt.pipeline.selection import Selection
from graphopt.runtime.session import open_session
from graphopt.runtime.target import Target
from graphopt.testing.draft import Draft

FLOAT = onnx.TensorProto.FLOAT
INT64 = onnx.TensorProto.INT64


@dataclass(frozen=True)
class Done:
    """One run: the model before and after, and what was reported."""

    before: Model
    after: Model
    result: PassResult

    @property
    def ops(self) -> list[str]:
        """Op types left, in graph order."""
        return [node.op for node in self.after.editor.nodes()]

    @property
    def rules(self) -> Counter[str]:
        """How often each rule was applied."""
        return Counter(site.rule for site in self.result.applied)

    def reasons(self, rule: str) -> list[str]:
        """What a rule gave as reasons for leaving places alone."""
        return [skip.reason for skip in self.result.skipped if skip.rule == rule]


def simplified(proto: onnx.ModelProto, **options: Any) -> Done:
    """Run the pass and tidy up, as the manager would."""
    source = Model.from_proto(proto)
    candidate = source.clone()
    chosen = Simplify.Options(**options)
    ctx = PassContext(
        model=candidate,
        source=source,
        analyses=Analyses(candidate),
        selection=Selection.of(candidate, chosen.only, chosen.skip),
        samples=None,
        target=Target(),
    )
    result = Simplify(chosen).run(ctx)
    candidate.finish()
    return Done(source, candidate, result)


def outputs(model: Model, feed: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs with the runtime's own optimizations off."""
    return open_session(model, optimization="none").run(feed)


def distance(done: Done, feed: Mapping[str, Any] | None = None, **dims: int) -> float:
    """max|Δ| / max|y| over all outputs; exactly 0 only where every bit agrees.

    Args:
        done: the run.
        feed: input name → array; by default seeded synthetic ones.
        dims: sizes of named dimensions, for synthetic feeds.
    """
    chosen = feed or synthetic_samples(done.before.interface, seed=1, dims=dims, shapes={}, bounds={}, count=1)[0]
    before, after = outputs(done.before, chosen), outputs(done.after, chosen)
    assert before.keys() == after.keys()
    worst = 0.0
    for name, value in before.items():
        assert value.dtype == after[name].dtype and value.shape == after[name].shape
        if value.tobytes() != after[name].tobytes():
            delta = float(np.max(np.abs(value.astype(np.float64) - after[name])))
            worst = max(worst, delta / float(np.max(np.abs(value))), np.finfo(np.float64).tiny)
    return worst


def unary(
    op: str,
    *parameters: np.ndarray[Any, Any],
    shape: tuple[int | str, ...] = (2, 3),
    result: tuple[int | str, ...] | None = None,
    opset: int = 17,
    free: bool = True,
    dtype: int = FLOAT,
    result_dtype: int | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """``y = Neg(op(Neg(x), parameters…))``: the node under test, free at both ends, or (``free=False``) at neither."""
    draft = Draft(0, opset=opset)
    x = draft.input("x", shape, dtype)
    if free:
        x = draft.node("Neg", [x], "before")
    names = [constant(draft, f"p{k}", value) for k, value in enumerate(parameters)]
    y = draft.node(op, [x, *names], "middle" if free else "y", name="tested", **attributes)
    if free:
        draft.node("Neg", [y], "y")
    draft.output("y", shape if result is None else result, result_dtype or dtype)
    return draft.model("unary")


def constant(draft: Draft, name: str, value: Any) -> str:
    """Add an initializer of exactly this shape, scalars included."""
    draft.initializers.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def multi_output(draft: Draft, op: str, inputs: list[str], results: list[str], **attributes: Any) -> None:
    """Add a node with several outputs."""
    draft.nodes.append(helper.make_node(op, inputs, results, name="tested", **attributes))
