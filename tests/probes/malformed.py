"""What cannot be right: refused with a code that names the cause, or repaired and said so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.probes.probe import FLOAT, Probe, edited, node, relu, trunk, value, weight


def probes() -> Iterator[Probe]:
    """All probes of this module."""
    yield from _structure()
    yield from _versions()
    yield from _tensors()


def _refused(name: str, code: str, change: Callable[[onnx.ModelProto], object]) -> Probe:
    return Probe(name, edited(trunk(), change), refused=code)


def _structure() -> Iterator[Probe]:
    yield Probe(
        "no graph", onnx.ModelProto(ir_version=10, opset_import=[helper.make_opsetid("", 21)]), refused="GO-304"
    )
    yield Probe("value defined twice", trunk(relu("s", "f", "a"), relu("s", "f", "b")), refused="GO-304")
    yield Probe("value that shadows an input", trunk(relu("s", "x", "a"), relu("s", "f", "b")), refused="GO-304")
    yield Probe("value that is never defined", trunk(relu("nowhere", "f")), refused="GO-304")
    yield _refused("output that is never computed", "GO-304", lambda m: m.graph.output.append(value("nowhere")))
    yield _refused("input listed twice", "GO-304", lambda m: m.graph.input.append(m.graph.input[0]))
    yield _refused("initializer listed twice", "GO-304", lambda m: m.graph.initializer.append(m.graph.initializer[0]))
    yield _refused("input without a name", "GO-304", lambda m: m.graph.input.append(value("")))
    yield _refused("initializer without a name", "GO-304", lambda m: m.graph.initializer.append(weight("", np.ones(1))))
    circle = trunk(node("Add", ["s", "b"], ["a"], "one"), node("Add", ["a", "s"], ["b"], "two"), relu("a", "f"))
    yield Probe("cycle", circle, refused="GO-304")
    yield Probe("node that reads itself", trunk(node("Add", ["s", "f"], ["f"])), refused="GO-304")
    yield Probe("unsorted nodes", trunk(relu("a", "f", "second"), relu("s", "a", "first")), noted="sorted")


def _versions() -> Iterator[Probe]:
    yield _refused("no IR version", "GO-305", lambda m: m.ClearField("ir_version"))
    yield _refused("IR version of the future", "GO-305", lambda m: setattr(m, "ir_version", 99))
    yield _refused("no opset", "GO-305", lambda m: m.ClearField("opset_import"))
    yield _refused("opset of the future", "GO-305", lambda m: setattr(m.opset_import[0], "version", 999))
    yield _refused("opset 0", "GO-305", lambda m: setattr(m.opset_import[0], "version", 0))
    yield Probe("operator that the standard domain lacks", trunk(node("Foo", ["s"], ["f"])), refused="GO-305")
    yield Probe("operator newer than its opset", trunk(node("Gelu", ["s"], ["f"]), opset=13), refused="GO-305")


def _tensors() -> Iterator[Probe]:
    def held(name: str, code: str, tensor: TensorProto) -> Probe:
        return Probe(name, trunk(node("Add", ["s", "w"], ["f"]), weights=[tensor]), refused=code)

    yield held("too few raw bytes", "GO-304", TensorProto(name="w", data_type=FLOAT, dims=[4], raw_data=b"1234"))
    yield held("too many raw bytes", "GO-304", TensorProto(name="w", data_type=FLOAT, dims=[1], raw_data=bytes(8)))
    yield held("too few typed values", "GO-304", TensorProto(name="w", data_type=FLOAT, dims=[4], float_data=[1.0]))
    yield held("negative dimension", "GO-304", TensorProto(name="w", data_type=FLOAT, dims=[-4], raw_data=bytes(16)))
    huge = TensorProto(name="w", data_type=FLOAT, dims=[2**62, 2**62], raw_data=bytes(16))
    yield held("dimensions that overflow", "GO-304", huge)
    yield held("no element type", "GO-304", TensorProto(name="w", dims=[1], raw_data=bytes(4)))
    yield held("element type of the future", "GO-308", TensorProto(name="w", data_type=99, dims=[1], raw_data=bytes(4)))
    lost = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    lost.external_data.add(key="location", value="weights.bin")
    yield held("external data of a model in memory", "GO-306", lost)
    lost = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    yield held("external data without a location", "GO-306", lost)
