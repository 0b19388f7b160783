"""Models and helpers for the tests of `remove-channels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from graphopt.analysis.cache import Analyses
from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.passes.remove_channels import RemoveChannels
from graphopt.pipeline.contract import PassContext, PassResult
from graphopt.pipeline.selection import Selection
from graphopt.runtime.session import open_session
from graphopt.runtime.target import Target
from graphopt.testing.draft import Draft

Array = np.ndarray[Any, Any]


def removed(
    source: onnx.ModelProto | Model, *, samples: Samples | None = None, **options: Any
) -> tuple[Model, PassResult]:
    """Run the pass as the manager would, and its ``ensures``."""
    model = Model.of(source)
    model.finish()
    candidate = model.clone()
    chosen = RemoveChannels.Options(**{"ratio": 0.5, "round_to": 1, **options})
    ctx = PassContext(
        model=candidate,
        source=model,
        analyses=Analyses(candidate),
        selection=Selection.of(candidate, chosen.only, chosen.skip),
        samples=samples,
        target=Target(),
    )
    rewrite = RemoveChannels(chosen)
    rewrite.requires(ctx)
    result = rewrite.run(ctx)
    rewrite.ensures(ctx, result)
    return candidate, result


def feeds(model: Model, count: int = 2, seed: int = 0) -> list[dict[str, Array]]:
    """Normal inputs; a named dimension is 2."""
    rng = np.random.default_rng(seed)
    shapes = {s.name: [d if isinstance(d, int) else 2 for d in s.shape or ()] for s in model.interface.inputs}
    return [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]


def outputs(model: Model, given: list[dict[str, Array]]) -> list[Array]:
    """All outputs, the runtime's own optimizations off."""
    session = open_session(model, optimization="none")
    return [value for feed in given for value in session.run(feed).values()]


