"""The graph against brute force: ``brute_force.py`` finds by trial what belongs together; the graph must say the same.

Both directions are compared. What the graph calls a group must be made of the smallest sets of exchanges that leave the
function as it is, all of them needed; and what trial finds must be in a group that can grow, or be refused with a
reason.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import pytest
import torch

import auxin
import auxin.errors
from auxin.graph import Graph
from auxin.types import WidthGroup
from tests.cases import CASES, SKIPPED, Case, randomise
from tests.graph.brute_force import BruteForce, Exchange

Axis = tuple[str, int]


@functools.cache
def setting(name: str) -> tuple[Case, BruteForce, Graph]:
    """Build, randomise and trace a case once for all tests of this file."""
    case = CASES[name]
    torch.manual_seed(0)
    net = BruteForce(randomise(case.build(), seed=3), case.inputs(), case.tolerance)
    return case, net, auxin.trace(net.model, net.inputs)


def discovered(name: str, n: int) -> Iterator[tuple[frozenset[Exchange], ...]]:
    """For each way that ``n`` units may lie along the axes, the minimal sets of exchanges that trial finds."""
    return (found(name, n, number) for number in range(len(searches(name, n))))


@functools.cache
def searches(name: str, n: int) -> list[list[Exchange]]:
    return setting(name)[1].searches(n)


@functools.cache
def found(name: str, n: int, number: int) -> tuple[frozenset[Exchange], ...]:
    return tuple(setting(name)[1].discover(searches(name, n)[number]))


def claim(net: BruteForce, graph: Graph, group: WidthGroup, u: int, v: int) -> set[Exchange]:
    """The exchange of two units of a group, by the graph's slots and positions."""
    exchanges = set()
    for slot in group.slots:
        first, second = (graph.positions(group.name, slot, unit) for unit in (u, v))
        assert len(first) == len(second) > 0, f"{slot} holds no positions of a unit of {group.name}"
        name = net.canonical[slot.parameter]
        exchanges |= {Exchange(name, slot.dim, min(i, j), max(i, j)) for i, j in zip(first, second, strict=True)}
    return exchanges


def open_groups(graph: Graph) -> list[WidthGroup]:
    """Groups that the graph says can grow, exactly or not."""
    return [group for group in graph.groups if group.frozen is None]


def joined(components: list[frozenset[Exchange]]) -> list[frozenset[Exchange]]:
    """Merge sets that lie on a common axis: one axis has one size, so they are resized together."""
    merged: list[frozenset[Exchange]] = []
    for component in components:
        axes = {e.axis for e in component}
        touching = [other for other in merged if axes & {e.axis for e in other}]
        merged = [other for other in merged if other not in touching] + [component.union(*touching)]
    return merged if len(merged) == len(components) else joined(merged)


def text(exchanges: set[Exchange] | frozenset[Exchange]) -> str:
    return ", ".join(f"{e.tensor}[{e.dim}] {e.first}<->{e.second}" for e in sorted(exchanges)) or "nothing"


everywhere = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("name", SKIPPED)
def test_case_needs_an_optional_package(name: str) -> None:
    pytest.skip(SKIPPED[name])


@everywhere
def test_exchanging_two_units_everywhere_is_a_symmetry_and_nowhere_less(name: str) -> None:
    _, net, graph = setting(name)
    for group in open_groups(graph):
        pairs = itertools.combinations(range(group.size), 2) if group.size <= 4 else _neighbours(group.size)
        for u, v in pairs:
            together = claim(net, graph, group, u, v)
            assert net.is_symmetry(together), f"{group.name}: exchanging units {u} and {v} changes the function"
        if group.size < 2:
            continue
        together = claim(net, graph, group, 0, group.size - 1)
        for axis in {e.axis for e in together}:
            part = {e for e in together if e.axis != axis}
            needed = not net.is_symmetry(together - part)
            if needed:
                assert part and not net.is_symmetry(part), f"{group.name}: {axis} is not needed"


def _neighbours(size: int) -> list[tuple[int, int]]:
    return [(k, k + 1) for k in range(size - 1)] + [(0, size - 1)]


@everywhere
def test_groups_are_what_trial_finds(name: str) -> None:
    case, net, graph = setting(name)
    for group in open_groups(graph):
        if group.size < 2:
            continue
        expected = {e for e in claim(net, graph, group, 0, group.size - 1) if not net.is_inert(e)}
        nearest: set[Exchange] = set()
        for components in discovered(name, group.size):
            touching = [c for c in components if c & expected]
            if frozenset().union(*touching) == expected:
                break
            nearest = max(nearest, set().union(*touching), key=lambda near: len(near & expected))
        else:
            pytest.fail(
                f"{group.name}: the graph has, trial has not: {text(expected - nearest)}; "
                f"trial has, the graph has not: {text(nearest - expected)}"
            )
        pieces = joined(touching)
        tied = {e.axis for e in expected} & set(case.shape_tied)
        assert len(pieces) == 1 or tied, f"{group.name} joins what is unrelated: " + " | ".join(map(text, pieces))


