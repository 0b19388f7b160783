"""Work grows with the graph, not with its square: counted in function calls, since times depend on the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.model.model import Model
from graphopt.passes.fuse.families import FAMILIES
from graphopt.passes.simplify import RULES
from graphopt.pipeline.families import Family, apply_families
from graphopt.pipeline.rules import Limits, Rule, Scope
from graphopt.pipeline.selection import Selection

LAYERS = 12
GROWTH = 4.3
"""Most that four times the layers may cost: 4, and what lists double as they grow."""
SIMPLIFY = Family("simplify", "", tuple(rule for rule in RULES.values() if not rule.name.startswith("fold-")))


def layers(count: int) -> onnx.ModelProto:
    """Normalisation, product, gate, views and If, a layer each; all constants are shared by all layers."""
    nodes: list[onnx.NodeProto] = []

    def node(op: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [f"t{len(nodes)}"], f"n{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    x = "x"
    for _ in range(count):
        mean = node("ReduceMean", x, axes=[-1])
        centred = node("Sub", x, mean)
        variance = node("ReduceMean", node("Pow", centred, "two"), axes=[-1])
        y = node("Div", centred, node("Sqrt", node("Add", variance, "eps")))
        y = node("Add", node("Mul", node("Identity", y), "gain"), "bias")
        y = node("Add", node("Mul", node("MatMul", y, "weight"), "half"), "bias")
        y = node("Add", node("Mul", y, node("Sigmoid", y)), node("Mul", y, node("Sigmoid", y)))
        y = node("Transpose", node("Transpose", y, perm=[1, 0]), perm=[1, 0])
        y = node("Reshape", node("Reshape", y, "three"), "flat")
        y = node("DequantizeLinear", node("QuantizeLinear", y, "half", "zero"), "half", "zero")
        x = node("Add", x, node("If", "flag", then_branch=_branch("Relu", y), else_branch=_branch("Neg", y)))
    values = {
        "two": np.float32(2),
        "eps": np.float32(1e-5),
        "gain": np.linspace(1, 2, 8, dtype=np.float32),
        "bias": np.linspace(0, 1, 8, dtype=np.float32),
        "weight": np.eye(8, dtype=np.float32) * 1.5,
        "half": np.float32(0.5),
        "zero": np.uint8(7),
        "three": np.array([2, 2, 8]),
        "flat": np.array([4, 8]),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "layers",
        [value("x", TensorProto.FLOAT, [4, 8]), value("flag", TensorProto.BOOL, [])],
        [value(x, TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _branch(op: str, captured: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{captured}_{op}", TensorProto.FLOAT, [4, 8])
    return helper.make_graph([helper.make_node(op, [captured], [output.name])], op, [], [output])


def calls(work: Callable[[], object]) -> int:
    """Functions called and generators resumed while ``work`` runs, native ones included."""
    count = 0

    def count_one(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_one)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def _growth(work: Callable[[int], Callable[[], object]]) -> float:
    work(2)()  # caches of schemas and the like are filled once
    small, large = calls(work(LAYERS)), calls(work(4 * LAYERS))
    return large / small


def test_opening_copying_and_saving(tmp_path: Path) -> None:
    def work(count: int) -> Callable[[], object]:
        path = tmp_path / f"{count}.onnx"
        path.write_bytes(layers(count).SerializeToString())
        return lambda: Model.open(path).clone().save(tmp_path / "out.onnx", overwrite=True)

    assert _growth(work) < GROWTH


def _rewriting(family: Family) -> Callable[[int], Callable[[], object]]:
    def work(count: int) -> Callable[[], object]:
        model = Model.from_proto(layers(count))
        scope = Scope(model, Selection.of(model), Limits(1 << 16))

        def rewrite() -> None:
            apply_families(scope, [family])
            model.finish()

        return rewrite

    return work


@pytest.mark.parametrize("family", [SIMPLIFY, *FAMILIES], ids=lambda family: family.name)
def test_rewriting(family: Family) -> None:
    assert family.rules and (family is not SIMPLIFY or all(issubclass(rule, Rule) for rule in family.rules))
    assert _growth(_rewriting(family)) < GROWTH


def test_removing_what_nobody_needs() -> None:
    def work(count: int) -> Callable[[], object]:
        model = Model.from_proto(layers(count))
        first = next(node for node in model.editor.nodes() if node.op == "Mul")
        last = model.graph.outputs[0]
        model.editor.replace_uses(last, first.outputs[0])
        return model.finish

    assert _growth(work) < GROWTH


def test_copies_between_nodes_and_many_outputs() -> None:
    def work(count: int) -> Callable[[], object]:
        names = [f"y{i}" for i in range(20 * count)]
        nodes = [helper.make_node("Neg", ["x"], [f"{name}_"], name) for name in names]
        nodes += [helper.make_node("Identity", [f"{name}_"], [name], f"{name}_copy") for name in names]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes, "g", [value("x", TensorProto.FLOAT, [8])], [value(n, TensorProto.FLOAT, [8]) for n in names]
        )
        model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        copies = [node for node in model.editor.nodes() if node.op == "Identity"]

        def bypass() -> None:
            for node in copies:
                model.editor.bypass(node)
            assert len(model.editor.nodes()) == len(names)

        return bypass

    assert _growth(work) < GROWTH


def test_sorting_a_graph_that_is_the_wrong_way_round() -> None:
    def work(count: int) -> Callable[[], object]:
        proto = layers(count)
        turned = list(proto.graph.node)[::-1]
        del proto.graph.node[:]
        proto.graph.node.extend(turned)
        return lambda: Model.from_proto(proto).graph

    assert _growth(work) < GROWTH
