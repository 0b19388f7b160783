"""Small integer tensors: what is known of computed shapes."""

from __future__ import annotations

import numpy as np

from graphopt.analysis.channels.factors import Atoms
from graphopt.analysis.channels.values import Dim, as_int, elements, evaluate, lift, lower, move


def test_moving_keeps_track_of_sizes() -> None:
    atoms = Atoms()
    channels = Dim(atoms.new(8))
    shape = np.array([1, channels, 4], object)
    picked = move("Gather", [shape, lift(np.array([1, 2]))], {"axis": 0}, atoms, 17)
    assert picked is not None and elements(picked) == [channels, 4]
    joined = move("Concat", [picked, lift(np.array([-1]))], {"axis": 0}, atoms, 17)
    assert joined is not None and elements(joined) == [channels, 4, -1]


def test_a_size_is_a_number_only_where_it_cannot_change() -> None:
    atoms = Atoms()
    axis = atoms.new(8)
    assert as_int(Dim(axis), atoms) is None
    assert lower(np.array([Dim(axis), 3], object), atoms) is None
    atoms.freeze(axis, "output")
    assert as_int(Dim(axis), atoms) == 8
    assert lower(np.array([Dim(axis), 3], object), atoms).tolist() == [8, 3]  # type: ignore[union-attr]


def test_one_operator_is_evaluated_as_onnx_defines_it() -> None:
    assert evaluate("HardSigmoid", [np.zeros(1, np.float32)], {"alpha": 0.2, "beta": 0.25}, 17) == np.float32(0.25)
    table = np.array([[0, 1], [0, 1], [0, 0], [0, 0]])
    flipped = evaluate("Slice", [table, *(np.array([v]) for v in (-1, -(2**62), 0, -1))], {}, 17)
    assert flipped is not None and flipped.tolist() == table[::-1].tolist()


def test_what_the_reference_cannot_do_is_unknown() -> None:
    assert evaluate("NoSuchOperator", [np.zeros(1, np.float32)], {}, 17) is None
    assert evaluate("Reshape", [np.zeros(3, np.float32), np.array([2, 2])], {}, 17) is None