@everywhere
def test_what_trial_finds_can_grow_or_is_refused_with_a_reason(name: str) -> None:
    case, net, graph = setting(name)
    claims = []
    for group in open_groups(graph):
        pairs = itertools.combinations(range(group.size), 2)
        claims += [frozenset(claim(net, graph, group, u, v)) for u, v in pairs]
    for n in case.atoms:
        for components in discovered(name, n):
            for component in components:
                if any(component <= known for known in claims):
                    continue
                for e in component:
                    covering = _covering(net, graph, e)
                    assert covering, f"{e.tensor}[{e.dim}] is in no group"
                    # On a product (heads times head size) it is enough that one factor is refused.
                    assert any(not g.growable for g in covering), (
                        f"n={n}: trial exchanges {text(component)}; the graph has {[g.name for g in covering]} there, "
                        "which can grow, but not so"
                    )


def _covering(net: BruteForce, graph: Graph, e: Exchange) -> list[WidthGroup]:
    """Groups one of whose slots holds the first entry of an exchange."""
    return [
        group
        for group in graph.groups
        for slot in group.slots
        if net.canonical.get(slot.parameter) == e.tensor
        and slot.dim == e.dim
        and any(e.first in graph.positions(group.name, slot, unit) for unit in range(group.size))
    ]


@everywhere
def test_every_entry_of_every_axis_is_in_a_group_and_refusals_have_reasons(name: str) -> None:
    _, net, graph = setting(name)
    covered: dict[Axis, set[int]] = {}
    for group in graph.groups:
        assert group.frozen is None or len(group.frozen) > 10, f"{group.name} is frozen without a reason"
        assert group.inexact is None or len(group.inexact) > 10, f"{group.name} is inexact without a reason"
        for slot in group.slots:
            entries = covered.setdefault((net.canonical.get(slot.parameter, slot.parameter), slot.dim), set())
            for unit in range(group.size):
                entries.update(graph.positions(group.name, slot, unit))
    for tensor_name, tensor in net.tensors.items():
        for dim, size in enumerate(tensor.shape):
            assert covered.get((tensor_name, dim)) == set(range(size)), f"{tensor_name}[{dim}] is not covered"


@everywhere
def test_expected_axes_can_grow_and_expected_axes_cannot(name: str) -> None:
    case, net, graph = setting(name)
    growing = {(net.canonical[s.parameter], s.dim) for group in graph.growable() for s in group.slots}
    assert {(net.canonical[p], d) for p, d in case.growable} <= growing
    assert not {(net.canonical[p], d) for p, d in case.frozen} & growing


@everywhere
def test_deleting_what_random_added_gives_the_model_back_bit_for_bit(name: str) -> None:
    case = CASES[name]
    graph = auxin.trace(randomise(case.build(), seed=3), case.inputs())
    for group in graph.growable():
        torch.manual_seed(0)
        model = randomise(case.build(), seed=3)
        before = {key: value.clone() for key, value in tensors(model).items()}
        fresh = auxin.trace(model, case.inputs())
        try:
            auxin.widen(model, group.name, 2, graph=fresh, method="random", seed=5)
        except auxin.errors.GrowthError:
            assert case.hard_coded, f"{group.name} could not grow"
            continue
        after = tensors(model)
        assert any(after[key].shape != before[key].shape for key in before)
        grown = fresh[group.name]
        assert grown.size == group.size + 2
        for slot in grown.slots:
            new = {k for unit in (group.size, group.size + 1) for k in fresh.positions(group.name, slot, unit)}
            keep = [k for k in range(after[slot.parameter].shape[slot.dim]) if k not in new]
            for alias in _aliases(model, slot.parameter):
                after[alias] = after[alias].index_select(slot.dim, torch.tensor(keep))
        for key, value in before.items():
            assert torch.equal(after[key], value), f"{group.name}: {key} is not what it was"


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, those that no state dict holds included."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def _aliases(model: torch.nn.Module, name: str) -> list[str]:
    """Every name of a parameter or buffer: tied weights have several."""
    pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensor = dict(pairs)[name]
    return [other for other, candidate in pairs if candidate is tensor]
