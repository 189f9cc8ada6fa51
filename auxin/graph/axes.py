"""The algebra of axes: what one dimension of a tensor is made of.

An axis is a concatenation of terms, a term is a product of factors (outer to inner, row-major, as ``reshape`` lays them
out), and a factor is an atom or a nested concatenation:

    flatten of (C, H, W)            (C·H·W)
    concat of two branches          (A) ++ (B)
    fused query, key, value         (3·heads·head_dim), or (H·D) ++ (K·D) ++ (K·D) when they are split unevenly
    channel shuffle                 (g·m) before, (m·g) after

Every axis starts as one opaque atom. Operators say that two axes are the same (``unify``), that one is cut at an offset
(``cut``) or has an inner factor of some size (``factor_inner``); atoms are then bound to finer expressions. What
is left unbound at the end is indivisible: its units are added or left alone as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Union

import torch
from torch import Tensor


class MismatchError(Exception):
    """Two axes cannot be made of the same atoms."""


class Atom:
    """An indivisible run of an axis.

    Attributes:
        bound: The expression it turned out to be, or None.
        frozen: Why it may never grow, or None.
        inexact: Why growing it changes the function, or None.
    """

    __slots__ = ("_size", "bound", "frozen", "inexact")

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self._size = size
        self.bound: Axis | None = None
        self.frozen = frozen
        self.inexact: str | None = None

    @property
    def size(self) -> int:
        """Number of units; of what it is bound to, if it is."""
        return self._size if self.bound is None else self.bound.size

    @size.setter
    def size(self, value: int) -> None:
        assert self.bound is None, "a bound atom has no size of its own"
        self._size = value

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.frozen else ''}"


Factor = Union[Atom, "Axis"]
Term = tuple[Factor, ...]


@dataclass(frozen=True)
class Axis:
    """A concatenation of products of factors; atoms compare by identity."""

    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Number of indices along the axis."""
        return sum(prod(factor.size for factor in term) for term in self.terms)

    def atoms(self) -> Iterator[Atom]:
        """Yield every atom of the resolved axis, repeats included."""
        for term in resolve(self).terms:
            for factor in term:
                if isinstance(factor, Atom):
                    yield factor
                else:
                    yield from factor.atoms()

    def __repr__(self) -> str:
        return " ++ ".join("·".join(f"({f})" if isinstance(f, Axis) else repr(f) for f in term) for term in self.terms)


def atom(size: int, frozen: str | None = None) -> Axis:
    """Return an axis made of one new atom."""
    return Axis(((Atom(size, frozen),),))


def product(*axes: Axis) -> Axis:
    """Return the axis that indexes ``axes`` jointly, the first one outermost."""
    factors: list[Factor] = []
    for axis in axes:
        if len(axis.terms) == 1:
            factors.extend(axis.terms[0])
        else:
            factors.append(axis)
    return _normal((tuple(factors),))


def concat(*axes: Axis) -> Axis:
    """Return the axis that holds ``axes`` one after the other."""
    return Axis(tuple(term for axis in axes for term in axis.terms))


def resolve(axis: Axis) -> Axis:
    """Replace bound atoms by what they are bound to, all the way down."""
    terms: list[Term] = []
    changed = False
    for term in axis.terms:
        factors: list[Factor] = []
        for factor in term:
            new: Axis | Atom = factor
            if isinstance(factor, Axis):
                new = resolve(factor)
            elif factor.bound is not None:
                factor.bound = new = resolve(factor.bound)
            changed |= new is not factor
            if isinstance(new, Axis) and len(new.terms) == 1:
                factors.extend(new.terms[0])
            else:
                factors.append(new)
        terms.append(tuple(factors))
    return _normal(tuple(terms)) if changed or len(axis.terms) > 1 or len(axis.terms[0]) > 1 else axis


def _normal(terms: tuple[Term, ...]) -> Axis:
    """Drop frozen factors of size one and flatten a concatenation that is alone in its term."""
    result: list[Term] = []
    for term in terms:
        kept = tuple(f for f in term if not (isinstance(f, Atom) and f.size == 1 and f.frozen)) or term[:1]
        if len(kept) == 1 and isinstance(kept[0], Axis):
            result.extend(kept[0].terms)
        else:
            result.append(kept)
    return Axis(tuple(result))


def freeze(axis: Axis, why: str) -> None:
    """Forbid any growth of the axis; the first reason given is kept."""
    for leaf in axis.atoms():
        leaf.frozen = leaf.frozen or why


