"""Formulas over dimensions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.fuse.shapes.symbols import Algebra
from tests.passes.fuse.harness import examples


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["add", "sub", "mul", "div"]), st.integers(-3, 6)), max_size=6), st.data())
def test_formulas_are_what_they_compute(steps: list[tuple[str, int]], data: st.DataObject) -> None:
    algebra = Algebra()
    terms = [algebra.symbol("a", count=True), algebra.symbol("b", count=True), 2]
    values = [data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), 2]
    for op, pick in steps:
        left, right = pick % len(terms), (pick + 1) % len(terms)
        if op == "div":
            found = algebra.quotient(terms[left], terms[right])
            if found is None or values[right] == 0:
                continue
            assert values[left] % values[right] == 0
            terms.append(found)
            values.append(values[left] // values[right])
        else:
            terms.append(getattr(algebra, op)(terms[left], terms[right]))
            x, y = values[left], values[right]
            values.append({"add": x + y, "sub": x - y, "mul": x * y}[op])
    for term, value in zip(terms, values, strict=True):
        assert not isinstance(term, int) or term == value
        assert not algebra.is_count(term) or value >= 0
        for other, number in zip(terms, values, strict=True):
            if (equal := algebra.equal(term, other)) is not None:
                assert equal == (value == number)


def test_broadcast_sizes() -> None:
    algebra = Algebra()
    a, b = algebra.symbol("a", count=True), algebra.symbol("b", count=True)
    assert algebra.joined(a, a) == a
    assert algebra.joined(1, a) == a
    assert algebra.joined(a, 3) == 3
    assert algebra.joined(a, b) == algebra.joined(b, a) != a
