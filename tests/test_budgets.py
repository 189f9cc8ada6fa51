"""How much to grow: exact counts, published sizes, and caps that are never exceeded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import auxin
from auxin.budgets import Allocated, parse_cap, parse_number
from auxin.errors import ConfigError
from auxin.models import vgg16
from auxin.ranking import decide
from tests.cases import CASES, FusedAttention

IMAGE = torch.randn(2, 3, 32, 32)
GRAPH = auxin.trace(vgg16(), IMAGE)


def test_a_ratio_per_group_gives_the_published_sizes():
    sizes, size = [], 16
    for _ in range(4):
        size += auxin.ratio(0.35)._alone(GRAPH, "features.0", size)
        sizes.append(size)
    assert sizes == [22, 30, 41, 55]


def test_a_global_budget_of_neurons_is_met_exactly():
    for number in (1, 7, 73, 200):
        units = auxin.count(number, scope="global").allocate(GRAPH)
        assert sum(units.values()) == number


def test_a_global_ratio_counts_all_neurons():
    assert sum(auxin.ratio(0.35, scope="global").allocate(GRAPH).values()) == 73  # 35 % of 208


@pytest.mark.parametrize("of", ["parameters", "flops"])
@pytest.mark.parametrize("scope", ["global", "per_group"])
@pytest.mark.parametrize("fraction", [0.1, 0.35, 1.0])
def test_a_fraction_of_the_cost_is_used_up_but_not_exceeded(of, scope, fraction):
    units = auxin.ratio(fraction, of=of, scope=scope).allocate(GRAPH)
    sizes = {name: GRAPH[name].size + by for name, by in units.items()}
    measure = GRAPH.num_parameters if of == "parameters" else GRAPH.flops
    assert measure() * (1 + fraction) * 0.93 <= measure(sizes) <= measure() * (1 + fraction)


@pytest.mark.parametrize("name", ["vgg", "residual"])
def test_a_count_of_parameters_per_group_is_not_exceeded_by_any_group(name):
    """Also where a group both writes and reads a weight, which grows with the square of its units."""
    graph = GRAPH if name == "vgg" else auxin.trace(CASES[name].build(), CASES[name].inputs())
    units = auxin.count(1000, of="parameters").allocate(graph)
    assert units
    for group, by in units.items():
        added = graph.num_parameters({group: graph[group].size + by}) - graph.num_parameters()
        one_more = graph.num_parameters({group: graph[group].size + by + 1}) - graph.num_parameters()
        assert added <= 1000 < one_more


@settings(max_examples=60, deadline=None)
@given(st.integers(28_667, 400_000), st.integers(1, 40))
def test_a_cap_is_never_exceeded_and_never_wasteful(limit, by):
    cap = parse_cap(f"params<={limit}")
    wish = {group.name: by for group in GRAPH.growable()}
    units = cap.clip(GRAPH, wish)
    sizes = {name: GRAPH[name].size + n for name, n in units.items()}
    assert GRAPH.num_parameters(sizes) <= limit
    assert all(units.get(name, 0) <= n for name, n in wish.items())
    if units != wish:
        one_more = {name: GRAPH[name].size + min(units.get(name, 0) + 1, by) for name in wish}
        assert GRAPH.num_parameters(one_more) > limit


def test_a_cap_on_neurons_counts_every_group():
    units = parse_cap("neurons<=210").clip(GRAPH, {"features.0": 9})
    assert units == {"features.0": 2}


@pytest.mark.parametrize(("text", "number"), [("325k", 325_000), ("1.2M", 1.2e6), ("20_000", 20_000), ("3e5", 3e5)])
def test_numbers_with_suffixes(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["params>=3", "weights<=3k", "params<=many", ""])
def test_a_cap_that_is_not_understood_says_how_to_write_it(text):
    with pytest.raises(ConfigError, match="325k"):
        parse_cap(text)


@pytest.mark.parametrize("make", [lambda: auxin.ratio(-1), lambda: auxin.count(0), lambda: auxin.ratio(1, of="cats"),
                                  lambda: auxin.ratio(1, scope="local")])  # fmt: skip
def test_senseless_budgets_are_refused(make):
    with pytest.raises(ConfigError):
        make()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.floats(0.01, 2), st.sampled_from([2, 8, 16]))
def test_multiples_are_the_nearest_above_the_size(size, fraction, multiple):
    wanted = max(1, int(fraction * size + 0.5))
    grown = size + auxin.ratio(fraction, multiple_of=multiple)._alone(GRAPH, "features.0", size)
    assert grown % multiple == 0 and grown > size
    assert abs(grown - size - wanted) <= multiple / 2 or grown - size <= multiple
    assert auxin.ratio(fraction)._alone(GRAPH, "features.0", size) == wanted


def test_a_unit_of_several_channels_needs_fewer_for_a_multiple():
    """Three heads of four channels: the next multiple of eight channels is four heads."""
    graph = auxin.trace(FusedAttention(), torch.randn(2, 6, 5))
    heads = next(group.name for group in graph.groups if group.size == 3 and not group.frozen)
    assert graph.channels(heads) == 4
    assert auxin.count(1, groups=[heads], multiple_of=8).allocate(graph) == {heads: 1}
    assert auxin.count(2, groups=[heads], multiple_of=8).allocate(graph) == {heads: 3}


@settings(max_examples=40, deadline=None)
@given(st.integers(30_000, 400_000))
def test_a_cap_is_met_in_multiples_and_not_wasteful(limit):
    cap = parse_cap(f"params<={limit}")
    wish = auxin.ratio(2.0, multiple_of=8).allocate(GRAPH)
    units = decide(auxin.ratio(2.0, multiple_of=8), GRAPH, cap).units
    sizes = {name: GRAPH[name].size + by for name, by in units.items()}
    assert GRAPH.num_parameters(sizes) <= limit
    assert all(size % 8 == 0 for size in sizes.values())
    if units != wish:
        one_more = {name: GRAPH[name].size + min(units.get(name, 0) + 8, by) for name, by in wish.items()}
        assert GRAPH.num_parameters(one_more) > limit


@pytest.mark.parametrize("budget", [{"multiple_of": 0}, {"multiple_of": 8, "of": "flops"},
                                    {"multiple_of": 8, "scope": "global"}, {"multiple_of": 2.0}])  # fmt: skip
def test_multiples_where_they_have_no_meaning_are_refused(budget):
    with pytest.raises(ConfigError, match="multiple_of"):
        auxin.ratio(0.5, **budget)


def test_named_groups_only():
    assert auxin.count(3, groups=["features.3"]).allocate(GRAPH) == {"features.3": 3}
    assert Allocated({"features.3": 2}).allocate(GRAPH) == {"features.3": 2}