def mark_inexact(axis: Axis, why: str) -> None:
    """Record that growing the axis changes the function; the first reason given is kept."""
    for leaf in axis.atoms():
        leaf.inexact = leaf.inexact or why


def is_frozen(axis: Axis) -> bool:
    """Return whether no atom of the axis may grow."""
    return all(leaf.frozen for leaf in axis.atoms())


def unify(a: Axis, b: Axis) -> None:
    """State that two axes hold the same units in the same order.

    Args:
        a: One axis.
        b: The other; the same size.

    Raises:
        MismatchError: If no refinement of their atoms makes them equal.
    """
    a, b = resolve(a), resolve(b)
    if a == b:
        return
    if a.size != b.size:
        raise MismatchError(f"sizes {a.size} and {b.size}")
    lone_a, lone_b = _lone(a), _lone(b)
    if lone_a is not None:
        _bind(lone_a, b)
    elif lone_b is not None:
        _bind(lone_b, a)
    elif len(a.terms) == len(b.terms) == 1:
        _unify_products(a, b)
    else:
        _unify_concats(a, b)


def _lone(axis: Axis) -> Atom | None:
    """Return the atom that is the whole axis, or None."""
    if len(axis.terms) == 1 and len(axis.terms[0]) == 1 and isinstance(axis.terms[0][0], Atom):
        return axis.terms[0][0]
    return None


def _bind(leaf: Atom, axis: Axis) -> None:
    """Bind an atom to an expression, which takes over what is known of the atom."""
    others = [other for other in axis.atoms() if other is not leaf]
    if len(others) < sum(1 for _ in axis.atoms()):
        # The atom is part of its own expression: only factors of size one can make that true.
        if any(other.size != 1 for other in others):
            raise MismatchError("an axis that contains itself")
        for other in others:
            other.frozen = other.frozen or "an inserted axis of size one"
        return
    if leaf.frozen:
        freeze(axis, leaf.frozen)
    if leaf.inexact:
        mark_inexact(axis, leaf.inexact)
    leaf.bound = axis


def _unify_products(a: Axis, b: Axis) -> None:
    """Align two products from their innermost factors outwards."""
    while True:
        a, b = resolve(a), resolve(b)
        if len(a.terms) > 1 or len(b.terms) > 1:
            return unify(a, b)
        left, right = list(a.terms[0]), list(b.terms[0])
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            unify(_axis(x), _axis(y))
        elif x.size == 1 or y.size == 1:
            # A factor of size one without a counterpart: harmless while it stays one.
            one, other = (x, right) if x.size == 1 else (y, left)
            freeze(_axis(one), "an inserted axis of size one")
            other.append(y if x.size == 1 else x)
        else:
            small, big = (x, y) if x.size < y.size else (y, x)
            outer, inner = factor_inner(_axis(big), small.size)
            unify(inner, _axis(small))
            (right if big is y else left).append(outer)
        if not left and not right:
            return None
        for rest in (left, right):
            if not rest:
                rest.append(Atom(1, "an inserted axis of size one"))
        a, b = product(*map(_axis, left)), product(*map(_axis, right))


def _unify_concats(a: Axis, b: Axis) -> None:
    """Align two concatenations from their first terms on, cutting the longer one."""
    left, right = list(a.terms), list(b.terms)
    while left and right:
        x, y = resolve(Axis((left.pop(0),))), resolve(Axis((right.pop(0),)))
        if x.size < y.size:
            y, rest = cut(y, x.size)
            right[:0] = rest.terms
        elif x.size > y.size:
            x, rest = cut(x, y.size)
            left[:0] = rest.terms
        unify(x, y)


def _axis(factor: Factor) -> Axis:
    return factor if isinstance(factor, Axis) else Axis(((factor,),))


