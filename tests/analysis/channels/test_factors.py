"""Factor expressions: unifying, splitting, cutting, and which entries remain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analysis.channels.factors import Atoms, Expr, Mismatch, Sum


def whole(atoms: Atoms, expr: Expr) -> list[int]:
    return atoms.indices(expr, {}).tolist()


@given(a=st.integers(2, 6), b=st.integers(2, 6), c=st.integers(2, 6))
def test_an_axis_equal_to_a_product_is_split_into_its_factors(a: int, b: int, c: int) -> None:
    atoms = Atoms()
    product = atoms.new(a) + atoms.new(b) + atoms.new(c)
    axis = atoms.new(a * b * c)
    atoms.unify(axis, product, "here")
    assert atoms.resolve(axis) == atoms.resolve(product)
    kept = {product[1]: np.arange(b - 1)}  # drop the last index of the middle factor
    labels = np.arange(a * b * c).reshape(a, b, c)
    assert atoms.indices(axis, kept).tolist() == labels[:, :-1].reshape(-1).tolist()  # type: ignore[arg-type]


@given(a=st.integers(2, 9), b=st.integers(2, 9), inner=st.integers(1, 4))
def test_a_cut_axis_is_the_sum_of_its_pieces(a: int, b: int, inner: int) -> None:
    atoms = Atoms()
    axis = atoms.new(a + b) + atoms.new(inner)
    head, tail = atoms.cut(axis, a * inner)
    assert atoms.size(head) == a * inner and atoms.size(tail) == b * inner
    kept = {next(iter(atoms.leaves(head))): np.arange(1)}
    expected = [*range(inner), *range(a * inner, (a + b) * inner)]
    assert atoms.indices(axis, kept).tolist() == expected  # type: ignore[arg-type]


def test_sums_with_different_seams_are_refined_to_both() -> None:
    atoms = Atoms()
    left = (Sum((atoms.new(8), atoms.new(16), atoms.new(8))),)
    right = (Sum((atoms.new(16), atoms.new(16))),)
    atoms.unify(left, right, "add")
    assert atoms.resolve(left) == atoms.resolve(right)
    assert [atoms.atom_size(atom) for atom in atoms.leaves(left)] == [8, 8, 8, 8]


def test_an_axis_of_one_entry_is_nothing() -> None:
    atoms = Atoms()
    assert atoms.new(1) == ()
    assert atoms.size(()) == 1 and whole(atoms, ()) == [0]


def test_sizes_that_do_not_divide_freeze_both_sides() -> None:
    atoms = Atoms()
    left, right = atoms.new(4) + atoms.new(9), atoms.new(6) + atoms.new(6)
    atoms.unify(left, right, "the reshape")
    assert all("the reshape" in (atoms.frozen(atom) or "") for atom in [*atoms.leaves(left), *atoms.leaves(right)])


def test_freezing_survives_merging_in_either_direction() -> None:
    for swap in (False, True):
        atoms = Atoms()
        free, held = atoms.new(6), atoms.new(6)
        atoms.freeze(held, "output")
        atoms.unify(*((held, free) if swap else (free, held)), "add")
        assert [atoms.frozen(a) for a in atoms.leaves(free)] == ["output"]
        assert atoms.is_frozen(held)


def test_a_size_known_only_at_run_time_is_frozen() -> None:
    atoms = Atoms()
    axis = atoms.new(None)
    assert atoms.size(axis) is None and atoms.is_frozen(axis)
    with pytest.raises(Mismatch):
        atoms.cut(axis, 3)


def test_labels_name_the_index_at_each_entry() -> None:
    atoms = Atoms()
    a, b = atoms.new(2), atoms.new(3)
    assert atoms.labels(a + b, a[0]).tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[arg-type]
    assert atoms.labels(a + b, b[0]).tolist() == [0, 1, 2, 0, 1, 2]  # type: ignore[arg-type]
    assert atoms.labels((Sum((a, b)),), b[0]).tolist() == [-1, -1, 0, 1, 2]  # type: ignore[arg-type]
    assert whole(atoms, (Sum((a, b, a)),)) == list(range(7))
