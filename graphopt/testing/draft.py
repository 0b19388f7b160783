"""A short notation for building small ONNX models in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


class Draft:
    """Collects nodes, weights and values, then hands out a checked ``ModelProto``.

    Every weight is drawn from one seeded generator, so equal calls give equal bytes.

    Args:
        seed: of the weights.
        opset: version of the default operator set.
        ir_version: of the file.
    """

    def __init__(self, seed: int = 0, *, opset: int = 17, ir_version: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.ir_version = ir_version
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str, shape: Sequence[int | str | None], dtype: int = TensorProto.FLOAT) -> str:
        """Declare a graph input; a string in ``shape`` is a named dynamic dimension."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str | None], dtype: int = TensorProto.FLOAT) -> None:
        """Declare a graph output."""
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def const(self, name: str, value: Array | Sequence[int] | Sequence[float]) -> str:
        """Add an initializer with this value."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        """Add a float32 initializer, normal with He's standard deviation (2015) unless ``scale`` is given."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        deviation = float(np.sqrt(2.0 / fan_in)) if scale is None else scale
        return self.const(name, (self.rng.standard_normal(shape) * deviation).astype(np.float32))

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        *,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node with one output and give back the output's name; the node is named after it."""
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=name or f"{output}/{op}", domain=domain, **attributes)
        )
        return output

    def conv(
        self,
        x: str,
        output: str,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        bias: bool = False,
    ) -> str:
        """A "same"-padded square Conv: weight ``[out, in/group, k, k]`` named ``OUTPUT.weight``."""
        names = [x, self.weight(f"{output}.weight", channels_out, channels_in // group, kernel, kernel)]
        if bias:
            names.append(self.weight(f"{output}.bias", channels_out, scale=0.1))
        return self.node(
            "Conv",
            names,
            output,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=group,
        )

    def batch_norm(self, x: str, output: str, channels: int) -> str:
        """A BatchNormalization in inference form, with statistics as training leaves them."""
        parameters = {
            "scale": self.rng.uniform(0.5, 1.5, channels),
            "bias": self.rng.normal(0.0, 0.2, channels),
            "mean": self.rng.normal(0.0, 0.2, channels),
            "var": self.rng.uniform(0.5, 1.5, channels),
        }
        names = [self.const(f"{output}.{key}", value.astype(np.float32)) for key, value in parameters.items()]
        return self.node("BatchNormalization", [x, *names], output, epsilon=1e-5)

    def conv_bn_relu(self, x: str, output: str, channels_in: int, channels_out: int, **options: int) -> str:
        """Conv → BatchNormalization → Relu."""
        y = self.conv(x, f"{output}.conv", channels_in, channels_out, **options)  # type: ignore[arg-type]
        return self.node("Relu", [self.batch_norm(y, f"{output}.bn", channels_out)], output)

    def head(self, x: str, channels: int, classes: int = 10, *, batch: int | str = 1) -> None:
        """Global pooling, Flatten and a Gemm to ``output``, ``[batch, classes]``."""
        pooled = self.node("GlobalAveragePool", [x], "pooled")
        flat = self.node("Flatten", [pooled], "flat", axis=1)
        weight, bias = self.weight("fc.weight", classes, channels), self.weight("fc.bias", classes, scale=0.1)
        self.node("Gemm", [flat, weight, bias], "output", transB=1)
        self.output("output", [batch, classes])

    def model(
        self,
        name: str,
        *,
        domains: Mapping[str, int] | None = None,
        value_info: Sequence[onnx.ValueInfoProto] = (),
    ) -> onnx.ModelProto:
        """The finished model, checked by ``onnx.checker`` with strict shape inference."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers, value_info=value_info)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
        proto = helper.make_model(
            graph, opset_imports=opsets, ir_version=self.ir_version, producer_name="graphopt.testing"
        )
        onnx.checker.check_model(proto, full_check=True)
        return proto
