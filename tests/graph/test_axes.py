"""The axis algebra against brute force: unify and index maps on random reshapes, cuts and concatenations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auxin.graph.axes import (
    Axis,
    MismatchError,
    atom,
    concat,
    cut,
    factor_inner,
    freeze,
    gather_index,
    product,
    resolve,
    size_with,
    spread,
    unify,
)


def lone(axis: Axis):
    return next(iter(axis.atoms()))


def test_product_splits_an_atom_into_its_factors():
    whole, a, b, c = atom(24), atom(2), atom(3), atom(4)
    unify(whole, product(a, b, c))
    assert list(whole.atoms()) == [lone(a), lone(b), lone(c)]


def test_different_factorings_meet_in_their_common_refinement():
    a, b = product(atom(6), atom(4)), product(atom(3), atom(8))
    unify(a, b)
    assert resolve(a) == resolve(b)
    assert [leaf.size for leaf in a.atoms()] == [3, 2, 4]


def test_factorings_without_a_common_refinement_are_refused():
    with pytest.raises(MismatchError):
        unify(product(atom(4), atom(3)), product(atom(3), atom(4)))


def test_concatenations_cut_each_other():
    a, b = concat(atom(5), atom(3)), concat(atom(2), atom(6))
    unify(a, b)
    assert [leaf.size for leaf in a.atoms()] == [2, 3, 3]


def test_a_cut_through_repetitions_repeats_inside_them():
    parts, unit = atom(2), atom(10)
    left, right = cut(product(parts, unit), 4)
    assert [leaf.size for leaf in left.atoms()] == [4]
    assert [leaf.size for leaf in right.atoms()] == [6, 4, 6]
    assert lone(parts).frozen


def test_cutting_fused_projections_gives_independent_parts():
    rows = atom(20)
    q, rest = cut(rows, 12)
    k, v = cut(rest, 4)
    assert [axis.size for axis in (q, k, v)] == [12, 4, 4]
    assert len(set(rows.atoms())) == 3


def test_frozen_axes_freeze_what_they_meet():
    a, b = atom(12), product(atom(3), atom(4))
    freeze(a, "it reaches the model's input")
    unify(a, b)
    assert all(leaf.frozen == "it reaches the model's input" for leaf in b.atoms())


def test_factor_inner_takes_a_common_factor_out_of_a_concatenation():
    inner = atom(4)
    axis = concat(product(atom(3), inner), atom(8))
    outer, found = factor_inner(axis, 4)
    assert found == resolve(inner)
    assert [leaf.size for leaf in outer.atoms()] == [3, 2]


@st.composite
def random_axes(draw):
    """An axis with the reference layout: for each index, which unit of which atom it holds."""
    leaves = [atom(draw(st.integers(1, 4))) for _ in range(draw(st.integers(1, 4)))]

    def build(depth):
        kind = draw(st.sampled_from(["atom", "product", "concat"])) if depth else "atom"
        if kind == "atom":
            return draw(st.sampled_from(leaves))
        parts = [build(depth - 1) for _ in range(draw(st.integers(1, 3)))]
        return product(*parts) if kind == "product" else concat(*parts)

    return build(2)


def layout(axis: Axis) -> list[tuple[tuple[int, int], ...]]:
    """Enumerate the indices of an axis as (atom id, unit) pairs, the slow way."""
    rows = []
    for term in resolve(axis).terms:
        indices = [()]
        for factor in term:
            inner = layout(factor) if isinstance(factor, Axis) else [((id(factor), u),) for u in range(factor.size)]
            indices = [left + right for left in indices for right in inner]
        rows += indices
    return rows


@settings(max_examples=150, deadline=None)
@given(random_axes(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_index_maps_equal_a_brute_force_enumeration(axis, by, random):
    grown = random.choice(list(axis.atoms()))
    old = layout(axis)
    n = grown.size
    parents = [random.randrange(-1, n) for _ in range(by)]
    index = gather_index(axis, {grown: torch.tensor([*range(n), *parents])})
    factors = spread(axis, {grown: torch.tensor([1.0] * n + [2.0] * by)}, torch.mul)
    assert size_with(axis, {grown: n + by}) == len(index) == len(factors)
    grown.size = n + by
    new = layout(axis)
    source = [*range(n), *parents]
    for position, units in enumerate(new):
        moved = [(a, source[u] if a == id(grown) else u) for a, u in units]
        fresh = any(u < 0 for _, u in moved)
        assert (index[position] < 0) == fresh
        assert fresh or old[int(index[position])] == tuple(moved)
        assert factors[position] == 2.0 ** sum(a == id(grown) and u >= n for a, u in units)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_unified_axes_stay_equal_when_any_atom_grows(left, right):
    a, b = product(*map(atom, left)), product(*map(atom, right))
    if a.size != b.size:
        return
    try:
        unify(a, b)
    except MismatchError:
        return
    assert resolve(a) == resolve(b) or {leaf.size for leaf in set(a.atoms()) ^ set(b.atoms())} <= {1}
    for leaf in set(a.atoms()):
        if not leaf.frozen:
            leaf.size += 1
            assert a.size == b.size
