"""Which rule speaks for which operator. An operator that is not listed freezes whatever it touches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graphopt.analysis.channels import layout, linear, picks, pointwise
from graphopt.analysis.channels.linear import UNKNOWN
from graphopt.analysis.channels.op import Op

Dead = Callable[[Op, Mapping[int, float]], float]


def dead_unknown(op: Op, seen: Mapping[int, float]) -> float:
    """Whatever comes in, the channel is not one constant."""
    return UNKNOWN


@dataclass(frozen=True)
class Rule:
    """How an operator treats channels.

    Attributes:
        link: ties, splits, contracts and freezes axes, and sets the axes of the outputs.
        dead: what a masked channel of an output holds, given what it holds in each input that has it.
    """

    link: Callable[[Op], None]
    dead: Dead = pointwise.dead_first


_UNARY = """Abs Acos Asin Atan BitwiseNot Cast Ceil Celu Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid
HardSwish Identity LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Softplus Softsign
Sqrt Swish Tan Tanh ThresholdedRelu"""
_ELEMENTWISE = "Add Sub Mul Max Min Sum Mean PRelu Where And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual"

RULES: dict[str, Rule] = {
    **{op: Rule(pointwise.unary, pointwise.dead_elementwise) for op in _UNARY.split()},
    **{op: Rule(pointwise.elementwise, pointwise.dead_elementwise) for op in _ELEMENTWISE.split()},
    **{op: Rule(pointwise.divide, pointwise.dead_elementwise) for op in ("Div", "Pow", "Mod")},
    "Conv": Rule(linear.conv, linear.dead_rows),
    "ConvTranspose": Rule(linear.conv_transpose, linear.dead_rows),
    "Gemm": Rule(linear.gemm, linear.dead_rows),
    "MatMul": Rule(linear.matmul, linear.dead_rows),
    "BatchNormalization": Rule(linear.batch_norm, linear.dead_scale),
    "InstanceNormalization": Rule(linear.instance_norm, linear.dead_scale),
    "LayerNormalization": Rule(linear.layer_norm, dead_unknown),
    "LRN": Rule(pointwise.local_norm, pointwise.dead_zero),
    "MaxPool": Rule(pointwise.pool),
    "AveragePool": Rule(pointwise.pool, pointwise.dead_average),
    "LpPool": Rule(pointwise.pool, pointwise.dead_zero),
    "GlobalAveragePool": Rule(pointwise.global_pool),
    "GlobalMaxPool": Rule(pointwise.global_pool),
    "GlobalLpPool": Rule(pointwise.global_pool, pointwise.dead_zero),
    **{op: Rule(pointwise.reduce) for op in ("ReduceMean", "ReduceMax", "ReduceMin")},
    **{
        op: Rule(pointwise.reduce, pointwise.dead_zero)
        for op in ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd")
    },
    **{op: Rule(pointwise.reduce, dead_unknown) for op in ("ArgMax", "ArgMin", "ReduceLogSumExp", "ReduceLogSum")},
    **{op: Rule(pointwise.softmax, dead_unknown) for op in ("Softmax", "LogSoftmax", "Hardmax")},
    "Flatten": Rule(layout.flatten),
    "Reshape": Rule(layout.reshape),
    "Transpose": Rule(layout.transpose),
    "Squeeze": Rule(layout.squeeze),
    "Unsqueeze": Rule(layout.unsqueeze),
    "Concat": Rule(layout.concat),
    "Split": Rule(layout.split),
    "Slice": Rule(layout.slice_),
    "Pad": Rule(layout.pad, layout.dead_pad),
    "Gather": Rule(picks.gather),
    "Expand": Rule(layout.expand),
    "Tile": Rule(layout.tile),
    "Resize": Rule(layout.resize),
    "Upsample": Rule(layout.resize),
    "DepthToSpace": Rule(layout.depth_to_space),
    "SpaceToDepth": Rule(layout.space_to_depth),
}

READS_SIZES = {("Reshape", 1), ("Resize", 3), ("Expand", 1)}
"""(operator, input) whose rule follows sizes of axes that Shape has read."""
