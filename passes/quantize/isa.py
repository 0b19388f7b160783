"""Whether this machine's 8-bit kernels saturate.

Without VNNI instructions, x86 kernels add two products of an unsigned and a signed byte in int16, which saturates:
255 · 127 · 2 does not fit. onnxruntime's kernels pair neighbours along the reduction axis, for a convolution in the
order rows, columns, input channels of its window (found by emulating it: equal on eleven shapes, AVX2, onnxruntime
1.32).
Depthwise convolutions with one filter a channel have a kernel that does not pair.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from graphopt.runtime.session import open_session

PAIR_LIMIT = 32767 - 255
"""What two products of one sign may add up to before rounding: int16's largest value less half a step per weight."""


@cache
def kernels_saturate() -> bool:
    """Whether onnxruntime's matrix product of uint8 and int8 saturates on this machine."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [helper.make_tensor("b", TensorProto.INT8, [4, 16], np.full(64, 127, np.int8).tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    result = open_session(model.SerializeToString()).run({"a": np.full((1, 4), 255, np.uint8)})["y"]
    return bool(np.any(result != 4 * 255 * 127))


def largest_pair(weight: npt.NDArray[np.float32], axis: int, peaks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Per output channel, the largest |sum| of two neighbouring products of one sign.

    Args:
        weight: of a convolution, [channels, inputs per group, *window], or a matrix.
        axis: of the output channels.
        peaks: largest activation code of each input channel, 0 … 255; as many as the layer has input channels.

    Returns:
        [channels], ≥ 0, in the weight's unit times codes.
    """
    channels = np.moveaxis(weight, axis, 0).astype(np.float64)
    outputs, inputs = channels.shape[:2]
    groups = peaks.size // inputs
    factors = np.repeat(peaks.reshape(groups, inputs), outputs // groups, axis=0)
    products = channels * factors.reshape(outputs, inputs, *[1] * (channels.ndim - 2))
    rows = np.moveaxis(products, 1, -1).reshape(outputs, -1)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    ends = [np.maximum(sign * rows, 0).reshape(outputs, -1, 2).sum(axis=2).max(axis=1) for sign in (1, -1)]
    return np.asarray(np.maximum(*ends), np.float64)
