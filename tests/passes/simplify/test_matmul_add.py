"""Rule `matmul-add`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphopt.testing.draft import Draft

from .harness import constant, distance, simplified


def linear(
    bias_shape: tuple[int, ...] = (8,),
    *,
    swapped: bool = False,
    rank: int = 2,
    result: list[Any] | None = None,
    dtype: type[np.floating[Any]] = np.float32,
) -> onnx.ModelProto:
    """MatMul of x ``[n, 6]`` by a constant ``[6, 8]``, and the addition of a constant."""
    draft = Draft()
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = draft.input("x", [3, "n", 6][3 - rank :], kind)
    weight = constant(draft, "w", draft.rng.standard_normal((6, 8)).astype(dtype))
    bias = constant(draft, "b", draft.rng.standard_normal(bias_shape).astype(dtype))
    product = draft.node("MatMul", [x, weight], "product", name="product")
    draft.node("Add", [bias, product] if swapped else [product, bias], "y", name="plus")
    draft.output("y", result or [3, "n", 8][3 - rank :], kind)
    return draft.model("linear")


@pytest.mark.parametrize(
    "proto",
    [
        linear(),
        linear(swapped=True),
        linear((1, 8)),
        linear((1,)),
        linear(()),
        linear((1, 1)),
        linear(dtype=np.float64),
    ],
    ids=["vector", "swapped", "row", "one", "scalar", "one by one", "double"],
)
def test_it_becomes_gemm(proto: onnx.ModelProto) -> None:
    done = simplified(proto)
    assert done.ops == ["Gemm"]
    assert done.rules == {"matmul-add": 1}
    assert distance(done, n=5) < 1e-6
    assert not simplified(proto, exact_only=True).result.modified


@pytest.mark.parametrize(
    "proto",
    [linear(rank=3), linear((5, 8), result=[5, 8]), linear((2, 1, 8), result=[2, "n", 8])],
    ids=["rank 3", "a row each", "higher rank bias"],
)
def test_near_misses_stay(proto: onnx.ModelProto) -> None:
    assert not simplified(proto).result.modified


def test_integers_stay() -> None:
    draft = Draft()
    weight, bias = draft.const("w", np.ones((6, 8), np.int32)), draft.const("b", np.ones(8, np.int32))
    product = draft.node("MatMul", [draft.input("x", [2, 6], TensorProto.INT32), weight], "product")
    draft.node("Add", [product, bias], "y")
    draft.output("y", [2, 8], TensorProto.INT32)
    assert not simplified(draft.model("integers")).result.modified


def test_another_user_of_the_product_keeps_it() -> None:
    proto = linear()
    proto.graph.node.append(onnx.helper.make_node("Relu", ["product"], ["z"], name="user"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 8]))
    done = simplified(proto)
    assert not done.result.modified
    assert done.reasons("matmul-add") == ["the output of product has another user or is a graph output"]


@pytest.mark.parametrize("skip", ["product", "plus"])
def test_a_selection_holds_for_both_nodes(skip: str) -> None:
    assert not simplified(linear(), skip=(skip,)).result.modified


def test_a_product_of_two_activations_stays() -> None:
    draft = Draft()
    x, other = draft.input("x", [4, 6]), draft.input("other", [6, 8])
    product = draft.node("MatMul", [x, other], "product")
    draft.node("Add", [product, draft.weight("b", 8)], "y")
    draft.output("y", [4, 8])
    assert not simplified(draft.model("activations")).result.modified


def test_a_batch_norm_behind_it_folds_into_the_gemm() -> None:
    draft = Draft()
    product = draft.node("MatMul", [draft.input("x", [4, 6]), draft.weight("w", 6, 8)], "product")
    draft.batch_norm(draft.node("Add", [product, draft.weight("b", 8)], "sum"), "y", 8)
    draft.output("y", [4, 8])
    done = simplified(draft.model("normalized"))
    assert done.ops == ["Gemm"]
    assert distance(done) < 4e-6


def test_a_product_of_another_domain_stays() -> None:
    draft = Draft()
    x = draft.input("x", [3, 4])
    product = draft.node("MatMul", [x, draft.weight("w", 4, 5)], "p", domain="my.domain")
    draft.node("Add", [product, draft.weight("b", 5)], "y")
    draft.output("y", [3, 5])
    assert simplified(draft.model("foreign", domains={"my.domain": 1})).ops == ["MatMul", "Add"]
