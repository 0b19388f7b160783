"""Which models can be fed alike and compared, from what they declare and on the feeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.data.samples import Samples
from graphopt.errors import ModelError, SampleError
from graphopt.model.model import Model
from graphopt.validation.fit import require_fed, require_fit
from tests.model.probes import model_of, relu, value

FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
Declared = tuple[str, Sequence[int | str | None] | None, int]


def declaring(inputs: Sequence[Declared], outputs: Sequence[Declared], defaults: Sequence[str] = ()) -> Model:
    """A model of casts with these inputs and outputs; of ``defaults``, the values are in the file."""
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in part] for part in (inputs, outputs)
    ]
    nodes = [helper.make_node("Cast", ["x"], [name], to=kind) for name, _, kind in outputs]
    held = [numpy_helper.from_array(np.ones([1, 4], np.float32), name) for name in defaults]
    return Model.from_proto(model_of(nodes, *infos, initializer=held))


X: Declared = ("x", [1, 4], FLOAT)
Y: Declared = ("y", [1, 4], FLOAT)
W: Declared = ("w", [1, 4], FLOAT)


def one(dims: Sequence[int | str | None] | None, kind: int = FLOAT) -> Model:
    return declaring([("x", dims, kind)], [("y", dims, FLOAT)])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (one([1, 4]), one([1, 4])),
        (one(["N", 4]), one([8, 4])),
        (one([1, 4]), one([None, "C"])),
        (one(None), one([1, 4])),
        (declaring([X], [Y]), declaring([X], [("z", [9], INT), Y])),
        (declaring([X], [Y]), declaring([X], [("y", [1, 4], HALF)])),
        (declaring([X, W], [Y], ["w"]), declaring([X], [Y])),
        (declaring([X, W], [Y], ["w"]), declaring([X, W], [Y])),
        (declaring([X], [Y]), declaring([X, W], [Y], ["w"])),
        (declaring([X, W], [Y]), declaring([X, W], [Y], ["w"])),
    ],
    ids=[
        *("equal", "fixed-batch", "open-sizes", "open-rank", "one-output-more", "half-precision-output"),
        *("frozen-default", "default-that-is-required", "default-more", "default-for-required"),
    ],
)
def test_forms_of_one_model_fit(first: Model, second: Model) -> None:
    require_fit(first, second, outputs=True)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (one([1, 4]), declaring([X, W], [Y]), "input 'w' float32[1,4] is only in the second"),
        (declaring([X, W], [Y]), one([1, 4]), "input 'w' float32[1,4] is missing in the second"),
        (one([1, 4]), one([1, 5]), "input 'x' is float32[1,4] in the first and float32[1,5] in the second"),
        (one(["N", 4]), one(["N", 4, 1]), "float32[N,4] in the first and float32[N,4,1] in the second"),
        (one([1, 4]), one([1, 4], HALF), "float32[1,4] in the first and float16[1,4] in the second"),
        (
            declaring([X, W], [Y], ["w"]),
            declaring([X, ("w", [4], INT)], [Y]),
            "input 'w' is float32[1,4] in the first and int64[4] in the second",
        ),
    ],
    ids=["one-more", "one-less", "size", "rank", "type", "default-of-another-type"],
)
def test_inputs_that_cannot_be_fed_alike_are_named(first: Model, second: Model, said: str) -> None:
    for outputs in (True, False):
        with pytest.raises(ModelError) as caught:
            require_fit(first, second, outputs=outputs)
        assert caught.value.code == "GO-309"
        assert said in str(caught.value)
        assert "two forms of one model" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (("z", [1, 4], FLOAT), "output 'y' float32[1,4] is missing in the second"),
        (("y", [1, 9], FLOAT), "output 'y' is float32[1,4] in the first and float32[1,9] in the second"),
        (("y", [1, 4], INT), "output 'y' is float32[1,4] in the first and int64[1,4] in the second"),
    ],
    ids=["name", "size", "type"],
)
def test_outputs_matter_only_where_they_are_compared(second: Declared, said: str) -> None:
    models = declaring([X], [Y]), declaring([X], [second])
    require_fit(*models, outputs=False)
    with pytest.raises(ModelError) as caught:
        require_fit(*models, outputs=True)
    assert said in str(caught.value)


def test_every_difference_is_told_but_not_endlessly() -> None:
    layers: list[Declared] = [(f"past{i}", [1, 4], FLOAT) for i in range(9)]
    with pytest.raises(ModelError) as caught:
        require_fit(declaring([X, *layers], [Y]), one([1, 5]), outputs=True)
    assert "'x'" in str(caught.value) and "'past0'" in str(caught.value)
    assert "and 5 more" in str(caught.value)


def test_feeds_of_the_first_must_have_the_sizes_of_the_second() -> None:
    first, second = one(["N", 4]), one([8, 4])
    feeds = [{"x": np.zeros([rows, 4], np.float32)} for rows in (8, 2)]
    require_fed(first, second, Samples.of(feeds[:1]))
    with pytest.raises(SampleError) as caught:
        require_fed(first, second, Samples.of(feeds))
    assert caught.value.code == "GO-402"
    assert "sample 1" in str(caught.value) and "float32[8,4]" in str(caught.value)
    with pytest.raises(SampleError) as made_up:
        require_fed(first, second, Samples(tuple(feeds), synthetic=True))
    assert "--shape" in str(made_up.value.hint)


def test_a_default_that_the_second_requires_must_be_in_the_feeds() -> None:
    first, second = declaring([X, W], [Y], ["w"]), declaring([X, W], [Y])
    feed = {"x": np.zeros([1, 4], np.float32)}
    require_fed(first, second, Samples.of([{**feed, "w": feed["x"]}]))
    with pytest.raises(SampleError, match="no array for input 'w'"):
        require_fed(first, second, Samples.of([feed]))


def test_what_declares_no_type_is_left_to_the_runtime() -> None:
    untyped = onnx.ValueInfoProto(name="y")
    require_fit(Model.from_proto(model_of([relu()], [value("x")], [untyped])), one([1, 4]), outputs=True)
