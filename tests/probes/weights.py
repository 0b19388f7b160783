"""Features of initializers: where they stand, how they are stored, and every element type."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.probes.probe import FLOAT, Probe, declared, node, plain, relu, tensor, trunk, value, weight

ROW = np.array([0.5, -1.0, 2.0, 0.0], np.float32)


def probes() -> Iterator[Probe]:
    """All probes of this module."""
    yield from _places()
    yield from _papers()
    yield from _storage()
    yield from _types()


def _add(**graph: object) -> onnx.ModelProto:
    return trunk(node("Add", ["s", "w"], ["f"]), **graph)  # type: ignore[arg-type]


def _places() -> Iterator[Probe]:
    yield Probe(
        "overridable initializer",
        _add(weights=[weight("w", ROW)], inputs=[value("w", (4,))]),
        lambda m: (declared(m.graph.input, "w"), tensor(m, "w")),
    )
    model = _add(weights=[weight("w", ROW)], inputs=[value("w", (4,))], opset=8, ir_version=3)
    for held in ("fc.weight", "fc.bias"):
        dims = next(t.dims for t in model.graph.initializer if t.name == held)
        model.graph.input.append(value(held, dims))
    yield Probe(
        "IR 3: weights listed among the inputs",
        model,
        lambda m: m.ir_version >= 4 or [v.name for v in m.graph.input] == ["x", "w", "fc.weight", "fc.bias"],
    )
    yield Probe(
        "initializer that is an output",
        trunk(weights=[weight("w", ROW)], outputs=[value("w", (4,))]),
        lambda m: tensor(m, "w"),
    )
    model = trunk(node("Add", ["s", "w"], ["a"]), node("Mul", ["a", "w"], ["f"], "second"), weights=[weight("w", ROW)])
    yield Probe("initializer that two nodes share", model, lambda m: [t.name for t in m.graph.initializer].count("w"))
    indices = helper.make_tensor("w.at", TensorProto.INT64, [2], [0, 3])
    sparse = helper.make_sparse_tensor(helper.make_tensor("w", FLOAT, [2], [1.0, 2.0]), indices, [4])
    yield Probe(
        "sparse initializer",
        _add(sparse_initializer=[sparse]),
        lambda m: [plain(t) for t in m.graph.sparse_initializer],
    )
    yield Probe("sparse initializer with coordinates", _coordinates(), lambda m: plain(m.graph.sparse_initializer[0]))


def _coordinates() -> onnx.ModelProto:
    indices = helper.make_tensor("w.at", TensorProto.INT64, [2, 2], [0, 1, 1, 3])
    sparse = helper.make_sparse_tensor(helper.make_tensor("w", FLOAT, [2], [1.0, 2.0]), indices, [2, 4])
    return _add(sparse_initializer=[sparse])


def _papers() -> Iterator[Probe]:
    noted = weight("w", ROW)
    noted.doc_string = "a bias"
    yield Probe("initializer doc_string", _add(weights=[noted]), lambda m: tensor(m, "w"))
    noted = weight("w", ROW)
    noted.metadata_props.add(key="k", value="v")
    yield Probe("initializer metadata_props", _add(weights=[noted]), lambda m: tensor(m, "w"))


def _storage() -> Iterator[Probe]:
    typed = helper.make_tensor("w", FLOAT, [4], [0.5, -0.0, 2.0, 0.0])
    yield Probe("values in float_data", _add(weights=[typed]), lambda m: tensor(m, "w"))
    for name, elem, given in (
        ("int32_data of float16", TensorProto.FLOAT16, [1.0, -2.0]),
        ("int32_data of bfloat16", TensorProto.BFLOAT16, [1.0, -2.0]),
        ("int32_data of int4", TensorProto.INT4, [1, -2]),
        ("double_data", TensorProto.DOUBLE, [1.0, -2.0]),
        ("uint64_data", TensorProto.UINT64, [1, 2**63]),
        ("int64_data", TensorProto.INT64, [1, -(2**62)]),
        ("complex float_data", TensorProto.COMPLEX64, [1 + 2j, -1j]),
    ):
        yield _lone(f"values in {name}", helper.make_tensor("w", elem, [2], given))
    yield _lone("empty initializer", weight("w", np.zeros((0, 4), np.float32)))
    yield _lone("scalar initializer", weight("w", np.float32(3)))
    nan = np.array([0x7FC00001, 0x7F800001, 0xFFC00000, 0x80000000], np.uint32).view(np.float32)
    yield Probe("NaN payloads and negative zero", _add(weights=[weight("w", nan)]), lambda m: tensor(m, "w"))
    segmented = weight("w", ROW)
    segmented.segment.begin, segmented.segment.end = 0, 4
    yield Probe("tensor segment", _add(weights=[segmented]), refused="GO-308")


def _lone(name: str, held: TensorProto) -> Probe:
    """An initializer read by an Identity of its own, whose output is one of the model's."""
    model = trunk(
        relu(name="other"),
        node("Identity", ["w"], ["out"]),
        weights=[held],
        outputs=[value("out", list(held.dims), held.data_type)],
        opset=25,
        ir_version=13,
    )
    return Probe(name, model, lambda m: tensor(m, "w"))


def _types() -> Iterator[Probe]:
    text = TensorProto.STRING
    yield _lone("string initializer", helper.make_tensor("w", text, [2], [b"a", "ü".encode()]))
    yield _lone("string initializer that is not UTF-8", helper.make_tensor("w", text, [2], [b"a", b"\xff\xfe"]))
    for name, elem in sorted(element_types().items()):
        dtype = helper.tensor_dtype_to_np_dtype(elem)
        yield _lone(f"initializer of {name.lower()}", numpy_helper.from_array(np.ones(3).astype(dtype), "w"))


def element_types() -> dict[str, int]:
    """Every element type that a constant of numbers can have, by name."""
    return {
        name: elem
        for name, elem in TensorProto.DataType.items()
        if name not in ("UNDEFINED", "STRING") and not name.startswith("FLOAT6")
    }


def with_values(elem: int) -> onnx.ModelProto:
    """A model whose node ``keep`` reads the initializer ``w``: 0, 1, 1 of this element type."""
    values = [1, 2, 1] if "E8M0" in TensorProto.DataType.Name(elem) else [0, 1, 1]
    dtype = helper.tensor_dtype_to_np_dtype(elem)
    return _lone("", numpy_helper.from_array(np.array(values).astype(dtype), "w")).model
