"""Rule `flat-stream`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.order import sweep
from graphopt.passes.fuse.shapes.shape_facts import ShapeFacts, Sizes
from graphopt.passes.fuse.stream.stream_members import Member, Stream, find_streams
from graphopt.passes.fuse.views.views import is_view
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import GraphRule, Scope, label

ALLOWZERO = 14
"""The operator set from which on a 0 in a Reshape's target may be a size."""


class FlatStream(GraphRule):
    """Keep the stream of a transformer in two dimensions.

    Pattern: nodes that work on the last axis alone, joined by tensors of the same leading dimensions [d0, d1, …, C]:
    MatMul by a constant matrix, LayerNormalization and Softmax over the last axis, unary functions, arithmetic
    among such tensors and with constants that are scalars or one row.
    Rewrite: one Reshape to [-1, C] where the stream begins, all its nodes on matrices, MatMul and bias as Gemm, and
    a Reshape back where something else reads it: the views by which attention splits its heads start from the matrix
    themselves, so that nothing is added there.
    Conditions: float32; rank ≥ 3; C is a number; the leading dimensions are the same numbers or come from the same
    tensor's dimensions; two MatMuls at least, and not more new Reshapes than MatMuls; where two of the leading
    dimensions are dynamic, an opset that can be raised to 14.
    Proof: each of these operators treats all rows [.., C] alike, and a Reshape keeps them in order. Gemm sums as
    MatMul does, the bias added before or after, hence ROUNDING. The way back needs the leading dimensions: a constant
    where at most one is dynamic (-1), else one Shape of the stream's beginning for the whole model; a 0 in that is
    a size (``allowzero``, opset 14), not a dimension of the matrix.
    Effect: MatMul and Add become Gemm, without views between them. Measured beside all other families, one thread,
    AVX2, onnxruntime 1.32: MiniLM 1.05x [1.04, 1.09], an OCR recogniser 1.03x [1.02, 1.05].
    Refuses: leading dimensions equal by name only; operands broadcast along leading dimensions, which end the stream
    there; a lone Linear, where two Reshapes would be added for one Gemm.
    """

    name: ClassVar[str] = "flat-stream"
    safety: ClassVar[Safety] = Safety.ROUNDING

    def apply(self, scope: Scope) -> tuple[list[Site], list[Skip]]:
        """See ``GraphRule.apply``."""
        streams, why = _candidates(scope), None
        if any(pays and _is_computed(stream.lead) for stream, _, pays in streams):
            before, why = scope.model.opset, scope.reach_opset(ALLOWZERO)
            if scope.model.opset != before:  # nodes were adapted
                streams = _candidates(scope)
        leads = _Leads(scope)
        sites: list[Site] = []
        skips: list[Skip] = []
        for stream, added, pays in streams:
            first = stream.members[0].node
            if not pays:
                if stream.matmuls > 1:
                    skips.append(self.skip(first, f"{added} Reshapes would be added for {stream.matmuls} products"))
                continue
            if why is not None and _is_computed(stream.lead):
                skips.append(self.skip(first, why))
                continue
            sites.append(self.site(first, f"{len(stream.members)} nodes from here on work on matrices"))
            _Flattener(stream, scope, leads).run()
        return sites, skips


def _is_computed(lead: Sizes) -> bool:
    """Whether the way back to these leading dimensions is no constant: -1 stands for one of them, and 0 for none."""
    return 0 in lead or sum(not isinstance(size, int) for size in lead) > 1


def _candidates(scope: Scope) -> list[tuple[Stream, int, bool]]:
    """The streams as they are before any is rewritten, how many Reshapes each would cost, and whether that pays."""
    streams = [(stream, _added(stream, scope)) for stream in find_streams(ShapeFacts.of(scope))]
    return [(stream, added, stream.matmuls >= max(2, added)) for stream, added in streams]


def _added(stream: Stream, scope: Scope) -> int:
    """How many Reshapes flattening adds, less those that are views already."""
    begins = sum(not is_view(scope.producer(tensor)) for tensor in stream.entries)
    return begins + sum(
        scope.editor.is_output(tensor) or not all(stream.absorbs(user, tensor) for user in users)
        for tensor, users in stream.exits
    )


class _Leads:
    """Shape tensors that begin with a stream's leading dimensions; each is computed once."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._heads: dict[Sizes, gs.Tensor] = {}
        self._made: dict[tuple[Sizes, tuple[int, ...]], gs.Tensor] = {}

    def shape(self, stream: Stream, tail: tuple[int, ...]) -> gs.Tensor:
        """The shape ``[*lead, *tail]`` as a Reshape's target."""
        key = stream.lead, tail
        if key not in self._made:
            self._made[key] = self._make(stream, tail)
        return self._made[key]

    def _make(self, stream: Stream, tail: tuple[int, ...]) -> gs.Tensor:
        editor = self._scope.editor
        if not _is_computed(stream.lead):
            fixed = [size if isinstance(size, int) else -1 for size in stream.lead]
            return editor.add_constant("stream_shape", np.array([*fixed, *tail], np.int64))
        if stream.lead not in self._heads:
            self._heads[stream.lead] = self._head(stream.entries[0], len(stream.lead))
        rest = editor.add_constant("stream_tail", np.array(tail, np.int64))
        concat = editor.add_node("Concat", [self._heads[stream.lead], rest], attrs={"axis": 0}, name="stream_shape")
        return _typed(concat.outputs[0], np.dtype(np.int64), [len(stream.lead) + len(tail)])

    def _head(self, source: gs.Tensor, length: int) -> gs.Tensor:
        """The leading dimensions, taken from the first tensor of the stream: nothing before it needs them."""
        editor = self._scope.editor
        whole = editor.add_node("Shape", [source], name="stream_dims")
        _typed(whole.outputs[0], np.dtype(np.int64), [length + 1])
        bounds = [editor.add_constant(f"stream_{k}", np.array([k], np.int64)) for k in (0, length)]
        head = editor.add_node("Slice", [whole.outputs[0], *bounds], name="stream_lead")
        return _typed(head.outputs[0], np.dtype(np.int64), [length])


