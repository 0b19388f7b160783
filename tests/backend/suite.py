"""The models of the ONNX backend suite, with the inputs that the suite gives for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import DATA_DIR, load_model_tests

FOLDERS = ("simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class Case:
    """One model of the suite.

    Attributes:
        kind: the part of the suite it belongs to.
        name: kind and name.
        model: the suite's own object, where the suite holds it in memory.
        inputs: the first set of inputs of such a model, in order.
        path: the model's file, where there is one.
    """

    kind: str
    name: str
    model: onnx.ModelProto | None = None
    inputs: tuple[Any, ...] = ()
    path: Path | None = None

    def proto(self) -> onnx.ModelProto:
        """The model; the suite's own object where there is one."""
        return self.model if self.model is not None else onnx.load(self.path)

    def feed(self) -> dict[str, Any]:
        """The suite's first set of inputs by name; seeded ones for the light models, which come without."""
        proto = self.proto()
        held = {tensor.name for tensor in proto.graph.initializer}
        wanted = [value for value in proto.graph.input if value.name not in held]
        if self.kind == "node":
            values = list(self.inputs)
        elif self.kind == "light":
            values = [_random(value) for value in wanted]
        else:
            assert self.path is not None
            values = list(_stored(self.path.parent / "test_data_set_0", wanted))
        return {value.name: _fed(given) for value, given in zip(wanted, values, strict=False)}


def _fed(value: Any) -> Any:
    """A value of the suite as an array; it also holds protobufs and numpy scalars."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _random(value: onnx.ValueInfoProto) -> Any:
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def _stored(folder: Path, inputs: list[onnx.ValueInfoProto]) -> Iterator[Any]:
    for index, value in enumerate(inputs):
        path = folder / f"input_{index}.pb"
        if not path.is_file():
            return
        if value.type.HasField("sequence_type"):
            yield numpy_helper.to_list(onnx.SequenceProto.FromString(path.read_bytes()))
        else:
            yield numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


@cache
def all_cases() -> tuple[Case, ...]:
    """Every model of the suite that needs no download (2,033 with onnx 1.23), sorted by name."""
    return tuple(sorted(_cases(), key=lambda case: case.name))


def _cases() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite computes infinities on purpose
        nodes = load_model_tests(kind="node")
    for case in nodes:
        yield Case("node", f"node/{case.name}", case.model, tuple(case.data_sets[0][0]) if case.data_sets else ())
    for kind in FOLDERS:
        for case in load_model_tests(kind=kind):
            if case.model is not None:
                yield Case(kind, f"{kind}/{case.name}", case.model)
            else:
                yield Case(kind, f"{kind}/{case.name}", path=Path(case.model_dir) / "model.onnx")
    for path in Path(DATA_DIR, "light").glob("*.onnx"):
        yield Case("light", f"light/{path.stem}", path=path)


def every_fifth() -> tuple[Case, ...]:
    """A fifth of the suite; of the light models, which take seconds each, the two smallest."""
    small = [case for case in all_cases() if case.kind != "light"]
    light = [case for case in all_cases() if case.name.endswith(("squeezenet", "shufflenet"))]
    return (*small[::5], *light)


def frozen(case: Case) -> tuple[onnx.ModelProto, dict[str, Any]] | None:
    """A node case with all inputs but the first held as initializers, as weights are in a real model.

    Returns:
        The model and what is left of its feed; ``None`` where an input cannot be held.
    """
    if case.kind != "node":
        return None
    source, feed = case.proto(), case.feed()
    names = [value.name for value in source.graph.input]
    fixed = [n for n in names[1:] if isinstance(feed.get(n), np.ndarray)]
    if not fixed or len(fixed) != len(names) - 1:
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    kept = [value for value in source.graph.input if value.name not in fixed]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    types = {value.name: value.type.tensor_type.elem_type for value in source.graph.input}
    for name in fixed:
        tensor = numpy_helper.from_array(feed[name], name)
        if tensor.data_type != types[name]:
            return None
        proto.graph.initializer.append(tensor)
    return proto, {names[0]: feed[names[0]]}


def listed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every initializer among the inputs too, in IR 4 or later: each may be overridden."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = max(copy.ir_version, 4)
    present = {value.name for value in copy.graph.input}
    for tensor in copy.graph.initializer:
        if tensor.name not in present:
            copy.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return copy


def canonical(proto: onnx.ModelProto) -> bytes:
    """Bytes that are equal where the models are."""
    return proto.SerializeToString(deterministic=True)


def same_values(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two sets of outputs are bit-identical."""
    return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict | None) or isinstance(right, dict | None):
        return type(left) is type(right) and left == right
    a, b = np.asarray(left), np.asarray(right)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b)) if a.dtype == object else a.tobytes() == b.tobytes()
