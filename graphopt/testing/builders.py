"""Small seeded models, one per structure that rewrites have to get right.

Each builder takes a seed and gives a new ``onnx.ModelProto``; equal seeds give equal bytes. Hidden widths are
multiples of 32, so that a cut to half keeps to the rounding a channel removal defaults to. Builders about
file features are in ``formats``; ``ALL`` names every builder.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from graphopt.testing import formats
from graphopt.testing.draft import Draft

Builder = Callable[[int], onnx.ModelProto]


def conv_bn_relu(seed: int = 0) -> onnx.ModelProto:
    """Two Conv → BatchNormalization → Relu blocks and a classifier; input ``[1, 3, 8, 8]``."""
    draft = Draft(seed)
    x = draft.conv_bn_relu(draft.input("input", [1, 3, 8, 8]), "block1", 3, 32)
    x = draft.conv_bn_relu(x, "block2", 32, 64, stride=2)
    draft.head(x, 64)
    return draft.model("conv_bn_relu")


def residual(seed: int = 0) -> onnx.ModelProto:
    """A stem and a residual block whose Add ties their channels together; input ``[1, 3, 8, 8]``."""
    draft = Draft(seed)
    stem = draft.conv_bn_relu(draft.input("input", [1, 3, 8, 8]), "stem", 3, 32)
    inner = draft.conv_bn_relu(stem, "inner", 32, 64)
    back = draft.batch_norm(draft.conv(inner, "back.conv", 64, 32), "back", 32)
    y = draft.node("Relu", [draft.node("Add", [stem, back], "sum")], "joined")
    draft.head(y, 32)
    return draft.model("residual")


def depthwise(seed: int = 0) -> onnx.ModelProto:
    """A depthwise-separable block as in MobileNet (2017); input ``[1, 3, 8, 8]``."""
    draft = Draft(seed)
    x = draft.conv_bn_relu(draft.input("input", [1, 3, 8, 8]), "stem", 3, 32)
    x = draft.conv_bn_relu(x, "depthwise", 32, 32, group=32)
    x = draft.conv_bn_relu(x, "pointwise", 32, 64, kernel=1)
    draft.head(x, 64)
    return draft.model("depthwise")


def mlp(seed: int = 0) -> onnx.ModelProto:
    """Three Gemm layers, one stored transposed; input ``[4, 16]``."""
    draft = Draft(seed)
    x = draft.input("input", [4, 16])
    names = [x, draft.weight("fc1.weight", 64, 16), draft.weight("fc1.bias", 64, scale=0.1)]
    x = draft.node("Relu", [draft.node("Gemm", names, "fc1", transB=1)], "act1")
    names = [x, draft.weight("fc2.weight", 64, 32, scale=0.18), draft.weight("fc2.bias", 32, scale=0.1)]
    x = draft.node("Relu", [draft.node("Gemm", names, "fc2")], "act2")
    names = [x, draft.weight("fc3.weight", 10, 32), draft.weight("fc3.bias", 10, scale=0.1)]
    draft.node("Gemm", names, "output", transB=1)
    draft.output("output", [4, 10])
    return draft.model("mlp")


def matmul_add(seed: int = 0) -> onnx.ModelProto:
    """MatMul → Add (a linear layer as PyTorch exports it) on rank 2 and on rank 3; input ``[2, 5, 16]``."""
    draft = Draft(seed)
    x = draft.input("input", [2, 5, 16])
    x = draft.node("MatMul", [x, draft.weight("up.weight", 16, 32, scale=0.3)], "up.product")
    x = draft.node("Add", [x, draft.weight("up.bias", 32, scale=0.1)], "up")
    x = draft.node("ReduceMean", [draft.node("Relu", [x], "act")], "mean", axes=[1], keepdims=0)
    x = draft.node("MatMul", [x, draft.weight("down.weight", 32, 10, scale=0.25)], "down.product")
    draft.node("Add", [draft.weight("down.bias", 10, scale=0.1), x], "output")
    draft.output("output", [2, 10])
    return draft.model("matmul_add")


def attention(seed: int = 0) -> onnx.ModelProto:
    """One self-attention block of 4 heads with LayerNormalization and feed-forward; input ``[2, 6, 32]``."""
    draft = Draft(seed)
    x = draft.input("input", [2, 6, 32])
    draft.const("split", np.array([0, 0, 4, 8], np.int64))
    draft.const("join", np.array([0, 0, 32], np.int64))
    draft.const("root", np.array(np.sqrt(8.0), np.float32))
    q, k, v = (_heads(draft, x, part) for part in ("query", "key", "value"))
    key = draft.node("Transpose", [k], "key.t", perm=[0, 1, 3, 2])
    scores = draft.node("Div", [draft.node("MatMul", [q, key], "product"), "root"], "scores")
    weights = draft.node("Softmax", [scores], "weights", axis=-1)
    mixed = draft.node("MatMul", [weights, v], "mixed")
    merged = draft.node("Transpose", [mixed], "merged", perm=[0, 2, 1, 3])
    joined = draft.node("Reshape", [merged, "join"], "joined")
    x = _layer_norm(draft, draft.node("Add", [x, _linear(draft, joined, "proj", 32, 32)], "sum1"), "norm1")
    hidden = draft.node("Relu", [_linear(draft, x, "up", 32, 64)], "hidden")
    y = draft.node("Add", [x, _linear(draft, hidden, "down", 64, 32)], "sum2")
    _layer_norm(draft, y, "output")
    draft.output("output", [2, 6, 32])
    return draft.model("attention")


def _linear(draft: Draft, x: str, name: str, size_in: int, size_out: int) -> str:
    weight = draft.weight(f"{name}.weight", size_in, size_out, scale=size_in**-0.5)
    product = draft.node("MatMul", [x, weight], f"{name}.product")
    return draft.node("Add", [product, draft.weight(f"{name}.bias", size_out, scale=0.1)], name)


def _heads(draft: Draft, x: str, name: str) -> str:
    split = draft.node("Reshape", [_linear(draft, x, name, 32, 32), "split"], f"{name}.split")
    return draft.node("Transpose", [split], f"{name}.heads", perm=[0, 2, 1, 3])


def _layer_norm(draft: Draft, x: str, output: str) -> str:
    scale = draft.const(f"{output}.scale", draft.rng.uniform(0.5, 1.5, 32).astype(np.float32))
    bias = draft.weight(f"{output}.bias", 32, scale=0.1)
    return draft.node("LayerNormalization", [x, scale, bias], output, axis=-1)


def concat(seed: int = 0) -> onnx.ModelProto:
    """Two branches of unequal width joined by Concat and read by one Conv; input ``[1, 3, 8, 8]``."""
    draft = Draft(seed)
    x = draft.conv_bn_relu(draft.input("input", [1, 3, 8, 8]), "stem", 3, 32)
    left = draft.conv_bn_relu(x, "left", 32, 32, kernel=1)
    right = draft.conv_bn_relu(x, "right", 32, 64)
    joined = draft.node("Concat", [left, right], "joined", axis=1)
    draft.head(draft.conv_bn_relu(joined, "merge", 96, 32, kernel=1), 32)
    return draft.model("concat")


def squeeze_excite(seed: int = 0) -> onnx.ModelProto:
    """A squeeze-and-excitation gate (Hu et al., 2018): a Mul of a feature map with its own pooled weights."""
    draft = Draft(seed)
    x = draft.conv_bn_relu(draft.input("input", [1, 3, 8, 8]), "stem", 3, 32)
    squeezed = draft.node("GlobalAveragePool", [x], "squeeze")
    small = draft.node("Relu", [draft.conv(squeezed, "reduce", 32, 8, kernel=1, bias=True)], "reduced")
    gate = draft.node("Sigmoid", [draft.conv(small, "expand", 8, 32, kernel=1, bias=True)], "gate")
    gated = draft.node("Mul", [x, gate], "gated")
    draft.head(draft.conv_bn_relu(gated, "after", 32, 32), 32)
    return draft.model("squeeze_excite")


def conv_transpose(seed: int = 0) -> onnx.ModelProto:
    """Down with Conv, up with ConvTranspose → BatchNormalization; input and output ``[1, 3, 8, 8]``."""
    draft = Draft(seed)
    x = draft.conv_bn_relu(draft.input("input", [1, 3, 8, 8]), "down", 3, 32, stride=2)
    names = [x, draft.weight("up.weight", 32, 32, 2, 2, scale=0.15)]
    y = draft.node("ConvTranspose", names, "up", kernel_shape=[2, 2], strides=[2, 2])
    y = draft.node("Relu", [draft.batch_norm(y, "up.bn", 32)], "up.act")
    draft.conv(y, "output", 32, 3, bias=True)
    draft.output("output", [1, 3, 8, 8])
    return draft.model("conv_transpose")


def flatten_gemm(seed: int = 0) -> onnx.ModelProto:
    """Conv → MaxPool → Flatten → Gemm: a channel feeds 16 Gemm columns; input ``[1, 1, 8, 8]``."""
    draft = Draft(seed)
    x = draft.conv_bn_relu(draft.input("input", [1, 1, 8, 8]), "block", 1, 32)
    x = draft.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = draft.node("Flatten", [x], "flat", axis=1)
    names = [x, draft.weight("fc.weight", 10, 512), draft.weight("fc.bias", 10, scale=0.1)]
    draft.node("Gemm", names, "output", transB=1)
    draft.output("output", [1, 10])
    return draft.model("flatten_gemm")


def redundant(seed: int = 0) -> onnx.ModelProto:
    """What simplification is for: Identity, Dropout, Constant nodes, a constant subtree and a dead branch."""
    draft = Draft(seed)
    x = draft.node("Identity", [draft.input("input", [1, 3, 8, 8])], "same")
    x = draft.node("Dropout", [draft.conv(x, "conv", 3, 32, bias=True)], "kept")
    two = draft.node("Constant", [], "two", value_floats=[2.0])
    half = draft.node("Div", [two, draft.const("four", np.array([4.0], np.float32))], "half")
    scaled = draft.node("Mul", [x, half], "scaled")
    draft.node("Relu", [x], "unused")
    draft.head(scaled, 32)
    return draft.model("redundant")


def nothing_to_do(seed: int = 0) -> onnx.ModelProto:
    """One Softmax, no weights: every pass has to leave each byte as it is; input ``[2, 8]``."""
    draft = Draft(seed)
    draft.node("Softmax", [draft.input("input", [2, 8])], "output", axis=-1)
    draft.output("output", [2, 8])
    return draft.model("nothing_to_do")


ALL: dict[str, Builder] = {
    build.__name__: build
    for build in (
        conv_bn_relu,
        residual,
        depthwise,
        mlp,
        matmul_add,
        attention,
        concat,
        squeeze_excite,
        conv_transpose,
        flatten_gemm,
        redundant,
        nothing_to_do,
        formats.dynamic_dims,
        formats.shared_weights,
        formats.if_capturing_weight,
        formats.quantized,
        formats.opset8,
        formats.ir3,
        formats.overridable,
        formats.listed_weights,
        formats.documented,
    )
}
"""Every builder by name."""
