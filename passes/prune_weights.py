"""The pass `prune-weights`: magnitude pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from pydantic import Field

from graphopt.model.editor import GraphEditor
from graphopt.pipeline.contract import Json, Pass, PassContext, PassOptions, PassResult, Refusal, Safety, Site, Skip

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
        Linear in the number of weights (selection, not sorting, but for `lamp`). No samples needed; without
        them the result's fidelity is not gated. Zeros alone do not make onnxruntime faster on a CPU: at 0, 50,
        90 and 99 % zeros a 3x3 convolution took 8.82, 8.70, 8.78 and 8.71 ms, a matrix product 4.42, 4.35, 4.30
        and 4.47 ms. What they bring is a file that compresses better, and other runtimes that know sparse
        kernels.

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
        masks = self._masks([weight.value for weight in weights])
        sites: list[Site] = []
        zeros = 0
        for weight, mask in zip(weights, ctx.progress.track(masks, label="pruning", total=len(masks)), strict=True):
            pruned = np.where(mask, weight.value.dtype.type(0), weight.value)
            zeros += int(np.count_nonzero(pruned == 0))
            if pruned.tobytes() != weight.value.tobytes():
                _store(ctx.editor, weight, pruned)
                sites.append(_site(weight, pruned))
        total = sum(weight.value.size for weight in weights)
        return PassResult(
            modified=bool(sites),
            applied=tuple(sites),
            skipped=tuple(skipped),
            summary={"sparsity": zeros / total if total else 0.0, "weights": total, "zeros": zeros},
            notes=(ZEROS_ARE_NOT_FAST,) if sites else (),
            headline=f"{zeros:,} of {total:,} weights are zero ({_percent(zeros, total)}) in {len(weights)} tensors",
        )

    def _masks(self, values: Sequence[Array]) -> list[Array]:
        share, options = self.options.sparsity, self.options
        if options.scope == "local":
            return [
                smallest(np.abs(value).reshape(-1), exact_count(share, value.size)).reshape(value.shape)
                for value in values
            ]
        scores = [_SCORES[options.normalize](value.reshape(-1)) for value in values]
        together = np.concatenate(scores) if scores else np.zeros(0)
        mask = smallest(together, exact_count(share, together.size))
        cuts = np.cumsum([value.size for value in values])[:-1]
        return [part.reshape(value.shape) for part, value in zip(np.split(mask, cuts), values, strict=True)]

    def _find(self, ctx: PassContext) -> tuple[list[_Weight], list[Skip]]:
        found: dict[int, tuple[gs.Tensor, list[tuple[gs.Node, int]]]] = {}
        skipped: list[Skip] = []
        overridable = frozenset(spec.name for spec in ctx.model.interface.overridable)
        for node in ctx.editor.nodes():
            if node.op not in self.options.op_types or (node.domain or "") not in ("", "ai.onnx"):
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
        return None if np.isfinite(value).all() else f"{tensor.name} holds NaN or infinity"


def exact_count(share: float, count: int) -> int:
    """floor(share · count), of the decimal number as written: 0.29 of 100 is 29, though 0.29 * 100 < 29 in floats."""
    return int(Fraction(repr(share)) * count)


def smallest(scores: Array, count: int) -> Array:
    """Which ``count`` scores are the smallest; of equal ones the earlier.

    Equals the first ``count`` of a stable argsort, in linear time.

    Args:
        scores: float [n], no NaN.
        count: 0 ≤ count ≤ n.

    Returns:
        bool [n] with exactly ``count`` true.
    """
    if count <= 0:
        return np.zeros(scores.size, bool)
    threshold = np.partition(scores, count - 1)[count - 1]
    mask: Array = scores < threshold
    ties = np.flatnonzero(scores == threshold)
    mask[ties[: count - int(np.count_nonzero(mask))]] = True
    return mask


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


def sqnr_db(weights: Array, pruned: Array) -> float | None:
    """10 · log10(Σ w² / Σ (w - ŵ)²) in dB; ``None`` where nothing was lost or nothing was there."""
    signal = float(np.sum(np.square(weights, dtype=np.float64)))
    noise = float(np.sum(np.square(weights.astype(np.float64) - pruned)))
    return 10.0 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None


def _by_deviation(weights: Array) -> Array:
    deviation = float(weights.std(dtype=np.float64))
    return np.abs(weights.astype(np.float64)) / (deviation or 1.0)


_SCORES: dict[Normalization, Callable[[Array], Array]] = {"none": np.abs, "std": _by_deviation, "lamp": lamp_scores}


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


def _site(weight: _Weight, pruned: Array) -> Site:
    names = [_label(node) for node, _ in weight.uses]
    zeros = int(np.count_nonzero(pruned == 0))
    figures: dict[str, Json] = {
        "tensor": str(weight.tensor.name),
        "elements": int(pruned.size),
        "zeros": zeros,
        "sparsity": zeros / pruned.size,
        "zeros_before": int(np.count_nonzero(weight.value == 0)),
        "sqnr_db": sqnr_db(weight.value, pruned),
    }
    what = f"{zeros} of {pruned.size} weights are zero"
    if len(names) > 1:
        what += f" (shared by {len(names)} layers)"
    return Site(names[0], what, "magnitude", figures)


def _label(node: gs.Node) -> str:
    return str(node.name or node.outputs[0].name)
