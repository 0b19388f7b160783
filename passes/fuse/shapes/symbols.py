"""Whole numbers that are known, or known as a formula over dimensions that only the run decides."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

MOST_TERMS = 12
"""Longer formulas are given a name of their own, so that products of sums cannot explode."""
MOST_FACTORS = 8
"""So are products of more symbols: a dimension squared again and again would be of a degree beyond all memory."""
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Poly:
    """A polynomial with integer coefficients over symbols, never a plain number.

    Attributes:
        terms: pairs of symbols (sorted, with repetition) and coefficient (not 0), sorted.
    """

    terms: tuple[tuple[tuple[int, ...], int], ...]


Term = int | Poly
"""A number, or a formula."""


class Algebra:
    """Arithmetic on terms; equal terms are equal numbers in every run.

    A symbol stands for one number of one run: a dimension of one tensor, an element, or a function of other terms
    that has no polynomial form. What is asked for under the same key is the same symbol. Polynomials are kept in
    canonical form, so that equality of terms is equality of formulas. A number that 64 bits do not hold is a symbol of
    its own: how a run wraps it around is not followed, nor that a formula may overflow.
    """

    def __init__(self) -> None:
        self._symbols: dict[Hashable, int] = {}
        self._counts: set[int] = set()

    def symbol(self, key: Hashable, *, count: bool = False) -> Term:
        """The symbol of that key; ``count``: it is known to be ≥ 0."""
        number = self._symbols.setdefault(key, len(self._symbols))
        if count:
            self._counts.add(number)
        return Poly((((number,), 1),))

    def add(self, left: Term, right: Term) -> Term:
        """``left + right``."""
        return self._made([*_terms(left), *_terms(right)], ("add", left, right))

    def sub(self, left: Term, right: Term) -> Term:
        """``left - right``."""
        return self._made([*_terms(left), *((m, -c) for m, c in _terms(right))], ("sub", left, right))

    def mul(self, left: Term, right: Term) -> Term:
        """``left · right``."""
        key = ("mul", *sorted((left, right), key=_terms))
        if _degree(left) + _degree(right) > MOST_FACTORS:
            return self.symbol(key)
        pairs = [(tuple(sorted(m + n)), c * d) for m, c in _terms(left) for n, d in _terms(right)]
        return self._made(pairs, key)

    def product(self, factors: Iterable[Term]) -> Term:
        """The product of all ``factors``; 1 for none."""
        total: Term = 1
        for factor in factors:
            total = self.mul(total, factor)
        return total

    def div(self, left: Term, right: Term) -> Term | None:
        """``left / right``, towards zero as runtimes divide integers; ``None`` for a division by zero."""
        if right == 0:
            return None
        if isinstance(left, int) and isinstance(right, int):
            quotient = abs(left) // abs(right)
            signed = quotient if (left < 0) == (right < 0) else -quotient
            return self._made([((), signed)], ("div", left, right))
        exact = self.quotient(left, right)
        return self.symbol(("div", left, right)) if exact is None else exact

    def quotient(self, left: Term, right: Term) -> Term | None:
        """``left / right`` where that is a polynomial for every ``right`` ≠ 0, else ``None``."""
        divisor = _terms(right)
        if not divisor:
            return None
        if len(divisor) != 1:
            return 1 if left == right else None
        (gone, number), pairs = divisor[0], []
        for monomial, coefficient in _terms(left):
            rest = _without(monomial, gone)
            if rest is None or coefficient % number:
                return None
            pairs.append((rest, coefficient // number))
        return self._made(pairs, ("quotient", left, right))

    def function(self, name: str, call: Callable[..., int], *arguments: Term) -> Term:
        """Some function of terms: its value where they are numbers, else a symbol of its own."""
        if all(isinstance(a, int) for a in arguments):
            return call(*arguments)
        return self.symbol((name, *arguments), count=all(self.is_count(a) for a in arguments))

    def joined(self, left: Term, right: Term) -> Term:
        """The size that two broadcast dimensions give, in every run that accepts them."""
        if left == right or right == 1:
            return left
        if left == 1 or isinstance(right, int):
            return right
        if isinstance(left, int):
            return left
        pair = sorted([left, right], key=lambda term: term.terms)
        return self.symbol(("joined", *pair), count=True)

    def is_count(self, term: Term) -> bool:
        """Whether a term is ≥ 0 in every run."""
        return all(c >= 0 and self._counts.issuperset(m) for m, c in _terms(term))

    def equal(self, left: Term, right: Term) -> bool | None:
        """Whether two terms are equal, where every run agrees on that."""
        if left == right:
            return True
        if isinstance(left, int) and isinstance(right, int):
            return False
        number, other = (left, right) if isinstance(left, int) else (right, left)
        return False if isinstance(number, int) and number < 0 and self.is_count(other) else None

    def _made(self, pairs: list[tuple[tuple[int, ...], int]], key: Hashable) -> Term:
        total: dict[tuple[int, ...], int] = {}
        for monomial, coefficient in pairs:
            total[monomial] = total.get(monomial, 0) + coefficient
        terms = tuple(sorted((m, c) for m, c in total.items() if c))
        if len(terms) > MOST_TERMS or any(c not in _INT64 for _, c in terms):
            return self.symbol(key)
        if not terms:
            return 0
        return terms[0][1] if len(terms) == 1 and terms[0][0] == () else Poly(terms)


def _terms(term: Term) -> tuple[tuple[tuple[int, ...], int], ...]:
    if isinstance(term, Poly):
        return term.terms
    return (((), term),) if term else ()


def _degree(term: Term) -> int:
    return max((len(monomial) for monomial, _ in _terms(term)), default=0)


def _without(monomial: tuple[int, ...], gone: tuple[int, ...]) -> tuple[int, ...] | None:
    rest = list(monomial)
    for symbol in gone:
        if symbol not in rest:
            return None
        rest.remove(symbol)
    return tuple(rest)
