"""Nodes that their operator does not allow: no rule of `simplify` and `fuse` falls over one, or takes it for a form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt.analysis.cache import Analyses
from graphopt.model.model import Model
from graphopt.passes.fuse import FAMILIES
from graphopt.passes.simplify import Simplify
from graphopt.pipeline.contract import PassContext
from graphopt.pipeline.families import apply_families
from graphopt.pipeline.rules import Limits, Scope
from graphopt.pipeline.selection import Selection
from graphopt.runtime.target import Target
from graphopt.testing import builders
from graphopt.testing.draft import Draft
from tests.passes.fuse.norms.norm_forms import normed
from tests.passes.fuse.sketch import Sketch


def simplify(model: Model) -> None:
    chosen = Simplify.Options()
    ctx = PassContext(model, model, Analyses(model), Selection.of(model, (), ()), None, Target())
    Simplify(chosen).run(ctx)


def fuse(model: Model) -> None:
    apply_families(Scope(model, Selection.of(model, (), ()), Limits(0)), FAMILIES)


def _norm() -> onnx.ModelProto:
    sketch = Sketch()
    result = normed(sketch, sketch.input("x", [2, 3, 8]), square="Mul")
    sketch.output(result, [2, 3, 8])
    return sketch.model("norm")


def _slice() -> onnx.ModelProto:
    draft = Draft()
    bounds = [draft.const(name, np.array([value], np.int64)) for name, value in (("s", 0), ("e", 9), ("a", 1))]
    draft.node("Neg", [draft.node("Slice", [draft.input("x", [2, 3]), *bounds], "sliced")], "y")
    draft.output("y", [2, 3])
    return draft.model("slice")


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "norm": _norm,
    "slice": _slice,
    **{
        name: lambda name=name: builders.ALL[name](0)  # type: ignore[misc]
        for name in ("attention", "conv_bn_relu", "matmul_add", "mlp", "residual", "squeeze_excite")
    },
}


def _operand_gone(model: Model, node: gs.Node) -> None:
    del node.inputs[-1]


def _operands_gone(model: Model, node: gs.Node) -> None:
    node.inputs.clear()


def _operand_left_out(model: Model, node: gs.Node) -> None:
    node.inputs[0] = gs.Variable.empty()


def _words_for_numbers(model: Model, node: gs.Node) -> None:
    node.attrs.update(dict.fromkeys(list(node.attrs), "abc"))


BREAKS = [_operand_gone, _operands_gone, _operand_left_out, _words_for_numbers]


def _broken(name: str, damage: Callable[[Model, gs.Node], None]) -> Iterator[Model]:
    """The model with each of its nodes broken in turn."""
    source = Model.from_proto(MODELS[name]())
    for place in range(len(source.editor.nodes())):
        model = source.clone()
        node = model.editor.nodes()[place]
        if len(node.inputs):
            damage(model, node)
            yield model


@pytest.mark.parametrize("rewrite", [simplify, fuse])
@pytest.mark.parametrize("damage", BREAKS)
@pytest.mark.parametrize("name", MODELS)
def test_no_rule_raises(name: str, damage: Callable[[Model, gs.Node], None], rewrite: Callable[[Model], None]) -> None:
    for model in _broken(name, damage):
        rewrite(model)


@pytest.mark.parametrize(("place", "values"), [(1, [0, 0]), (2, [9, 9]), (3, [0, 1]), (3, [5]), (3, [-3])])
def test_bounds_of_a_slice_that_contradict_each_other_stay(place: int, values: list[int]) -> None:
    model = Model.from_proto(_slice())
    node = model.editor.nodes()[0]
    model.editor.set_constant(node, place, np.array(values, np.int64))
    for rewrite in (simplify, fuse):
        rewrite(model)
    assert [left.op for left in model.editor.nodes()] == ["Slice", "Neg"]
