"""Writes Q/DQ nodes: keeps what is written already, so that every tensor is quantized once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.model.model import Model
from graphopt.passes.quantize.plan import Grid, Plan, smoothed_name
from graphopt.passes.quantize.units import HEAVY, Unit, Units
from graphopt.passes.quantize.weights import dequantized, in_integers, kernel_input, mean_error, with_bias


class Writer:
    """Holds what is already written: the codes of each tensor, their grid, and the floats read back from them."""

    def __init__(self, model: Model, units: Units, plan: Plan) -> None:
        self.model = model
        self.editor = model.editor
        self.plan = plan
        self._readers = units.readers()
        self._quotients = {smoothed_name(tensor): tensor for tensor in plan.smoothing}
        self._bounds = {tensor: u.bounds for u in units.all for tensor in u.writes if u.bounds is not None}
        self.unit = ""
        self.made: dict[str, str] = {}
        self._codes: dict[str, gs.Tensor] = {}
        self._grids: dict[str, Grid] = {}
        self._floats: dict[tuple[str, Grid], gs.Tensor] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], gs.Tensor] = {}

    def codes(self, tensor: str) -> gs.Tensor:
        """The uint8 codes of a tensor or quotient; written behind its float producer if no integer unit made them."""
        if tensor not in self._codes:
            self._grids[tensor] = self._own_grid(tensor)
            self._codes[tensor] = self._quantized(self._source(tensor), self._grids[tensor], tensor)
        return self._codes[tensor]

    def grid(self, tensor: str) -> Grid:
        """The grid of a tensor's codes."""
        self.codes(tensor)
        return self._grids[tensor]

    def floats(self, tensor: str, grid: Grid | None = None) -> gs.Tensor:
        """The tensor read back from its codes; on another ``grid``, the same codes mean other values."""
        codes = self.codes(tensor)
        chosen = grid or self._grids[tensor]
        key = (tensor, chosen)
        if key not in self._floats:
            self._floats[key] = self._dequantized(codes, chosen, tensor)
        return self._floats[key]

    def read(self, unit: Unit) -> None:
        """Let the unit's first node read its activations back from their codes."""
        reads = (kernel_input(unit, self.plan),) if unit.kind in HEAVY else unit.reads
        for slot, tensor in zip(unit.slots, reads, strict=True):
            self.editor.set_input(unit.head, slot, self.floats(tensor))

    def write(self, tensor: str, *, made: gs.Tensor | None = None, grid: Grid | None = None) -> None:
        """Quantize what an integer unit writes; every reader then reads it back from the codes.

        Args:
            tensor: the unit's output.
            made: what takes its place, where the unit was written in another form.
            grid: its grid, where the range alone does not decide it.
        """
        self._grids[tensor] = grid or self._own_grid(tensor)
        source = self._tensor(tensor)
        readers = self.editor.consumers(source)
        self._codes[tensor] = self._quantized(source if made is None else made, self._grids[tensor], tensor)
        self._redirect(tensor, readers)

    def write_codes(self, tensor: str, codes: gs.Tensor, grid: Grid) -> None:
        """The codes of a tensor are already there: its readers read them back, its own node falls away."""
        readers = self.editor.consumers(self._tensor(tensor))
        self._codes[tensor], self._grids[tensor] = codes, grid
        self._redirect(tensor, readers)

    def read_by_integers(self, tensor: str) -> bool:
        """Whether an integer unit reads the tensor's own codes."""
        integer = [unit for unit in self._readers.get(tensor, ()) if unit.name in self.plan.integer]
        return any(unit.kind not in HEAVY or kernel_input(unit, self.plan) == tensor for unit in integer)

    def no_bias(self, unit: Unit, channels: int) -> npt.NDArray[np.float32] | None:
        """What a layer without bias starts from: zeros where biases are corrected."""
        return np.zeros(channels, np.float32) if kernel_input(unit, self.plan) in self.plan.channel_mean else None

    def constant(self, hint: str, value: npt.NDArray[np.float32], grid: Grid) -> gs.Tensor:
        """A constant as codes, read back."""
        codes = np.clip(np.rint(value / np.float32(grid.scale)) + grid.zero, 0, 255).astype(np.uint8)
        return self._dequantized(self._shared(f"{hint}_codes", codes), grid, hint)

    def integer_weight(
        self, unit: Unit, slot: int, weight: npt.NDArray[np.float32], axis: int, bias: npt.NDArray[np.float32] | None
    ) -> tuple[gs.Tensor, gs.Tensor | None]:
        """The weight and bias of a unit, read back from integers.

        Args:
            unit: reads the activation that decides the bias's scale.
            slot: where the weight stands among the first node's inputs; names are made from it.
            weight: as the node has it.
            axis: its axis of output channels.
            bias: [channels].
        """
        read = kernel_input(unit, self.plan)
        grid = self.grid(read)
        whole, result = in_integers(unit, weight, self.plan, grid, bias)
        mean = self.plan.channel_mean.get(read)
        if bias is not None and mean is not None:
            error = mean_error(whole - dequantized(result, axis), axis, np.asarray(mean))
            if error is not None:
                result = with_bias(result, bias + error)
        hint = unit.head.inputs[slot].name
        scales = self._shared(f"{hint}_scale", result.scales)
        zeros = self._shared(f"{hint}_zero", np.zeros(result.scales.shape, np.int8))
        codes = self._shared(f"{hint}_int8", result.codes)
        back = self.node("DequantizeLinear", [codes, scales, zeros], f"{hint}_back", axis=axis)
        if result.bias is None:
            return back, None
        hint = f"{unit.name}_bias"
        scales = self._shared(f"{hint}_scale", result.bias_scales)
        zeros = self._shared(f"{hint}_zero", np.zeros(result.bias.shape, np.int32))
        codes = self._shared(f"{hint}_int32", result.bias)
        return back, self.node("DequantizeLinear", [codes, scales, zeros], f"{hint}_back", axis=0)

    def rounded(self, tensor: gs.Tensor, grid: Grid, hint: str) -> gs.Tensor:
        """``tensor`` written on a grid and read back."""
        return self._dequantized(self._quantized(tensor, grid, hint), grid, hint)

    def node(self, op: str, inputs: Sequence[gs.Tensor], hint: str, **attrs: object) -> gs.Tensor:
        """The output of a new node."""
        made = self.editor.add_node(op, list(inputs), attrs=attrs, name=hint)
        if op not in ("QuantizeLinear", "DequantizeLinear"):
            self.made |= dict.fromkeys(output_names(made), self.unit)
        return made.outputs[0]

    def _shared(self, hint: str, value: npt.NDArray[Any]) -> gs.Tensor:
        """A constant; equal ones, as of layers that share a weight, are one."""
        key = (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest())
        if key not in self._constants:
            self._constants[key] = self.editor.add_constant(hint, value)
        return self._constants[key]

    def _own_grid(self, tensor: str) -> Grid:
        grid = Grid.covering(self.plan.ranges[tensor])
        bounds = self._bounds.get(tensor)
        return grid.clipping(*bounds) if bounds else grid

    def _source(self, name: str) -> gs.Tensor:
        """The floats of a tensor; of a quotient, a new product."""
        tensor = self._quotients.get(name)
        if tensor is None:
            return self._tensor(name)
        whole = self.floats(tensor) if tensor in self._codes else self._tensor(tensor)
        inverse = np.float32(1) / np.asarray(self.plan.smoothing[tensor], np.float32)
        return self.node("Mul", [whole, self._shared(f"{tensor}_factors", inverse)], name)

    def _tensor(self, name: str) -> gs.Tensor:
        tensor = self.editor.tensor(name)
        if tensor is None:
            raise KeyError(name)
        return tensor

    def _redirect(self, tensor: str, readers: Sequence[gs.Node]) -> None:
        if readers:
            self.editor.replace_uses(self._tensor(tensor), self.floats(tensor), consumers=readers)

    def _quantized(self, source: gs.Tensor, grid: Grid, hint: str) -> gs.Tensor:
        return self.node("QuantizeLinear", [source, *self._parameters(grid, hint)], f"{hint}_codes")

    def _dequantized(self, codes: gs.Tensor, grid: Grid, hint: str) -> gs.Tensor:
        return self.node("DequantizeLinear", [codes, *self._parameters(grid, hint)], f"{hint}_back")

    def _parameters(self, grid: Grid, hint: str) -> tuple[gs.Tensor, gs.Tensor]:
        scale = self._shared(f"{hint}_scale", np.array(grid.scale, np.float32))
        zero = self._shared(f"{hint}_zero", np.array(grid.zero, np.uint8))
        return scale, zero


def output_names(node: gs.Node) -> list[str]:
    """Names of the node's outputs, without absent ones."""
    return [tensor.name for tensor in node.outputs if not tensor.is_empty()]
