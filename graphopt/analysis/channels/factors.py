"""Factor expressions: what an axis of a tensor is made of.

An axis is an ordered product of factors (row-major: the first factor is the outermost); a factor is an *atom*, or an
ordered sum of such products laid end to end. A reshape splits and merges products, Concat and Split build and cut
sums, everything else makes two axes equal. Two axes that an operator makes equal are unified; atoms are split where
the two sides are cut differently. What comes out is the finest partition into index sets that can be sliced
independently: the dependency groups of Torch-Pruning (Fang et al., 2023), without its per-module index maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sum:
    """Products laid end to end along one axis."""

    parts: tuple[Expr, ...]


Factor = int | Sum
Expr = tuple[Factor, ...]
"""A product of factors; the empty product is an axis of size 1."""


class Mismatch(Exception):
    """Two expressions that cannot be made equal by splitting atoms."""


class Atoms:
    """All atoms of one model: sizes, what each was merged into or split into, and which are frozen."""

    def __init__(self) -> None:
        self._sizes: list[int | None] = []
        self._bound: dict[int, Expr] = {}
        self._frozen: dict[int, str] = {}

    def new(self, size: int | None) -> Expr:
        """A fresh axis of ``size`` elements; ``None``: known only at run time, hence never sliced."""
        if size == 1:
            return ()
        self._sizes.append(size)
        atom = len(self._sizes) - 1
        if size is None:
            self._frozen[atom] = "its size is known only at run time"
        return (atom,)

    def resolve(self, expr: Expr) -> Expr:
        """The expression in terms of unbound atoms, nested products and single sums flattened."""
        flat: list[Factor] = []
        for factor in expr:
            if isinstance(factor, Sum):
                flat.extend(self._resolve_sum(factor))
            elif factor in self._bound:
                flat.extend(self.resolve(self._bound[factor]))
            else:
                flat.append(factor)
        return tuple(flat)

    def _resolve_sum(self, total: Sum) -> Expr:
        parts: list[Expr] = []
        for part in total.parts:
            solved = self.resolve(part)
            if len(solved) == 1 and isinstance(solved[0], Sum):
                parts.extend(solved[0].parts)
            else:
                parts.append(solved)
        return parts[0] if len(parts) == 1 else (Sum(tuple(parts)),)

    def size(self, expr: Expr) -> int | None:
        """Number of elements along the axis; ``None`` where a factor is known only at run time."""
        total = 1
        for factor in self.resolve(expr):
            size = self._factor_size(factor)
            if size is None:
                return None
            total *= size
        return total

    def _factor_size(self, factor: Factor) -> int | None:
        if not isinstance(factor, Sum):
            return self._sizes[factor]
        sizes = [self.size(part) for part in factor.parts]
        known = [s for s in sizes if s is not None]
        return sum(known) if len(known) == len(sizes) else None

    def leaves(self, expr: Expr) -> Iterator[int]:
        """Every unbound atom of the expression, with repeats."""
        for factor in self.resolve(expr):
            if isinstance(factor, Sum):
                for part in factor.parts:
                    yield from self.leaves(part)
            else:
                yield factor

    def freeze(self, expr: Expr, reason: str) -> None:
        """Never slice any atom of ``expr``; the first reason given is kept."""
        for atom in self.leaves(expr):
            self._frozen.setdefault(atom, reason)

    def frozen(self, atom: int) -> str | None:
        """Why the atom must stay whole, or ``None``."""
        return self._frozen.get(atom)

    def is_frozen(self, expr: Expr) -> bool:
        """Whether no atom of the expression can ever be sliced."""
        return all(atom in self._frozen for atom in self.leaves(expr))

    def unify(self, left: Expr, right: Expr, where: str) -> None:
        """Make two axes equal; where that is impossible, freeze both and name ``where``."""
        try:
            self._unify(left, right)
        except Mismatch:
            known = (self._frozen.get(atom) for expr in (left, right) for atom in self.leaves(expr))
            layout = f"its channels are laid out differently on the two sides of {where}"
            reason = next((r for r in known if r), layout)
            self.freeze(left, reason)
            self.freeze(right, reason)

    def _unify(self, left: Expr, right: Expr) -> None:
        a, b = self.resolve(left), self.resolve(right)
        while a and b:
            if a[0] != b[0]:
                a, b = self._align(a, b)
                self._merge(a[0], b[0])
            a, b = self.resolve(a[1:]), self.resolve(b[1:])
        if a or b:
            raise Mismatch

    def _align(self, a: Expr, b: Expr) -> tuple[Expr, Expr]:
        """Split the larger leading factor so that both sides begin with factors of one size."""
        sa, sb = self._factor_size(a[0]), self._factor_size(b[0])
        if sa == sb and (sa is not None or len(a) == len(b) == 1):
            return a, b
        if sa is None or sb is None:
            raise Mismatch
        if sa > sb:
            return self.split_product(a, sb), b
        return a, self.split_product(b, sa)

    def split_product(self, expr: Expr, outer: int) -> Expr:
        """The resolved expression with its first factor split into ``outer`` times the rest.

        Raises:
            Mismatch: the first factor is a sum, or ``outer`` does not divide it.
        """
        first = expr[0]
        size = self._factor_size(first)
        if isinstance(first, Sum) or size is None or size % outer:
            raise Mismatch
        self._bind(first, self.new(outer) + self.new(size // outer))
        return self.resolve(expr)

    def split_inner(self, expr: Expr, inner: int) -> Expr:
        """As ``split_product``, for the last factor: something times ``inner``."""
        last = expr[-1]
        size = self._factor_size(last)
        if isinstance(last, Sum) or size is None or size % inner:
            raise Mismatch
        self._bind(last, self.new(size // inner) + self.new(inner))
        return self.resolve(expr)

    def _merge(self, f: Factor, g: Factor) -> None:
        if isinstance(f, Sum) and isinstance(g, Sum):
            self._merge_sums(f, g)
        elif isinstance(f, Sum):
            self._merge(g, f)
        else:
            if isinstance(g, Sum) and f in self.leaves((g,)):
                raise Mismatch
            self._bind(f, (g,))

    def _merge_sums(self, f: Sum, g: Sum) -> None:
        left, right = list(f.parts), list(g.parts)
        while left and right:
            sa, sb = self.size(left[0]), self.size(right[0])
            if sa is None or sb is None:
                raise Mismatch
            if sa > sb:
                left[0:1] = self.cut(left[0], sb)
            elif sb > sa:
                right[0:1] = self.cut(right[0], sa)
            self._unify(left.pop(0), right.pop(0))
        if left or right:
            raise Mismatch

    def cut(self, expr: Expr, at: int) -> tuple[Expr, Expr]:
        """The axis as two expressions, its first ``at`` elements and the others; atoms are split where needed.

        Raises:
            Mismatch: the cut does not fall between whole outer indices.
        """
        solved = self.resolve(expr)
        if not solved:
            raise Mismatch
        inner = self.size(solved[1:])
        if inner is None or at % inner:
            raise Mismatch
        head, tail = self._cut_factor(solved[0], at // inner)
        return (head + solved[1:], tail + solved[1:])

    def _cut_factor(self, factor: Factor, at: int) -> tuple[Expr, Expr]:
        if not isinstance(factor, Sum):
            size = self._sizes[factor]
            if size is None or not 0 < at < size:
                raise Mismatch
            head, tail = self.new(at), self.new(size - at)
            self._bind(factor, (Sum((head, tail)),))
            return head, tail
        before: list[Expr] = []
        parts = list(factor.parts)
        while parts:
            size = self.size(parts[0])
            if size is None:
                raise Mismatch
            if at == 0:
                break
            if at < size:
                parts[0:1] = self.cut(parts[0], at)
                continue
            before.append(parts.pop(0))
            at -= size
        return (Sum(tuple(before)),), (Sum(tuple(parts)),)

    def _bind(self, atom: int, expr: Expr) -> None:
        self._bound[atom] = expr
        reason = self._frozen.pop(atom, None)
        if reason is not None:
            self.freeze(expr, reason)

    def indices(self, expr: Expr, kept: Mapping[int, Indices]) -> Indices:
        """Which positions of the axis remain.

        Args:
            expr: the axis; its size must be known.
            kept: atom → ascending indices that stay; an atom that is not listed stays whole.

        Returns:
            int64 [k], ascending within each atom, positions of the original axis.
        """
        positions = np.zeros(1, np.int64)
        for factor in self.resolve(expr):
            size = self._factor_size(factor)
            if size is None:
                raise ValueError("the axis has no fixed size")
            inner = self._factor_indices(factor, size, kept)
            positions = (positions[:, None] * size + inner[None, :]).reshape(-1)
        return positions

    def _factor_indices(self, factor: Factor, size: int, kept: Mapping[int, Indices]) -> Indices:
        if not isinstance(factor, Sum):
            return kept.get(factor, np.arange(size, dtype=np.int64))
        offset, found = 0, []
        for part in factor.parts:
            found.append(self.indices(part, kept) + offset)
            offset += self.size(part) or 0
        return np.concatenate(found)

    def labels(self, expr: Expr, atom: int) -> Indices:
        """For each position of the axis, the atom's index there, or -1 where the atom plays no part: int64 [size]."""
        labels = np.full(1, -1, np.int64)
        for factor in self.resolve(expr):
            inner = self._factor_labels(factor, atom)
            labels = np.maximum(labels[:, None], inner[None, :]).reshape(-1)
        return labels

    def _factor_labels(self, factor: Factor, atom: int) -> Indices:
        if isinstance(factor, Sum):
            return np.concatenate([self.labels(part, atom) for part in factor.parts])
        size = self._sizes[factor] or 0
        return np.arange(size, dtype=np.int64) if factor == atom else np.full(size, -1, np.int64)

    def atom_size(self, atom: int) -> int:
        """Number of indices of an unbound atom of known size."""
        size = self._sizes[atom]
        if size is None:
            raise ValueError("the atom has no fixed size")
        return size
