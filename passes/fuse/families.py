"""The table of rule families; one rule a file beside it."""

from __future__ import annotations

from graphopt.passes.fuse.activations.gelu_erf import GeluErf
from graphopt.passes.fuse.activations.gelu_tanh import GeluTanh
from graphopt.passes.fuse.activations.hard_sigmoid import HardSigmoid
from graphopt.passes.fuse.activations.hard_swish import HardSwish
from graphopt.passes.fuse.activations.mish import Mish
from graphopt.passes.fuse.activations.sigmoid import Sigmoid
from graphopt.passes.fuse.gate_add import GateAdd
from graphopt.passes.fuse.linear.compose_convs import ComposeConvs
from graphopt.passes.fuse.linear.scale_shift_after import ScaleShiftAfter
from graphopt.passes.fuse.linear.scale_shift_before import ScaleShiftBefore
from graphopt.passes.fuse.linear.scale_through_shift import ScaleThroughShift
from graphopt.passes.fuse.mask.softmax_floor import SoftmaxFloor
from graphopt.passes.fuse.merge_duplicates import MergeDuplicates
from graphopt.passes.fuse.norms.instance_norm import InstanceNorm
from graphopt.passes.fuse.norms.layer_norm import LayerNorm
from graphopt.passes.fuse.norms.rms_norm import RmsNorm
from graphopt.passes.fuse.pads.absorb_pad import AbsorbPad
from graphopt.passes.fuse.shapes.constant_shapes import ConstantShapes
from graphopt.passes.fuse.shapes.reshape_targets import ReshapeTargets
from graphopt.passes.fuse.shapes.shared_shapes import SharedShapes
from graphopt.passes.fuse.stream.flat_stream import FlatStream
from graphopt.passes.fuse.views.compose_transposes import ComposeTransposes
from graphopt.passes.fuse.views.compose_views import ComposeViews
from graphopt.passes.fuse.views.row_softmax import RowSoftmax
from graphopt.pipeline.families import Family
from graphopt.pipeline.fold_batchnorm import FoldBatchNorm

FAMILIES: tuple[Family, ...] = (
    Family(
        "activations",
        "activations written out in arithmetic become one operator",
        (HardSwish, HardSigmoid, GeluErf, GeluTanh, Mish, Sigmoid),
    ),
    Family("norms", "normalisations written out in arithmetic become one operator", (InstanceNorm, LayerNorm, RmsNorm)),
    Family("pads", "Conv and pools pad for themselves", (AbsorbPad,)),
    Family("views", "chains of reshapes and transposes become one", (ComposeTransposes, ComposeViews, RowSoftmax)),
    Family("gate", "a tensor added to its own gated form becomes one product", (GateAdd,)),
    # After activations and norms: those end in a scale that would be taken from them.
    Family(
        "scale-shift",
        "constant scales and shifts go into the weights and biases around them",
        (ScaleShiftAfter, FoldBatchNorm, ScaleShiftBefore, ScaleThroughShift),
    ),
    Family(
        "compose", "a convolution and a pointwise one behind it become one, where that is less work", (ComposeConvs,)
    ),
    Family("duplicates", "equal subexpressions are computed once", (MergeDuplicates,)),
    Family(
        "shapes",
        "shape arithmetic becomes constant, or one chain for the whole model",
        (ConstantShapes, ReshapeTargets, SharedShapes),
    ),
    Family("mask", "masked attention scores keep clear of denormals", (SoftmaxFloor,), default=False),
    Family("stream", "a transformer's stream kept in two dimensions", (FlatStream,)),
)
"""In the order in which their rules are tried at a node."""
