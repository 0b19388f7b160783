"""Rule `dead-node`."""

from __future__ import annotations

import numpy as np
from onnx import helper

from graphopt.testing.draft import Draft

from .harness import distance, multi_output, simplified


def test_a_dead_chain_goes() -> None:
    draft = Draft()
    x = draft.input("x", [2, 3])
    draft.node("Relu", [draft.node("Neg", [x], "dead1")], "dead2")
    draft.node("Abs", [x], "y")
    draft.output("y", [2, 3])
    done = simplified(draft.model("dead"))
    assert done.ops == ["Abs"]
    assert done.rules == {"dead-node": 2}


def test_one_used_output_keeps_a_node() -> None:
    draft = Draft()
    x = draft.input("x", [4])
    multi_output(draft, "Split", [x, draft.const("sizes", np.array([1, 3]))], ["left", "y"])
    draft.output("y", [3])
    assert simplified(draft.model("split")).ops == ["Split"]


def test_a_dead_user_does_not_keep_a_batch_norm_from_folding() -> None:
    draft = Draft()
    z = draft.conv(draft.input("x", [1, 3, 4, 4]), "z", 3, 4)
    draft.node("Relu", [z], "unused")
    draft.batch_norm(z, "y", 4)
    draft.output("y", [1, 4, 4, 4])
    done = simplified(draft.model("dead user"))
    assert done.ops == ["Conv"]
    assert distance(done) < 1e-5


def test_a_dead_user_behind_does_not_either() -> None:
    draft = Draft()
    z = draft.conv(draft.input("x", [1, 3, 4, 4]), "z", 3, 4)
    draft.batch_norm(z, "y", 4)
    draft.output("y", [1, 4, 4, 4])
    for i in range(40):
        draft.node("Relu", [z], f"unused{i}")
    assert simplified(draft.model("dead users")).ops == ["Conv"]


def test_what_has_no_outputs_is_there_for_its_effect() -> None:
    draft = Draft()
    x = draft.input("x", [2, 3])
    draft.nodes.append(helper.make_node("Print", [x], [], domain="my.domain"))
    draft.node("Identity", [draft.node("Abs", [x], "a")], "y")
    draft.output("y", [2, 3])
    assert sorted(simplified(draft.model("effect", domains={"my.domain": 1})).ops) == ["Abs", "Print"]
