"""What a user's words select, and what is said of words that select nothing."""

from __future__ import annotations

import pytest

from graphopt.errors import UsageError
from graphopt.model.model import Model
from graphopt.pipeline.selection import Selection
from graphopt.testing.builders import conv_bn_relu


@pytest.fixture
def model() -> Model:
    return Model.of(conv_bn_relu())


def test_a_region_is_what_lies_between_two_tensors(model: Model) -> None:
    first, *_, last = model.editor.nodes()
    region = f"{first.outputs[0].name}..{last.outputs[0].name}"
    assert Selection.of(model, only=[region]).blocked == {id(first)}
    assert not Selection.of(model, skip=[region]).allows(last)


def refused(model: Model, pattern: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        Selection.of(model, only=[pattern])
    assert caught.value.code == "GO-207" and repr(pattern) in caught.value.what
    return caught.value


def test_the_nearest_node_or_operator_is_named(model: Model) -> None:
    name = model.editor.nodes()[0].name
    assert f"did you mean {name!r}" in str(refused(model, name[:-1]).hint)
    assert "'op:Conv'" in str(refused(model, "op:Com").hint)
    assert "inspect -vv" in str(refused(model, "?").hint)


@pytest.mark.parametrize("pattern", ["{first}x..{last}", "{first}..{last}x"])
def test_of_a_region_the_end_that_is_no_tensor_is_named(model: Model, pattern: str) -> None:
    first, last = model.interface.inputs[0].name, model.interface.outputs[0].name
    error = refused(model, pattern.format(first=first, last=last))
    meant = first if pattern.startswith("{first}x") else last
    assert f"there is no tensor '{meant}x'" in str(error.why)
    assert f"did you mean {meant!r}" in str(error.hint)


def test_a_region_the_wrong_way_round_is_said_to_be(model: Model) -> None:
    first, last = model.interface.inputs[0].name, model.interface.outputs[0].name
    assert refused(model, f"{last}..{first}").why == f"no path leads from {last!r} to {first!r}, but one leads back"
