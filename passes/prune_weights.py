"""The pass `prune-weights`: magnitude pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from pydantic import Field

from graphopt.analysis.ranking import Smallest, in_chunks
from graphopt.model.domains import in_standard_domain
from graphopt.model.editor import GraphEditor
from graphopt.model.store import WeightStore
from graphopt.pipeline.contract import Json, Pass, PassContext, PassOptions, PassResult, Refusal, Safety, Site, Skip
from graphopt.pipeline.nested import nested_skips

Array = npt.NDArray[Any]
OpType = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]
Normalization = Literal["none", "std", "lamp"]

ZEROS_ARE_NOT_FAST = (
    "Zeros make the file compress better; they do not make onnxruntime faster on a CPU (measured up to 99 % zeros)."
)


class PruneWeightsOptions(PassOptions):
    """Options of `prune-weights`."""

    sparsity: float = Field(0.5, ge=0.0, le=1.0, description="share of weights that become zero, 0 to 1")
    scope: Literal["local", "global"] = Field(
        "local", description="local: the share holds in each tensor; global: over all tensors together"
    )
    normalize: Normalization = Field(
        "none",
        description="global only: divide magnitudes by the tensor's deviation (std) or rank by LAMP scores (lamp)",
    )
    min_elements: int = Field(1024, ge=0, description="leave tensors with fewer elements alone")
    op_types: tuple[OpType, ...] = Field(
        ("Conv", "ConvTranspose", "Gemm", "MatMul"), description="op types whose weights are pruned", min_length=1
    )


@dataclass(frozen=True)
class _Weight:
    """One constant tensor and the places that use it as a weight.

    Attributes:
        tensor: the initializer.
        value: float array of any shape.
        uses: (node, input index) of each use.
    """

    tensor: gs.Tensor
    value: Array
    uses: tuple[tuple[gs.Node, int], ...]


Scores = Callable[[], Iterable[Array]]
"""Gives the scores of one tensor in order, in pieces as ``in_chunks`` makes them."""


@dataclass(frozen=True)
class _Ranked:
    """Scores of one tensor, and which are the smallest."""

    scores: Scores
    smallest: Smallest


class PruneWeights(Pass[PruneWeightsOptions]):
    """Set the weights of least magnitude to zero.

    What it does:
        In every weight tensor of Conv, ConvTranspose, Gemm and MatMul (`scope = "local"`), or over all of them
        together (`scope = "global"`), exactly floor(sparsity · n) elements become zero: those of least |w|, the
        earlier one first where magnitudes are equal. `normalize` makes tensors comparable in the global
        ranking: `std` divides by the tensor's standard deviation, `lamp` ranks by w² over the sum of the w²
        that are not smaller. A tensor that several layers share is pruned once. Shapes do not change.

    When it applies:
        To initializers of type float16, float32 or float64 with at least `min_elements` elements.

    When it refuses:
        Each reason is in the report with its node: weights behind DequantizeLinear (quantization already in a
        model is left alone), weights that are computed in the graph, overridable initializers (in IR 4 and
        later an initializer that is also a graph input is an input with a default, not a constant), tensors
        that something other than a selected layer also uses, tensors with NaN or infinity, tensors below
        `min_elements`. Biases are never pruned. A model without a single such weight is refused as a whole.
        Layers inside bodies of If, Loop and Scan are not looked at.

    Safety:
        APPROXIMATE: the error is reported per output and obeys the gates. The report gives each tensor's
        sparsity and its signal-to-noise ratio 10 · log10(Σ w² / Σ (w - ŵ)²) in dB: for Gaussian weights 11.47
        dB at 50 % and 5.59 dB at 75 %. A second run changes nothing.

    Options:
        `normalize` has a meaning with `scope = "global"` only: within one tensor the order stays the same.

    Example:
        `graphopt run model.onnx -o out.onnx --data samples/ --pass prune-weights:sparsity=0.6`

        In a recipe:

            [[pass]]
            name = "prune-weights"
            sparsity = 0.6
            scope = "global"
            normalize = "lamp"

    Cost:
        Linear in the number of weights (selection, not sorting, but for `lamp`); memory for one tensor at a time,
        whatever the model's size. No samples needed; without them the result's fidelity is not gated. Zeros alone
        do not make onnxruntime faster on a CPU: at 0, 50, 90 and 99 % zeros a 3x3 convolution took 8.82, 8.70,
        8.78 and 8.71 ms, a matrix product 4.42, 4.35, 4.30 and 4.47 ms. What they bring is a file that compresses
        better, and other runtimes that know sparse kernels.

    References:
        Han et al., 2015, "Learning both Weights and Connections for Efficient Neural Networks" (magnitude
        pruning). Lee et al., 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning" (LAMP). Kuzmin et
        al., 2023, "Pruning vs Quantization: Which is Better?" (signal-to-noise ratio of pruning).
    """

    name: ClassVar[str] = "prune-weights"
    code: ClassVar[str] = "PRW"
    safety: ClassVar[Safety] = Safety.APPROXIMATE
    Options: ClassVar[type[PassOptions]] = PruneWeightsOptions

    def requires(self, ctx: PassContext) -> None:
        """Refuse a model that holds no weight to prune."""
        weights, skipped = self._find(ctx)
        if not weights:
            reason = "the model has no constant floating-point weight to prune"
            first = skipped[0] if skipped else None
            raise Refusal(f"{reason}: {first.reason}" if first else reason, first.where if first else None)

    def run(self, ctx: PassContext) -> PassResult:
        """See ``Pass.run``."""
        weights, skipped = self._find(ctx)
        ranked = self._ranked(weights, ctx.model.store)
        sites: list[Site] = []
        zeros = 0
        for weight, scores in ctx.progress.track(ranked, label="pruning", total=len(weights)):
            pruned, loss = _pruned(weight.value, scores)
            zeros += loss.zeros
            if loss.changed:
                _store(ctx.editor, weight, pruned)
                sites.append(_site(weight, loss))
        total = sum(weight.value.size for weight in weights)
        return PassResult(
            modified=bool(sites),
            applied=tuple(sites),
            skipped=tuple(skipped),
            summary={"sparsity": zeros / total if total else 0.0, "weights": total, "zeros": zeros},
            notes=(ZEROS_ARE_NOT_FAST,) if sites else (),
            headline=f"{zeros:,} of {total:,} weights are zero ({_percent(zeros, total)}) in {len(weights)} tensors",
        )

    def _ranked(self, weights: Sequence[_Weight], store: WeightStore) -> Iterator[tuple[_Weight, _Ranked]]:
        """Each weight with its scores, and the search that tells which of them are the smallest."""
        share = self.options.sparsity
        if self.options.scope == "local":
            for weight in weights:
                scores = _magnitudes(weight.value)
                count = exact_count(share, weight.value.size)
                yield weight, _Ranked(scores, Smallest(scores, weight.value.dtype, count))
            return
        common = np.result_type(*[weight.value.dtype for weight in weights])
        if self.options.normalize != "none":
            common = np.dtype(np.float64)
        found = [_as_type(self._global_scores(weight.value, store), common) for weight in weights]
        count = exact_count(share, sum(weight.value.size for weight in weights))
        smallest = Smallest(lambda: chain.from_iterable(scores() for scores in found), common, count)
        for weight, scores in zip(weights, found, strict=True):
            yield weight, _Ranked(scores, smallest)

    def _global_scores(self, value: Array, store: WeightStore) -> Scores:
        if self.options.normalize == "none":
            return _magnitudes(value)
        if self.options.normalize == "std":
            deviation = _deviation(value) or 1.0
            return lambda: (np.abs(chunk.astype(np.float64)) / deviation for chunk in in_chunks(value))
        ranks = store.keep(lamp_scores(value.reshape(-1)))
        return lambda: in_chunks(ranks)

    def _find(self, ctx: PassContext) -> tuple[list[_Weight], list[Skip]]:
        found: dict[int, tuple[gs.Tensor, list[tuple[gs.Node, int]]]] = {}
        skipped: list[Skip] = []
        overridable = frozenset(spec.name for spec in ctx.model.interface.overridable)
        for node in ctx.editor.nodes():
            if node.op not in self.options.op_types or not in_standard_domain(node):
                continue
            if not ctx.selection.allows(node):
                continue
            index = _weight_index(node, ctx.editor, overridable)
            if isinstance(index, int):
                tensor = node.inputs[index]
                found.setdefault(id(tensor), (tensor, []))[1].append((node, index))
            elif index is not None:
                skipped.append(index)
        weights: list[_Weight] = []
        for tensor, uses in found.values():
            value = ctx.editor.constant(tensor)
            reason = self._why_not(ctx.editor, tensor, value, uses)
            if reason is None and value is not None:
                weights.append(_Weight(tensor, value, tuple(uses)))
            elif reason is not None:
                skipped.append(Skip(_label(uses[0][0]), reason))
        skipped += nested_skips(ctx.model, ctx.selection, lambda node: node.op in self.options.op_types)
        return weights, skipped

    def _why_not(
        self, editor: GraphEditor, tensor: gs.Tensor, value: Array | None, uses: Sequence[tuple[gs.Node, int]]
    ) -> str | None:
        if value is None or value.dtype.kind != "f":
            return f"{tensor.name} is not of a floating-point type"
        if value.size < max(self.options.min_elements, 1):
            return f"{tensor.name} has {value.size} elements, fewer than min_elements = {self.options.min_elements}"
        allowed = {id(node) for node, _ in uses}
        others = [node for node in editor.consumers(tensor) if id(node) not in allowed]
        if others:
            return f"{tensor.name} is also used by {_label(others[0])}, which is not to be pruned"
        if editor.is_output(tensor):
            return f"{tensor.name} is a graph output"
        finite = all(np.isfinite(chunk).all() for chunk in in_chunks(value))
        return None if finite else f"{tensor.name} holds NaN or infinity"


def exact_count(share: float, count: int) -> int:
    """floor(share · count), of the decimal number as written: 0.29 of 100 is 29, though 0.29 * 100 < 29 in floats."""
    return int(Fraction(repr(share)) * count)


def lamp_scores(weights: Array) -> Array:
    """Layer-adaptive magnitude scores (Lee et al., 2021): w² over the sum of the w² that are not smaller.

    Args:
        weights: float [n].

    Returns:
        float64 [n] in [0, 1]; 0 for a zero weight.
    """
    squares = np.square(weights.astype(np.float64))
    order = np.argsort(squares, kind="stable")
    ahead = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros_like(squares)
    scores[order] = np.divide(squares[order], ahead, out=np.zeros_like(squares), where=ahead > 0)
    return scores


@dataclass
class Loss:
    """What pruning one tensor did.

    Attributes:
        zeros: zeros in it now.
        changed: whether any bit changed.
        signal: Σ w².
        noise: Σ (w - ŵ)².
    """

    zeros: int = 0
    changed: bool = False
    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr_db(self) -> float | None:
        """10 · log10(Σ w² / Σ (w - ŵ)²) in dB; ``None`` where nothing was lost or nothing was there."""
        return 10.0 * float(np.log10(self.signal / self.noise)) if self.signal > 0 and self.noise > 0 else None


def _pruned(value: Array, ranked: _Ranked) -> tuple[Array, Loss]:
    """``value`` with its smallest weights zero."""
    result = np.empty(value.shape, value.dtype)
    loss = Loss()
    for weights, target, scores in zip(in_chunks(value), in_chunks(result), ranked.scores(), strict=True):
        np.copyto(target, weights)
        target[ranked.smallest.take(scores)] = 0
        precise = weights.astype(np.float64)
        loss.signal += float(np.dot(precise, precise))
        precise -= target
        loss.noise += float(np.dot(precise, precise))
        loss.zeros += target.size - int(np.count_nonzero(target))
        loss.changed = loss.changed or target.tobytes() != weights.tobytes()
    return result, loss


def _magnitudes(value: Array) -> Scores:
    return lambda: (np.abs(chunk) for chunk in in_chunks(value))


def _as_type(scores: Scores, dtype: np.dtype[Any]) -> Scores:
    return lambda: (chunk.astype(dtype, copy=False) for chunk in scores())


def _deviation(value: Array) -> float:
    """The standard deviation, in float64."""
    mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in in_chunks(value)) / max(value.size, 1)
    spread = sum(float(np.square(chunk.astype(np.float64) - mean).sum()) for chunk in in_chunks(value))
    return math.sqrt(spread / max(value.size, 1))


def _weight_index(node: gs.Node, editor: GraphEditor, overridable: frozenset[str]) -> int | Skip | None:
    """Which input holds the weight; a reason where none can be pruned; ``None`` for a product of two activations."""
    candidates = (1,) if node.op in ("Conv", "ConvTranspose") else (1, 0)
    constant = [i for i in candidates if editor.constant(node.inputs[i]) is not None]
    if len(constant) == 2:
        return Skip(_label(node), "both operands are constant: simplify computes it")
    if constant:
        return constant[0]
    for tensor in (node.inputs[i] for i in candidates):
        producer = editor.producer(tensor)
        if producer is not None and producer.op == "DequantizeLinear" and _from_constant(producer, editor):
            return Skip(_label(node), "its weight is quantized already (DequantizeLinear) and is left alone")
        if tensor.name in overridable:
            return Skip(_label(node), f"{tensor.name} may be overridden at run time: it is a graph input too")
    if node.op in ("Conv", "ConvTranspose"):
        return Skip(_label(node), f"its weight {node.inputs[1].name} is not constant")
    return None


def _from_constant(node: gs.Node, editor: GraphEditor) -> bool:
    producer = editor.producer(node.inputs[0])
    inner = node.inputs[0]
    if producer is not None and producer.op == "QuantizeLinear":
        inner = producer.inputs[0]
    return editor.constant(inner) is not None


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def _store(editor: GraphEditor, weight: _Weight, pruned: Array) -> None:
    (first, position), *others = weight.uses
    for node, index in others:  # taken away for a moment, so that the tensor changes in place and keeps its name
        editor.set_input(node, index, gs.Variable.empty())
    new = editor.set_constant(first, position, pruned)
    for node, index in others:
        editor.set_input(node, index, new)


def _site(weight: _Weight, loss: Loss) -> Site:
    names = [_label(node) for node, _ in weight.uses]
    size = int(weight.value.size)
    figures: dict[str, Json] = {
        "tensor": str(weight.tensor.name),
        "elements": size,
        "zeros": loss.zeros,
        "sparsity": loss.zeros / size,
        "zeros_before": size - int(np.count_nonzero(weight.value)),
        "sqnr_db": loss.sqnr_db,
    }
    what = f"{loss.zeros} of {size} weights are zero"
    if len(names) > 1:
        what += f" (shared by {len(names)} layers)"
    return Site(names[0], what, "magnitude", figures)


def _label(node: gs.Node) -> str:
    return str(node.name or node.outputs[0].name)
