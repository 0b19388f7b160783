"""What a rewrite must not do: constructs that optimizers were measured to get wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, helper

from tests.probes.probe import FLOAT, Probe, X, kept, node, relu, trunk, value, weight


def probes() -> Iterator[Probe]:
    """All probes of this module."""
    yield from _shapes()
    yield from _random()
    yield from _bombs()
    yield from _values()
    yield from _quantized()


def _ints(name: str, values: list[int]) -> TensorProto:
    return weight(name, np.array(values, np.int64))


def _shapes() -> Iterator[Probe]:
    tail = [node("Cast", ["d"], ["e"], "cast", to=FLOAT), node("Reshape", ["e", "one"], ["g"], "view")]
    one = [_ints("one", [-1, 1])]
    for name, limits in (("start", {"start": 1}), ("end", {"end": 1}), ("start and end", {"start": -2, "end": -1})):
        shape = node("Shape", ["s"], ["d"], **limits)
        model = trunk(
            shape,
            *tail,
            node("ReduceSum", ["g"], ["h"], "sum", keepdims=0),
            node("Add", ["s", "h"], ["f"], "add"),
            weights=one,
        )
        yield Probe(f"Shape with {name}", model)
    model = trunk(
        node("Size", ["s"], ["d"]), node("Cast", ["d"], ["e"], "cast", to=FLOAT), node("Add", ["s", "e"], ["f"], "add")
    )
    yield Probe("Size", model)
    model = trunk(node("Reshape", ["s", "same"], ["f"], allowzero=1), weights=[_ints("same", [2, 4])])
    yield Probe("Reshape with allowzero", model)
    model = trunk(node("Reshape", ["s", "copy"], ["f"]), weights=[_ints("copy", [0, -1])])
    yield Probe("Reshape with 0 and -1", model)


def _random() -> Iterator[Probe]:
    for op in ("RandomNormal", "RandomUniform"):
        made = node(op, [], ["r"], shape=[2, 4])
        yield Probe(
            f"{op} is not frozen", trunk(made, node("Add", ["s", "r"], ["f"], "add")), lambda m: kept(m).op_type
        )
    made = node("RandomNormalLike", ["w"], ["r"])
    model = trunk(made, node("Add", ["s", "r"], ["f"], "add"), weights=[weight("w", np.zeros((2, 4), np.float32))])
    yield Probe("RandomNormalLike of a constant is not frozen", model, lambda m: kept(m).op_type)
    made = node("Bernoulli", ["w"], ["r"])
    model = trunk(made, node("Add", ["s", "r"], ["f"], "add"), weights=[weight("w", np.full((2, 4), 0.5, np.float32))])
    yield Probe("Bernoulli of a constant is not frozen", model, lambda m: kept(m).op_type)
    train = [weight("ratio", np.float32(0.5)), weight("train", np.array(True))]
    model = trunk(node("Dropout", ["s", "ratio", "train"], ["f"]), weights=train)
    yield Probe("Dropout in training mode stays", model, lambda m: kept(m).op_type)


def _bombs() -> Iterator[Probe]:
    big = [_ints("big", [4096, 4096]), _ints("at", [0, 0, 2, 4]), _ints("zero", [0, 0]), _ints("end", [2, 4])]
    cut = node("Slice", ["c", "zero", "end"], ["d"], "cut")
    add = node("Add", ["s", "d"], ["f"], "add")
    model = trunk(node("ConstantOfShape", ["big"], ["c"]), cut, add, weights=big)
    yield Probe("ConstantOfShape of 64 MiB does not enter the file", model, lambda m: m.ByteSize() < 10_000)
    one = [*big, weight("one", np.ones((1, 1), np.float32))]
    model = trunk(node("Expand", ["one", "big"], ["c"]), cut, add, weights=one)
    yield Probe("Expand to 64 MiB does not enter the file", model, lambda m: m.ByteSize() < 10_000)
    model = trunk(node("Tile", ["one", "big"], ["c"]), cut, add, weights=one)
    yield Probe("Tile to 64 MiB does not enter the file", model, lambda m: m.ByteSize() < 10_000)
    count = [weight("start", np.float32(0)), weight("limit", np.float32(1e7)), weight("step", np.float32(1))]
    take = node("Slice", ["c", "zero", "four"], ["d"], "cut")
    model = trunk(
        node("Range", ["start", "limit", "step"], ["c"]), take, add,
        weights=[*count, _ints("zero", [0]), _ints("four", [4])],
    )  # fmt: skip
    yield Probe("Range of 40 MB does not enter the file", model, lambda m: m.ByteSize() < 10_000)


def _values() -> Iterator[Probe]:
    zeros = [weight("zero", np.float32(0)), weight("w", np.array([1, -1, 0, 2], np.float32))]
    model = trunk(node("Div", ["w", "zero"], ["c"]), node("Add", ["s", "c"], ["f"], "add"), weights=zeros)
    yield Probe("constant division by zero", model)
    model = trunk(node("Mul", ["s", "zero"], ["f"]), weights=zeros[:1])
    yield Probe("product with zero keeps NaN", model, feed={"x": np.where(X > 0, np.nan, X).astype(np.float32)})
    model = trunk(
        node("Add", ["s", "zero"], ["f"]), weights=[weight("zero", np.zeros((1, 1, 1), np.float32))], outputs=[]
    )
    model.graph.node[-1].CopyFrom(node("MatMul", ["f", "fc.weight"], ["y"], "fc"))
    model.graph.output[0].CopyFrom(value("y", (1, 2, 8)))
    yield Probe(
        "neutral operand that raises the rank",
        model,
        lambda m: [len(o.type.tensor_type.shape.dim) for o in m.graph.output],
    )
    wide = node("Cast", ["s"], ["d"], "narrow", to=TensorProto.FLOAT16)
    yield Probe(
        "Cast there and back is not nothing",
        trunk(wide, node("Cast", ["d"], ["f"], to=FLOAT)),
        lambda m: kept(m).op_type,
    )
    to8 = node("CastLike", ["s", "like"], ["d"], saturate=0)
    model = trunk(
        to8,
        node("Cast", ["d"], ["f"], "back", to=FLOAT),
        weights=[helper.make_tensor("like", TensorProto.FLOAT8E4M3FN, [1], [1.0])],
    )
    yield Probe("CastLike with saturate = 0", model, feed={"x": X * 1000})
    stats = [weight(n, np.array([1, 0.5, 2, 1], np.float32)) for n in ("scale", "bias", "mean", "var")]
    normal = node("BatchNormalization", ["s", "scale", "bias", "mean", "var"], ["f", "m", "v"], training_mode=1)
    yield Probe("BatchNormalization in training mode stays", trunk(normal, weights=stats), lambda m: kept(m).op_type)
    nameless = trunk(relu(), node("Identity", ["f"], ["renamed"], "last"), outputs=[value("renamed")])
    yield Probe("output behind an Identity keeps its name", nameless, lambda m: [o.name for o in m.graph.output])
    two = trunk(
        relu(),
        node("Identity", ["s"], ["a"], "one"),
        node("Identity", ["s"], ["b"], "two"),
        outputs=[value("a"), value("b")],
    )
    yield Probe("two outputs of one value keep both names", two, lambda m: [o.name for o in m.graph.output])
    same = trunk(relu(), node("Identity", ["x"], ["a"], "one"), outputs=[value("a")])
    yield Probe("output that is an input under another name", same, lambda m: [o.name for o in m.graph.output])


def _quantized() -> Iterator[Probe]:
    scale = [weight("scale", np.float32(0.05)), weight("zero", np.uint8(128))]
    there = node("QuantizeLinear", ["s", "scale", "zero"], ["q"], "q")
    back = node("DequantizeLinear", ["q", "scale", "zero"], ["f"], "dq")
    look = lambda m: [n.op_type for n in m.graph.node if "Linear" in n.op_type]  # noqa: E731
    yield Probe("Q/DQ of somebody else stays", trunk(there, back, weights=scale), look)
    held = [weight("codes", np.full((2, 4), 3, np.int8)), weight("step", np.float32(0.5)), weight("mid", np.int8(0))]
    dq = node("DequantizeLinear", ["codes", "step", "mid"], ["d"], "dq")
    model = trunk(dq, node("Add", ["s", "d"], ["f"], "add"), weights=held)
    yield Probe("weight behind a DequantizeLinear stays integer", model, look)
