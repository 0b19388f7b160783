"""The pass `remove-channels`: whole channels go, every shape that depends on them shrinks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from graphopt.analysis.channels import Channels, Group, channel_groups
from graphopt.analysis.channels.factors import Indices
from graphopt.analysis.costs import total_macs
from graphopt.model.model import Model
from graphopt.passes.remove_channels import select
from graphopt.passes.remove_channels.compensate import RIDGES, Refit, compensate
from graphopt.passes.remove_channels.sites import Site as Layer
from graphopt.passes.remove_channels.sites import find_sites
from graphopt.passes.remove_channels.streams import Walk
from graphopt.passes.remove_channels.surgery import Removal
from graphopt.passes.remove_channels.widths import exclusive, kept_width, unit_of
from graphopt.pipeline.contract import (
    Broken,
    Json,
    Pass,
    PassContext,
    PassOptions,
    PassResult,
    Refusal,
    Safety,
    Site,
    Skip,
)
from graphopt.pipeline.nested import nested_skips

__all__ = ["RemoveChannels", "RemoveChannelsOptions"]

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


class RemoveChannelsOptions(PassOptions):
    """Options of `remove-channels`."""

    ratio: float = Field(0.25, ge=0.0, lt=1.0, description="share of the channels of each group to remove, 0 to 1")
    round_to: int = Field(
        16, ge=1, description="kept widths are rounded up to a multiple of this; 1: every width is allowed"
    )
    scope: Literal["all", "inner"] = Field(
        "all", description="inner: leave channels that a residual connection (Add of two activations) ties together"
    )
    importance: Literal["auto", "l2", "obs"] = Field(
        "auto",
        description="l2: grouped weight norm; obs: error left after refitting, from samples; auto: obs with samples",
    )
    compensation: Literal["least-squares", "bias", "none"] = Field(
        "least-squares", description="how the layers behind are refitted, where samples are given"
    )
    refit: Literal["all", "behind"] = Field(
        "all",
        description="all: every layer whose input changed, so that it makes up for drift; behind: only those that "
        "lost inputs (about half the time)",
    )
    ridge: float | None = Field(
        None, gt=0.0, description="ridge as a share of the mean input variance; default: chosen on held-out samples"
    )
    max_samples: int = Field(500, ge=1, description="samples used at most for choosing and refitting")
    positions: int = Field(64, ge=1, description="positions of a feature map taken from each sample")


@dataclass(frozen=True)
class _Plan:
    """What will be cut: groups with the number of channels kept, and what stays whole and why."""

    cut: tuple[tuple[Group, int], ...]
    skipped: tuple[Skip, ...]


class RemoveChannels(Pass[RemoveChannelsOptions]):
    """Remove whole channels, everywhere they occur, and shrink every shape that depends on them.

    What it does:
        Finds the dependency groups of the model: sets of channels that all layers of a chain, a residual
        connection or a concatenation share, so that they can only go together. In each group the least important
        channels are chosen, masked (the weights that produce them become zero), the layers behind are refitted on
        samples, and the channels are cut out of every weight, `group` attribute and shape constant. Kept widths are
        rounded up to a multiple of `round_to`, since the CPU provider computes convolutions in blocks of 16
        channels: 116 of 128 channels are no faster than all 128, 127 are 31 % slower. A layer of 16 channels or
        fewer then stays whole. The report shows the wanted and the achieved ratio.

    When it applies:
        To channels between layers with constant weights: Conv (grouped and depthwise too), ConvTranspose, Gemm,
        MatMul, with normalisation, activations, pooling, Add, Mul and other elementwise operators, Concat, Split,
        Slice, Reshape, Transpose, Flatten, Pad, Resize and squeeze-and-excite gates in between.

    When it refuses:
        A group stays whole, with the reason in the report, where its channels reach a graph input or output, an
        operator without a rule, Softmax, LayerNormalization or a reduction over the channels, a body of If, Loop
        or Scan, Q/DQ, an overridable initializer or a computed shape that cannot be rewritten; where a removed channel
        would be neither zero nor a constant that is exactly a bias; where `only` or `skip` leaves out one of its
        layers; where rounding keeps all of it; where a weight is read elsewhere too and its copy would outweigh the
        cut. Whole groups of a grouped convolution stay. A model without any Conv, ConvTranspose, Gemm or MatMul is
        refused as a whole.

    Safety:
        APPROXIMATE: the error is reported per output and obeys the gates. The removal itself is exact: the manager
        compares the cut model with the masked one of the same weights, within ROUNDING.

    Options:
        `compensation`, `importance = "obs"`, `refit` and `ridge` have a meaning only with samples. `scope = "inner"`
        keeps more accuracy at equal multiply-accumulates on residual networks (measured on CIFAR-10 ResNet-32 at half
        of them: 87.5 % against 84.9 %).

    Example:
        `graphopt run model.onnx -o out.onnx --data samples/ --pass simplify --pass remove-channels:ratio=0.5`

        In a recipe:

            [[pass]]
            name = "remove-channels"
            ratio = 0.5
            round_to = 16

    Cost:
        Without samples, linear in the weights. With samples (at most `max_samples`), one run over them up to each
        refitted layer, one through the original and one for `obs`, plus 2·R·p² for R rows and p input columns
        (channels × kernel), p³/3 for each ridge, and for `obs` about p² times the columns removed (layers above 2,304
        columns go by their weights). Activations are streamed; Gram matrices of at most 256 MiB and targets of at most
        128 MiB, or those of one layer, are held at once. CIFAR-10 ResNet-32 with 500 pictures takes 50 s of one core,
        MobileNet v1 with 40 takes 30 s.

    References:
        Li et al., 2017, "Pruning Filters for Efficient ConvNets". Fang et al., 2023, "DepGraph: Towards Any Structural
        Pruning". He et al., 2017, "Channel Pruning for Accelerating Very Deep Neural Networks" (least squares). Hassibi
        and Stork, 1993, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon". Frantar and Alistarh,
        2022, "Optimal Brain Compression" (block form).
    """

    name: ClassVar[str] = "remove-channels"
    code: ClassVar[str] = "CHN"
    safety: ClassVar[Safety] = Safety.APPROXIMATE
    Options: ClassVar[type[PassOptions]] = RemoveChannelsOptions
    after: ClassVar[tuple[str, ...]] = ("simplify", "prune-weights")
    idempotent: ClassVar[bool] = False

    def requires(self, ctx: PassContext) -> None:
        """Refuse a model that has no layer with channels."""
        if not any(node.op in _WEIGHTED for node in ctx.editor.nodes()):
            raise Refusal("the model has no Conv, ConvTranspose, Gemm or MatMul whose channels could be removed")

    def run(self, ctx: PassContext) -> PassResult:
        """See ``Pass.run``."""
        channels = ctx.analyses.get(channel_groups)
        plan = self._plan(ctx, channels)
        if not plan.cut:
            return PassResult(modified=False, skipped=plan.skipped, summary=self._summary(channels, {}))
        before = (ctx.model.parameter_count, total_macs(ctx.model))
        original = ctx.model.clone()
        kept, notes = self._choose(ctx, channels, plan)
        removal = Removal(ctx.model, channels, kept)
        removal.mask()
        refits = self._compensate(ctx, removal, original)
        oracle = ctx.model.clone()
        removal.cut()
        ctx.model.finish()
        after = (ctx.model.parameter_count, total_macs(ctx.model))
        summary = {
            **self._summary(channels, kept),
            "parameters_left": after[0] / before[0],
            "macs_left": after[1] / before[1] if before[1] else 1.0,
        }
        return PassResult(
            modified=True,
            applied=(*_sites(channels, plan, kept), *_refit_sites(refits)),
            skipped=plan.skipped,
            summary=summary,
            notes=(*notes, *_refit_notes(refits)),
            oracle=oracle,
            headline=_headline(summary),
            resolved=self.options.model_copy(update={"importance": self._importance(ctx)}),
        )

    def ensures(self, ctx: PassContext, result: PassResult) -> None:
        """A cut model holds fewer parameters than the masked one."""
        if result.oracle is not None and ctx.model.parameter_count >= result.oracle.parameter_count:
            raise Broken("fewer parameters", "channels were removed, but the model did not get smaller")

    def _plan(self, ctx: PassContext, channels: Channels) -> _Plan:
        options = self.options
        skipped = [Skip(w.node.name or w.node.op, f"{w.size or '?'} channels stay: {w.reason}") for w in channels.whole]
        eligible: list[Group] = []
        cuttable = {id(node) for group in channels.groups for node in group.nodes()}
        for group in channels.groups:
            reason = self._left_out(ctx, group) or self._copied(ctx, group, cuttable)
            if reason is None:
                eligible.append(group)
            else:
                skipped.append(Skip(group.name, f"{group.size} channels stay: {reason}"))
        chosen, rivals = exclusive(channels, eligible)
        for group, rival in rivals:
            skipped.append(Skip(group.name, f"{group.size} channels stay: they multiply with those of {rival.name}"))
        cut: list[tuple[Group, int]] = []
        for group in sorted(chosen, key=channels.groups.index):
            keep = kept_width(group.size, options.ratio, unit_of(channels, group, options.round_to))
            if keep < group.size:
                cut.append((group, keep))
            elif options.ratio:
                reason = f"kept widths are multiples of {options.round_to}"
                skipped.append(Skip(group.name, f"all {group.size} channels stay: {reason}"))
        skipped += nested_skips(ctx.model, ctx.selection, lambda node: node.op in _WEIGHTED)
        return _Plan(tuple(cut), tuple(skipped))

    def _left_out(self, ctx: PassContext, group: Group) -> str | None:
        blocked = next((node for node in group.nodes() if not ctx.selection.allows(node)), None)
        if blocked is not None:
            return f"only or skip leaves out {blocked.name or blocked.op}"
        if self.options.scope == "inner" and group.residual:
            return "a residual connection ties them together and scope is inner"
        return None

    def _copied(self, ctx: PassContext, group: Group, cuttable: Collection[int]) -> str | None:
        """Why cutting a group would make the model larger: what reads its weights elsewhere keeps them whole."""
        weights = {id(m.use.node.inputs[m.use.index]): m.use for m in group.members}
        staying = {
            use.node.inputs[use.index].name: use.value.size
            for use in weights.values()
            if _stays(ctx, use.node.inputs[use.index], cuttable)
        }
        copied, whole = sum(staying.values()), sum(use.value.size for use in weights.values())
        if not copied or self.options.ratio * (whole - copied) > (1 - self.options.ratio) * copied:
            return None
        named = next(iter(staying))
        return f"weight {named!r} is read elsewhere, where it stays whole, and a copy would be larger than what is cut"

    def _importance(self, ctx: PassContext) -> Literal["l2", "obs"]:
        wanted = self.options.importance
        if wanted == "auto":
            return "l2" if ctx.samples is None else "obs"
        return wanted

    def _choose(self, ctx: PassContext, channels: Channels, plan: _Plan) -> tuple[dict[int, Indices], list[str]]:
        if self._importance(ctx) == "l2":
            return select.by_weight(ctx.model, channels, plan.cut), []
        walk = self._walk(ctx)
        if walk is None:
            note = "no samples were given: channels were chosen by their weights, not by the error they leave"
            return select.by_weight(ctx.model, channels, plan.cut), [note]
        sites = find_sites(ctx.model, channels)
        kept, plain = select.by_error(ctx.model, channels, plan.cut, sites, walk)
        named = f" ({', '.join(plain[:5])}{', …' if len(plain) > 5 else ''})"
        note = f"{len(plain)} groups were chosen by their weights, since no layer behind them can be measured{named}"
        return kept, [note] if plain else []

    def _walk(self, ctx: PassContext) -> Walk | None:
        if ctx.samples is None or not len(ctx.samples):
            return None
        samples = ctx.samples.first(self.options.max_samples)
        return Walk(samples, ctx.target, ctx.seed, self.options.positions, ctx.progress)

    def _compensate(self, ctx: PassContext, removal: Removal, original: Model) -> list[Refit]:
        walk = self._walk(ctx)
        if walk is None or self.options.compensation == "none":
            return []
        ridges: tuple[float, ...] = () if self.options.compensation == "bias" else RIDGES
        if ridges and self.options.ridge is not None:
            ridges = (self.options.ridge,)
        reads = _reads_removed if self.options.refit == "behind" else _reads_changed
        wanted = reads(removal)
        layers = [site for site in find_sites(ctx.model, removal.channels) if wanted(site)]
        allowed = [layer for layer in layers if ctx.selection.allows(layer.node)]
        return compensate(original, removal, allowed, walk, ridges)

    def _summary(self, channels: Channels, kept: Mapping[int, Indices]) -> dict[str, float]:
        total = sum(group.size for group in channels.groups)
        removed = sum(group.size - len(kept[group.number]) for group in channels.groups if group.number in kept)
        return {
            "ratio_requested": self.options.ratio,
            "ratio_achieved": removed / total if total else 0.0,
            "groups": len(channels.groups),
            "groups_cut": len(kept),
            "channels": total,
            "channels_removed": removed,
        }


def _stays(ctx: PassContext, weight: gs.Tensor, cuttable: Collection[int]) -> bool:
    """Whether something keeps a weight whole: an output that it is, or a node that belongs to no group."""
    return ctx.editor.is_output(weight) or any(id(node) not in cuttable for node in ctx.editor.consumers(weight))


def _headline(summary: Mapping[str, float]) -> str:
    achieved, asked = (f"{100 * float(summary[key]):.0f} %" for key in ("ratio_achieved", "ratio_requested"))
    channels = f"{summary['channels_removed']} of {summary['channels']} channels"
    return f"{channels} cut ({achieved}; asked {asked}) in {summary['groups_cut']} of {summary['groups']} groups"


def _reads_removed(removal: Removal) -> Callable[[Layer], bool]:
    """Whether a layer lost inputs."""
    atoms = removal.channels.facts.atoms
    return lambda layer: any(atom in removal.kept for atom in atoms.leaves(layer.use.axes[layer.input_axis()]))


def _reads_changed(removal: Removal) -> Callable[[Layer], bool]:
    """Whether anything ahead of a layer was masked."""
    masked = {id(n) for g in removal.channels.groups if g.number in removal.kept for n in g.nodes()}
    changed: set[str] = set()
    for node in removal.model.editor.nodes():
        if id(node) in masked or any(tensor.name in changed for tensor in node.inputs):
            changed.update(tensor.name for tensor in node.outputs)
    return lambda layer: layer.source in changed


def _sites(channels: Channels, plan: _Plan, kept: Mapping[int, Indices]) -> list[Site]:
    found = []
    for group, _ in plan.cut:
        stays = len(kept[group.number])
        names = [node.name or node.op for node in group.nodes()]
        figures: dict[str, Json] = {
            "channels": group.size,
            "kept": stays,
            "ratio": 1 - stays / group.size,
            "members": list(names),
        }
        found.append(Site(group.name, f"{group.size} → {stays} channels in {len(names)} nodes", "cut", figures))
    return found


def _refit_sites(refits: list[Refit]) -> list[Site]:
    return [
        Site(
            refit.where,
            f"refitted: held-out error {refit.before:.3g} → {refit.after:.3g} of the variance",
            "refit",
            {"before": refit.before, "after": refit.after, "ridge": refit.ridge if np.isfinite(refit.ridge) else None},
        )
        for refit in refits
        if refit.kept
    ]


def _refit_notes(refits: list[Refit]) -> list[str]:
    dropped = [refit.where for refit in refits if not refit.kept]
    if not dropped:
        return []
    return [f"refits that did not lower the held-out error were dropped: {', '.join(dropped)}"]