def factor_inner(axis: Axis, size: int) -> tuple[Axis, Axis]:
    """Write an axis as outer·inner with an inner factor of the given size.

    Args:
        axis: The axis; atoms are split where needed.
        size: Number of indices of the inner factor.

    Returns:
        The outer and the inner axis.

    Raises:
        MismatchError: If the axis is no such product.
    """
    axis = resolve(axis)
    if len(axis.terms) > 1:
        parts = [factor_inner(Axis((term,)), size) for term in axis.terms]
        for _, inner in parts[1:]:
            unify(parts[0][1], inner)
        return concat(*(outer for outer, _ in parts)), resolve(parts[0][1])
    outer_factors, inner_factors = list(axis.terms[0]), list[Axis]()
    while size > 1:
        if not outer_factors:
            raise MismatchError("an inner factor larger than the axis")
        factor = outer_factors.pop()
        if size % factor.size == 0:
            inner_factors.insert(0, _axis(factor))
            size //= factor.size
            continue
        if factor.size % size:
            raise MismatchError(f"a factor of {size} in {factor.size}")
        if isinstance(factor, Axis):
            rest, inner = factor_inner(factor, size)
        else:
            rest, inner = atom(factor.size // size), atom(size)
            _bind(factor, product(rest, inner))
        inner_factors.insert(0, inner)
        outer_factors.append(rest)
        size = 1
    one = Atom(1, "an inserted axis of size one")
    return product(*map(_axis, outer_factors or [one])), product(*(inner_factors or [_axis(one)]))


def cut(axis: Axis, offset: int) -> tuple[Axis, Axis]:
    """Cut an axis in two at an offset.

    Args:
        axis: The axis; atoms are split where needed.
        offset: Number of indices of the first part, 0 < offset < size.

    Returns:
        The two parts.
    """
    axis = resolve(axis)
    left: list[Term] = []
    right = list(axis.terms)
    while offset > 0:
        term = right.pop(0)
        size = prod(f.size for f in term)
        if size <= offset:
            left.append(term)
            offset -= size
            continue
        first, rest = term[0], term[1:]
        inner = prod(f.size for f in rest)
        if offset % inner:
            # The cut falls inside the inner factors: the outer one is a fixed number of repetitions of them.
            freeze(_axis(first), "cut inside its inner factors")
            right[:0] = [rest] * first.size
            continue
        if isinstance(first, Axis):
            head, tail = cut(first, offset // inner)
        else:
            head, tail = atom(offset // inner), atom(first.size - offset // inner)
            if rest:
                for part in (head, tail):
                    if part.size == 1:
                        freeze(part, "cut at a fixed offset")
            _bind(first, concat(head, tail))
        inner_axes = [_axis(f) for f in rest]
        left.extend(product(head, *inner_axes).terms)
        right[:0] = product(tail, *inner_axes).terms
        offset = 0
    return Axis(tuple(left)), Axis(tuple(right))


def size_with(axis: Axis, sizes: Mapping[Atom, int]) -> int:
    """Return the size the axis would have if some atoms had other sizes."""
    return sum(
        prod(sizes.get(f, f.size) if isinstance(f, Atom) else size_with(f, sizes) for f in term)
        for term in resolve(axis).terms
    )


def gather_index(axis: Axis, sources: Mapping[Atom, Tensor]) -> Tensor:
    """Return, for each index of the resized axis, the index it comes from, or -1.

    Args:
        axis: The axis at its old size.
        sources: For each atom that changes, the old unit of each new unit, or -1 for none; shape (new size,).

    Returns:
        int64 tensor of shape (new size of the axis,).
    """

    def of_factor(factor: Factor) -> Tensor:
        if isinstance(factor, Axis):
            return gather_index(factor, sources)
        return sources[factor] if factor in sources else torch.arange(factor.size)

    parts, offset = [], 0
    for term in resolve(axis).terms:
        index = torch.zeros(1, dtype=torch.int64)
        for factor in term:
            inner = of_factor(factor)
            missing = (index[:, None] < 0) | (inner[None, :] < 0)
            index = torch.where(missing, -1, index[:, None] * factor.size + inner[None, :]).reshape(-1)
        parts.append(torch.where(index < 0, -1, index + offset))
        offset += prod(f.size for f in term)
    return torch.cat(parts)


def spread(axis: Axis, values: Mapping[Atom, Tensor], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Spread values per unit over the whole (resized) axis.

    Args:
        axis: The axis.
        values: For some atoms, one value for each unit of the resized atom.
        combine: How the values of two factors of one index are combined, for example ``torch.mul``.

    Returns:
        Tensor of shape (size of the axis,), 1 where no atom of ``values`` takes part.
    """
    parts = []
    for term in resolve(axis).terms:
        result = torch.ones(1, dtype=torch.float64)
        for factor in term:
            if isinstance(factor, Axis):
                inner = spread(factor, values, combine)
            else:
                inner = values.get(factor, torch.ones(factor.size)).to(torch.float64)
            result = combine(result[:, None], inner[None, :]).reshape(-1)
        parts.append(result)
    return torch.cat(parts)
