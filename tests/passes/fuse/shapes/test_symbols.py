"""Formulas over dimensions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.fuse.shapes.symbols import MOST_FACTORS, MOST_TERMS, Algebra, Poly, Term
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


def _size(term: Term) -> int:
    return sum(len(monomial) + 1 for monomial, _ in term.terms) if isinstance(term, Poly) else 1


def test_a_dimension_squared_again_and_again_stays_small() -> None:
    algebra = Algebra()
    a, b = algebra.symbol("a", count=True), algebra.symbol("b", count=True)
    for start in (a, algebra.add(a, b), algebra.add(algebra.mul(a, b), 3)):
        term = start
        for _ in range(200):
            term = algebra.mul(term, term)
            assert _size(term) <= MOST_TERMS * (MOST_FACTORS + 1)


def test_products_too_long_to_write_out_are_equal_where_their_factors_are() -> None:
    algebra = Algebra()
    a, b = (algebra.product([algebra.symbol(name)] * 5) for name in "ab")
    assert algebra.mul(a, b) == algebra.mul(b, a)
    assert algebra.mul(a, b) != algebra.mul(a, a)
    assert algebra.mul(0, a) == 0


def test_numbers_beyond_64_bits_are_not_followed() -> None:
    algebra = Algebra()
    top = 2**63 - 1
    assert algebra.add(top - 1, 1) == top
    term: Term = 3
    for _ in range(200):
        term = algebra.mul(term, term)
        assert not isinstance(term, int) or term <= top
    for beyond in (algebra.add(top, 1), algebra.mul(top, 2), algebra.sub(-top, 2), algebra.div(-top - 1, -1)):
        assert isinstance(beyond, Poly)
    assert algebra.equal(algebra.add(top, 1), 0) is None
