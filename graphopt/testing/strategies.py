"""Hypothesis strategies: small random models that are valid, run, and hold what rewrites have to get right.

A model is a chain of blocks over a feature map ``[batch, channels, height, width]`` or a sequence
``[batch, 6, width]``. Blocks are structures, not single operators, so that an example of five blocks already couples
channels across residual connections, branches, concatenations, splits, shared weights, heads of attention and bodies of
If. Weights come from one seeded generator: what shrinks is the structure. Needs the package hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.testing.draft import Draft

OPSETS = (13, 17, 21)
WIDTHS = (4, 6, 8, 16, 24, 32)
STEPS = 6
"""Length of a sequence."""

_BATCHES: st.SearchStrategy[int | str] = st.sampled_from((1, "batch"))
_SIZES: st.SearchStrategy[tuple[int | str, ...]] = st.sampled_from(((8, 6), ("height", "width")))


@dataclass
class Sketch:
    """A model being drawn.

    Attributes:
        draft: collects it.
        draw: of hypothesis.
        tip: the tensor that the next block reads.
        width: channels of ``tip``.
        rank: 4 for a feature map, 3 for a sequence.
        count: blocks so far, for names.
    """

    draft: Draft
    draw: st.DrawFn
    tip: str
    width: int
    rank: int
    count: int = 0

    def name(self, kind: str) -> str:
        """A fresh name."""
        self.count += 1
        return f"{kind}{self.count}"

    def pick(self, *options: int) -> int:
        """One of some numbers; the first is the simplest."""
        return self.draw(st.sampled_from(options))

    def flip(self) -> bool:
        """Yes or no; no is simpler."""
        return self.draw(st.booleans())

    def node(self, op: str, inputs: list[str], kind: str = "", **attributes: Any) -> str:
        """A node with one output, under a fresh name."""
        return self.draft.node(op, inputs, self.name(kind or op.lower()), **attributes)

    def vector(self, kind: str, *shape: int, low: float = 0.5, high: float = 1.5) -> str:
        """A positive float32 initializer."""
        return self.draft.const(self.name(kind), self.draft.rng.uniform(low, high, shape).astype(np.float32))


Block = Callable[[Sketch], None]


def _conv(sketch: Sketch, x: str, width_in: int, width_out: int, **options: int | bool) -> str:
    return sketch.draft.conv(x, sketch.name("conv"), width_in, width_out, **options)  # type: ignore[arg-type]


def _convolution(sketch: Sketch) -> None:
    """A Conv of any kind, with or without what usually follows."""
    width, kernel = sketch.pick(*WIDTHS), sketch.pick(1, 3)
    x = _conv(sketch, sketch.tip, sketch.width, width, kernel=kernel, bias=sketch.flip())
    if sketch.flip():
        x = sketch.draft.batch_norm(x, sketch.name("bn"), width)
    sketch.tip, sketch.width = _activated(sketch, x), width


def _activated(sketch: Sketch, x: str) -> str:
    op = sketch.draw(st.sampled_from(("Relu", "", "Sigmoid", "HardSwish", "LeakyRelu", "Clip")))
    if op == "HardSwish" and sketch.draft.opset < 14:
        op = "Tanh"
    if op == "Clip":
        return sketch.node(op, [x, _scalar(sketch, 0.0), _scalar(sketch, 6.0)])
    return sketch.node(op, [x]) if op else x


def _scalar(sketch: Sketch, number: float) -> str:
    name = sketch.name("scalar")
    sketch.draft.initializers.append(helper.make_tensor(name, TensorProto.FLOAT, [], [number]))
    return name


def _depthwise(sketch: Sketch) -> None:
    sketch.tip = _activated(sketch, _conv(sketch, sketch.tip, sketch.width, sketch.width, group=sketch.width))


def _grouped(sketch: Sketch) -> None:
    groups = 2 if sketch.width % 2 == 0 else 1
    y = _conv(sketch, sketch.tip, sketch.width, sketch.width, group=groups, bias=sketch.flip())
    sketch.tip = _activated(sketch, y)


def _residual(sketch: Sketch) -> None:
    """Adds f(x) to x, with a wider or narrower middle."""
    middle = sketch.pick(*WIDTHS)
    inner = _activated(sketch, _conv(sketch, sketch.tip, sketch.width, middle, bias=sketch.flip()))
    back = _conv(sketch, inner, middle, sketch.width, kernel=1)
    if sketch.flip():
        back = sketch.draft.batch_norm(back, sketch.name("bn"), sketch.width)
    sketch.tip = _activated(sketch, sketch.node("Add", [sketch.tip, back]))


def _branches(sketch: Sketch) -> None:
    """Two or three branches joined by Concat; one may be the tensor itself."""
    parts, widths = [], []
    for _ in range(sketch.pick(2, 3)):
        width = sketch.pick(*WIDTHS)
        if sketch.flip():
            parts.append(_activated(sketch, _conv(sketch, sketch.tip, sketch.width, width, kernel=1)))
            widths.append(width)
        else:
            parts.append(sketch.tip)
            widths.append(sketch.width)
    sketch.tip, sketch.width = sketch.node("Concat", parts, axis=1), sum(widths)


def _split(sketch: Sketch) -> None:
    """Halves that go different ways and meet again, added, multiplied or put together in the other order."""
    if sketch.width < 2:
        return
    half = sketch.width // 2
    sizes = sketch.draft.const(sketch.name("sizes"), np.array([half, sketch.width - half], np.int64))
    left, right = sketch.name("left"), sketch.name("right")
    sketch.draft.nodes.append(
        helper.make_node("Split", [sketch.tip, sizes], [left, right], sketch.name("split"), axis=1)
    )
    how = sketch.draw(st.sampled_from(("Add", "Mul", "Concat")))
    if how == "Concat":
        sketch.tip = sketch.node("Concat", [right, left], axis=1)
    elif half * 2 == sketch.width:
        sketch.tip, sketch.width = sketch.node(how, [_activated(sketch, left), right]), half
    else:
        sketch.tip, sketch.width = left, half


def _shared(sketch: Sketch) -> None:
    """One weight read by two Convs in a row."""
    weight = sketch.draft.weight(sketch.name("shared"), sketch.width, sketch.width, 1, 1)
    for _ in range(2):
        sketch.tip = _activated(sketch, sketch.node("Conv", [sketch.tip, weight], kernel_shape=[1, 1]))


def _gate(sketch: Sketch) -> None:
    """Squeeze and excite (Hu et al., 2018)."""
    pooled = sketch.node("GlobalAveragePool", [sketch.tip])
    small = sketch.node("Relu", [_conv(sketch, pooled, sketch.width, 4, kernel=1, bias=True)])
    gate = sketch.node("Sigmoid", [_conv(sketch, small, 4, sketch.width, kernel=1, bias=True)])
    sketch.tip = sketch.node("Mul", [sketch.tip, gate])


def _pool(sketch: Sketch) -> None:
    op = sketch.draw(st.sampled_from(("MaxPool", "AveragePool")))
    sketch.tip = sketch.node(op, [sketch.tip], kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def _per_channel(sketch: Sketch) -> None:
    """A constant for each channel, on either side."""
    pair = [sketch.tip, sketch.vector("channelwise", sketch.width, 1, 1)]
    op = sketch.draw(st.sampled_from(("Mul", "Add", "Sub", "Div", "PRelu")))
    sketch.tip = sketch.node(op, pair[::-1] if op in ("Mul", "Add") and sketch.flip() else pair)


def _idle(sketch: Sketch) -> None:
    """What simplification removes."""
    op = sketch.draw(st.sampled_from(("Identity", "Dropout", "Transpose", "one", "zero", "Constant")))
    if op == "Transpose":
        perm = (0, 2, 3, 1) if sketch.rank == 4 else (0, 2, 1)
        back = tuple(int(i) for i in np.argsort(perm))
        sketch.tip = sketch.node(op, [sketch.node(op, [sketch.tip], perm=perm)], perm=back)
    elif op in ("one", "zero"):
        sketch.tip = sketch.node("Mul" if op == "one" else "Add", [sketch.tip, _scalar(sketch, float(op == "one"))])
    elif op == "Constant":
        sketch.tip = sketch.node("Mul", [sketch.tip, sketch.node("Constant", [], value_float=0.5)])
    else:
        sketch.tip = sketch.node(op, [sketch.tip])


def _choice(sketch: Sketch) -> None:
    """An If whose branches read the tensor and one weight of the outer graph."""
    shape = (sketch.width, 1, 1) if sketch.rank == 4 else (sketch.width,)
    outer = sketch.vector("outer", *shape)
    flag = sketch.name("flag")
    sketch.draft.input(flag, [], TensorProto.BOOL)
    bodies = []
    for kind, op in (("then", "Mul"), ("else", "Add")):
        result = sketch.name(kind)
        node = helper.make_node(op, [sketch.tip, outer], [result], name=f"{result}/{op}")
        bodies.append(helper.make_graph([node], kind, [], [onnx.ValueInfoProto(name=result)]))
        bodies[-1].output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    sketch.tip = sketch.node("If", [flag], "if", then_branch=bodies[0], else_branch=bodies[1])


def _linear(sketch: Sketch, x: str, width_in: int, width_out: int, *, bias: bool) -> str:
    weight = sketch.draft.weight(sketch.name("weight"), width_in, width_out, scale=width_in**-0.5)
    product = sketch.node("MatMul", [x, weight])
    if not bias:
        return product
    return sketch.node("Add", [product, sketch.draft.weight(sketch.name("bias"), width_out, scale=0.1)])


def _dense(sketch: Sketch) -> None:
    width = sketch.pick(*WIDTHS)
    y = _linear(sketch, sketch.tip, sketch.width, width, bias=sketch.flip())
    sketch.tip, sketch.width = _activated(sketch, y), width


def _feed_forward(sketch: Sketch) -> None:
    """Adds f(x) to x, with a wider or narrower middle."""
    middle = sketch.pick(*WIDTHS)
    inner = _activated(sketch, _linear(sketch, sketch.tip, sketch.width, middle, bias=True))
    sketch.tip = sketch.node("Add", [sketch.tip, _linear(sketch, inner, middle, sketch.width, bias=sketch.flip())])


def _norm(sketch: Sketch) -> None:
    if sketch.draft.opset >= 17:
        scale, bias = sketch.vector("scale", sketch.width), sketch.vector("bias", sketch.width)
        sketch.tip = sketch.node("LayerNormalization", [sketch.tip, scale, bias], axis=-1)
    else:
        sketch.tip = sketch.node("Softmax", [sketch.tip], axis=-1)


def _attention(sketch: Sketch) -> None:
    """Self-attention of two heads, with the residual connection around it."""
    head = sketch.width // 2
    split = sketch.draft.const(sketch.name("heads"), np.array([0, 0, 2, head], np.int64))
    parts = []
    for _ in range(3):
        y = _linear(sketch, sketch.tip, sketch.width, 2 * head, bias=sketch.flip())
        y = sketch.node("Reshape", [y, split])
        parts.append(sketch.node("Transpose", [y], perm=[0, 2, 1, 3]))
    key = sketch.node("Transpose", [parts[1]], perm=[0, 1, 3, 2])
    scores = sketch.node("Div", [sketch.node("MatMul", [parts[0], key]), _scalar(sketch, float(np.sqrt(head)))])
    mixed = sketch.node("MatMul", [sketch.node("Softmax", [scores], axis=-1), parts[2]])
    join = sketch.draft.const(sketch.name("join"), np.array([0, 0, 2 * head], np.int64))
    joined = sketch.node("Reshape", [sketch.node("Transpose", [mixed], perm=[0, 2, 1, 3]), join])
    y = _linear(sketch, joined, 2 * head, sketch.width, bias=True)
    sketch.tip = sketch.node("Add", [sketch.tip, y])


def _tied(sketch: Sketch) -> None:
    """One weight read by two MatMuls in a row."""
    weight = sketch.draft.weight(sketch.name("tied"), sketch.width, sketch.width, scale=sketch.width**-0.5)
    for _ in range(2):
        sketch.tip = _activated(sketch, sketch.node("MatMul", [sketch.tip, weight]))


MAP_BLOCKS: tuple[Block, ...] = (
    *(_convolution, _residual, _depthwise, _grouped, _branches, _split, _shared),
    *(_gate, _pool, _per_channel, _idle, _choice),
)
SEQUENCE_BLOCKS: tuple[Block, ...] = (_dense, _feed_forward, _attention, _norm, _tied, _idle, _choice)


@st.composite
def feature_maps(draw: st.DrawFn, most: int = 6, blocks: tuple[Block, ...] = MAP_BLOCKS) -> onnx.ModelProto:
    """Convolutional models with input ``[batch, channels, height, width]`` and a classifier or the map as output.

    Args:
        draw: given by hypothesis.
        most: blocks at most.
        blocks: what to draw from.
    """
    draft = _draft(draw)
    batch = draw(_BATCHES)
    size = draw(_SIZES)
    width = draw(st.sampled_from(WIDTHS[:3]))
    sketch = Sketch(draft, draw, draft.input("input", [batch, width, *size]), width, 4)
    _grow(sketch, blocks, most)
    if draw(st.booleans()):
        draft.head(sketch.tip, sketch.width, batch=batch)
    else:
        draft.conv(sketch.tip, "output", sketch.width, 4, kernel=1, bias=True)
        draft.output("output", [batch, 4, *size])
    return draft.model("feature_map")


@st.composite
def sequences(draw: st.DrawFn, most: int = 5, blocks: tuple[Block, ...] = SEQUENCE_BLOCKS) -> onnx.ModelProto:
    """Transformer-like models with input and output ``[batch, 6, width]``.

    Args:
        draw: given by hypothesis.
        most: blocks at most.
        blocks: what to draw from.
    """
    draft = _draft(draw)
    batch = draw(_BATCHES)
    width = draw(st.sampled_from(WIDTHS))
    sketch = Sketch(draft, draw, draft.input("input", [batch, STEPS, width]), width, 3)
    _grow(sketch, blocks, most)
    names = [sketch.tip, draft.weight("last.weight", sketch.width, 8, scale=sketch.width**-0.5)]
    draft.node("MatMul", names, "output")
    draft.output("output", [batch, STEPS, 8])
    return draft.model("sequence")


def models() -> st.SearchStrategy[onnx.ModelProto]:
    """Any model of this module; it runs with ``graphopt.testing.trial.default_samples``."""
    return st.one_of(feature_maps(), sequences())


def _draft(draw: st.DrawFn) -> Draft:
    return Draft(draw(st.integers(0, 99)), opset=draw(st.sampled_from(OPSETS)))


def _grow(sketch: Sketch, blocks: tuple[Block, ...], most: int) -> None:
    for block in sketch.draw(st.lists(st.sampled_from(blocks), min_size=2, max_size=most)):
        block(sketch)