class _Flattener:
    """Rewrites one stream."""

    def __init__(self, stream: Stream, scope: Scope, leads: _Leads) -> None:
        self._stream, self._scope, self._leads = stream, scope, leads
        self._flat: dict[int, gs.Tensor] = {}

    def run(self) -> None:
        """Build the matrix form beside the old one, hand its results over, and sweep the old one away."""
        stream, editor = self._stream, self._scope.editor
        old = [member.node for member in stream.members]
        sources = [self._enter(tensor) for tensor in stream.entries]
        for member in stream.members:
            if not stream.is_biased(member):
                self._build(member)
        for tensor, users in stream.exits:
            self._leave(tensor, users)
        sweep(self._scope, [*reversed(old), *sources])
        self._scope.touch([node for flat in self._flat.values() for node in editor.consumers(flat)])

    def _enter(self, tensor: gs.Tensor) -> gs.Node | None:
        """Make the matrix of a tensor that the stream reads; from before a view, where there is one."""
        editor = self._scope.editor
        width = self._stream.width(tensor)
        producer = self._scope.producer(tensor)
        source = producer.inputs[0] if producer is not None and is_view(producer) else tensor
        target = editor.add_constant("stream_rows", np.array([-1, width], np.int64))
        reshape = editor.add_node("Reshape", [source, target], name=f"{tensor.name}_rows")
        self._flat[id(tensor)] = _typed(reshape.outputs[0], np.dtype(np.float32), [None, width])
        return producer

    def _build(self, member: Member) -> None:
        node, result = member.node, member.node.outputs[0]
        product = self._stream.product_of(member)
        if product is not None:
            bias = self._row(next(t for t in node.inputs if self._scope.editor.constant(t) is not None))
            inputs = [self._flat[id(product.inputs[0])], product.inputs[1], bias]
            fresh = self._scope.editor.add_node("Gemm", inputs, name=f"{label(product)}_gemm")
        else:
            inputs = [self._operand(place, tensor, member) for place, tensor in enumerate(node.inputs)]
            attributes = dict(node.attrs)
            if "axis" in attributes or node.op in ("Softmax", "LogSoftmax"):
                attributes["axis"] = 1
            fresh = self._scope.editor.add_node(node.op, inputs, attrs=attributes, name=f"{label(node)}_rows")
        width = self._stream.width(result)
        self._flat[id(result)] = _typed(fresh.outputs[0], np.dtype(np.float32), [None, width])

    def _operand(self, place: int, tensor: gs.Tensor, member: Member) -> gs.Tensor:
        if place in member.streams:
            return self._flat[id(tensor)]
        return tensor if member.node.op == "MatMul" or tensor.is_empty() else self._row(tensor)

    def _row(self, tensor: gs.Tensor) -> gs.Tensor:
        """A constant of one row, or one number, without leading dimensions of 1."""
        value = self._scope.editor.constant(tensor)
        if value is None or value.ndim < 2:
            return tensor
        return self._scope.editor.add_constant(f"{tensor.name}_row", value.reshape(-1))

    def _leave(self, tensor: gs.Tensor, users: list[gs.Node]) -> None:
        flat, stream = self._flat[id(tensor)], self._stream
        for user in users:
            tail = stream.tail(user, tensor)
            if tail is not None:
                self._view(flat, tail, user.outputs[0], f"{label(user)}_view")
                self._scope.remove(user)
        if self._scope.editor.is_output(tensor) or any(id(user) not in self._scope.removed for user in users):
            self._view(flat, (stream.width(tensor),), tensor, f"{tensor.name}_back")

    def _view(self, flat: gs.Tensor, tail: tuple[int, ...], result: gs.Tensor, name: str) -> None:
        """Compute ``result`` as a matrix with its leading dimensions back; one of them may be 0."""
        stream = self._stream
        attributes = {"allowzero": 1} if _is_computed(stream.lead) else {}
        shape = self._leads.shape(stream, tail)
        self._scope.editor.add_node("Reshape", [flat, shape], attrs=attributes, outputs=[result], name=name)


def _typed(tensor: gs.Tensor, dtype: np.dtype[np.generic], shape: list[int | None]) -> gs.Tensor:
    """Give a new tensor its type and shape, which inference would find only later."""
    tensor.dtype, tensor.shape = dtype, shape
    return tensor