def gap(one: Model, other: Model) -> float:
    """Largest max|Δ| / max|y| over outputs and feeds."""
    given = feeds(one)
    pairs = zip(outputs(one, given), outputs(other, given), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)) for a, b in pairs)


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Initializer shapes by name."""
    return {t.name: tuple(t.dims) for t in model.to_proto().graph.initializer}


class Net:
    """A random network, block after block; ``width`` channels of ``size`` × ``size`` at ``at``."""

    def __init__(self, seed: int, width: int) -> None:
        self.draft = Draft(seed)
        self.count = 0
        self.size = 8
        self.width = width
        self.at = self.draft.conv(self.draft.input("input", [1, 3, 8, 8]), "stem", 3, width, bias=True)

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def conv_bn_relu(self, other: int) -> None:
        self.at = self.draft.conv_bn_relu(self.at, self.name("cbr"), self.width, other)
        self.width = other

    def pointwise(self, other: int) -> None:
        self.at = self.draft.conv(self.at, self.name("pw"), self.width, other, kernel=1)
        self.width = other

    def residual(self, other: int) -> None:
        inner = self.draft.conv_bn_relu(self.at, self.name("inner"), self.width, other)
        back = self.draft.conv(inner, self.name("back"), other, self.width, bias=True)
        self.at = self.draft.node("Add", [back, self.at], self.name("sum"))

    def depthwise(self, other: int) -> None:
        multiple = 1 + other % 2
        y = self.draft.conv(self.at, self.name("dw"), self.width, self.width * multiple, group=self.width, bias=True)
        self.width *= multiple
        self.at = self.draft.node("Clip", [y, *self._bounds()], self.name("clip"))

    def _bounds(self) -> list[str]:
        low, high = self.name("low"), self.name("high")
        return [self.draft.const(low, np.float32(0)), self.draft.const(high, np.float32(6))]

    def grouped(self, other: int) -> None:
        self.pointwise(4 * (1 + other % 3))
        self.at = self.draft.conv(self.at, self.name("grouped"), self.width, 2 * self.width, group=2, bias=True)
        self.width *= 2

    def concat(self, other: int) -> None:
        left = self.draft.conv_bn_relu(self.at, self.name("left"), self.width, other)
        right = self.draft.conv(self.at, self.name("right"), self.width, 6, kernel=1)
        self.at = self.draft.node("Concat", [left, right, self.at, left], self.name("joined"), axis=1)
        self.width += 2 * other + 6

    def excite(self, other: int) -> None:
        squeezed = self.draft.node("GlobalAveragePool", [self.at], self.name("squeeze"))
        small = self.draft.node(
            "Relu", [self.draft.conv(squeezed, self.name("se"), self.width, other, kernel=1)], self.name("s")
        )
        gate = self.draft.conv(small, self.name("ex"), other, self.width, kernel=1, bias=True)
        gate = self.draft.node("HardSigmoid", [gate], self.name("gate"))
        self.at = self.draft.node("Mul", [gate, self.at], self.name("gated"))

    def pool(self, other: int) -> None:
        kind, extra = [("MaxPool", {}), ("AveragePool", {"count_include_pad": 1})][other % 2]
        self.at = self.draft.node(kind, [self.at], self.name("pool"), kernel_shape=[3, 3], pads=[1] * 4, **extra)

    def sigmoid(self, other: int) -> None:
        self.at = self.draft.node("Sigmoid", [self.at], self.name("sigmoid"))
        self.pointwise(other)

    def prelu(self, other: int) -> None:
        slope = self.draft.weight(self.name("slope"), self.width, 1, 1)
        self.at = self.draft.node("PRelu", [self.at, slope], self.name("prelu"))

    def scale(self, other: int) -> None:
        factor = self.draft.weight(self.name("factor"), 1, self.width, 1, 1)
        self.at = self.draft.node("Div" if other % 2 else "Mul", [self.at, factor], self.name("scaled"))

    def shuffle(self, other: int) -> None:
        self.pointwise(2 * other)
        apart, size = self.name("apart"), self.size
        self.draft.const(f"{apart}.shape", np.array([1, 2, other, size, size], np.int64))
        self.draft.const(f"{apart}.back", np.array([0, -1, size, size], np.int64))
        y = self.draft.node("Reshape", [self.at, f"{apart}.shape"], apart)
        y = self.draft.node("Transpose", [y], f"{apart}.t", perm=[0, 2, 1, 3, 4])
        self.at = self.draft.node("Reshape", [y, f"{apart}.back"], f"{apart}.joined")

    def pick(self, other: int) -> None:
        """Channels by constant indices: a shuffle, two halves swapped, a part, or any order."""
        self.pointwise(2 * other)
        shuffled = np.arange(2 * other).reshape(2, other).T.reshape(-1)
        orders = [shuffled, np.roll(np.arange(2 * other), other), np.arange(2, other) - 2 * other]
        order = [*orders, self.draft.rng.permutation(2 * other)][other % 4]
        indices = self.draft.const(self.name("order"), order.astype(np.int64))
        self.at = self.draft.node("Gather", [self.at, indices], self.name("picked"), axis=1)
        self.width = len(order)

    def split(self, other: int) -> None:
        self.pointwise(2 * other)
        name = self.name("half")
        node = onnx.helper.make_node("Split", [self.at], [f"{name}.a", f"{name}.b"], name=name, axis=1)
        self.draft.nodes.append(node)
        gate = self.draft.node("Sigmoid", [f"{name}.b"], f"{name}.gate")
        self.at = self.draft.node("Mul", [f"{name}.a", gate], f"{name}.gated")
        self.width = other

    def widen(self, other: int) -> None:
        """The shortcut of a CIFAR ResNet: zeros before and after the channels (He et al. 2016, option A)."""
        pads = self.draft.const(self.name("pads"), np.array([0, other, 0, 0, 0, other, 0, 0], np.int64))
        wide = self.draft.node("Pad", [self.at, pads], self.name("wide"))
        main = self.draft.conv(self.at, self.name("main"), self.width, self.width + 2 * other)
        self.at = self.draft.node("Add", [main, wide], self.name("sum"))
        self.width += 2 * other

    def crop(self, other: int) -> None:
        self.pointwise(other + 5)
        names = [
            self.draft.const(self.name(part), np.array([value], np.int64))
            for part, value in (("start", 2), ("end", 2 + other), ("axis", 1))
        ]
        self.at = self.draft.node("Slice", [self.at, *names], self.name("crop"))
        self.width = other

    def finish(self, flatten: bool) -> onnx.ModelProto:
        if not flatten:
            self.draft.head(self.at, self.width)
            return self.draft.model("net")
        flat = self.draft.node("Flatten", [self.at], "flat", axis=1)
        weight = self.draft.weight("fc.weight", 10, self.width * self.size**2)
        self.draft.node("Gemm", [flat, weight], "output", transB=1)
        self.draft.output("output", [1, 10])
        return self.draft.model("net")


BLOCKS = [name for name in vars(Net) if not name.startswith("_") and name not in ("name", "finish")]


@st.composite
def nets(draw: st.DrawFn) -> onnx.ModelProto:
    """Random networks of one to four blocks."""
    net = Net(draw(st.integers(0, 2**16)), draw(st.integers(4, 8)))
    for _ in range(draw(st.integers(1, 4))):
        getattr(net, draw(st.sampled_from(BLOCKS)))(draw(st.integers(4, 8)))
    return net.finish(draw(st.booleans()))


def made(proto: onnx.ModelProto, count: int = 24, seed: int = 1) -> Samples:
    """Pictures with some structure: smooth random fields of low rank."""
    rng = np.random.default_rng(seed)
    spec = Model.of(proto).interface.inputs[0]
    shape = [d if isinstance(d, int) else 1 for d in spec.shape or ()]
    basis = rng.standard_normal((6, *shape)).astype(np.float32)
    mix = rng.standard_normal((count, 6)).astype(np.float32)
    return Samples.of([{spec.name: np.tensordot(m, basis, 1)} for m in mix])
