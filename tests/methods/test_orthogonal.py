"""Orthogonal growth against what the linear algebra says, in float64."""

import pytest
import torch
from torch import nn

import auxin
from auxin.budgets import Allocated
from auxin.errors import ConfigError
from auxin.methods import METHODS
from auxin.methods.orthogonal import Orthogonal, turned_away
from auxin.similarity import Similarity, cosine_map
from auxin.similarity.terms import mean_off_diagonal
from tests.cases import CASES, call, double, randomise

SOME = ("plain", "flatten", "residual", "grouped", "squeeze_excite", "lstm")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mu_of_new(old, new):
    """Mean |cos| over pairs with a new row."""
    among = torch.zeros(1, len(old) + len(new), dtype=torch.bool)
    among[:, len(old) :] = True
    return float(mean_off_diagonal(cosine_map(torch.cat([old, new]))[None], among))


def largest_of_new(weight, number):
    """Largest |cos| of a pair with one of the last rows."""
    cosines = cosine_map(weight).abs()
    cosines.fill_diagonal_(0)
    return float(cosines[-number:].max())


@pytest.mark.parametrize(("n", "m", "d"), [(16, 6, 27), (5, 3, 40), (1, 1, 2), (20, 7, 27), (4, 4, 8)])
def test_new_rows_are_orthogonal_to_all_others_and_keep_their_lengths(n, m, d):
    old, new = normal(n, d), normal(m, d, seed=1)
    turned = turned_away(old, new)
    assert largest_of_new(torch.cat([old, turned]), m) < 1e-12
    assert torch.allclose(turned.norm(dim=1), new.norm(dim=1), rtol=1e-12)


def test_a_row_stays_as_near_to_its_draw_as_it_can():
    """The first row is the draw's projection on the complement, sign included: to a ReLU, w and -w differ."""
    old, new = normal(4, 9), normal(1, 9, seed=1)
    q = torch.linalg.qr(old.T)[0]
    projected = new - new @ q @ q.T
    assert torch.allclose(turned_away(old, new), projected / projected.norm() * new.norm())


def test_dependent_and_empty_old_rows_take_no_room():
    old = torch.cat([normal(3, 6), normal(3, 6), torch.zeros(2, 6, dtype=torch.float64)])
    assert largest_of_new(torch.cat([old, turned_away(old, normal(3, 6, seed=1))]), 3) < 1e-12


def test_inputs_that_no_old_row_reads_are_not_all_that_new_rows_read():
    """Else they would be dead where these inputs are silent, as the new columns of a tied embedding are."""
    old, new = torch.cat([normal(6, 4), torch.zeros(6, 2, dtype=torch.float64)], 1), normal(2, 6, seed=1)
    turned = turned_away(old, new)
    assert torch.equal(turned[:, 4:], new[:, 4:])
    assert torch.allclose(turned.norm(dim=1), new.norm(dim=1), rtol=1e-12)
    assert mu_of_new(old, turned) < mu_of_new(old, new)


@pytest.mark.parametrize(("n", "m", "d"), [(24, 10, 27), (64, 22, 64), (90, 30, 40), (2, 5, 4)])
def test_beyond_the_rank_rows_are_exact_as_far_as_it_goes_and_nearer_to_nobody_after(n, m, d):
    old = normal(n, d)
    for seed in range(1, 6):
        new = normal(m, d, seed=seed)
        turned = turned_away(old, new)
        exact = max(d - n, 0)
        if exact:
            assert (cosine_map(torch.cat([old, turned]))[n : n + exact, :n].abs()).max() < 1e-12
            together = cosine_map(turned[:exact]) - torch.eye(exact, dtype=torch.float64)
            assert together.abs().max() < 1e-12
        assert mu_of_new(old, turned) < 0.95 * mu_of_new(old, new)
        assert mu_of_new(old, turned) <= mu_of_new(old, turned_away(old, new, iterations=0))
        assert torch.allclose(turned.norm(dim=1), new.norm(dim=1), rtol=1e-12)


def grown(name, method, seed=1, by=3):
    model = randomise(CASES[name].build()).double()
    inputs = double(CASES[name].inputs())
    graph = auxin.trace(model, inputs)
    before = call(model, inputs)
    budget = Allocated({group.name: by for group in graph.growable()})
    plan = METHODS[method].propose(model, graph, budget, generator=torch.Generator().manual_seed(seed))
    event = auxin.surgery.apply(plan, model, graph)
    after = call(model, inputs)
    record = Similarity(iterations=0).refine(model, graph=graph, event=event)
    new = [layer.new_before for layer in record.layers if layer.new_before is not None]
    return model, event, sum(new) / max(len(new), 1), zip(before, after, strict=True)


@pytest.mark.parametrize("name", [name for name in SOME if name in CASES])
def test_on_the_zoo_the_function_stays_and_new_neurons_are_farther_than_random_ones(name):
    mine, theirs = 0.0, 0.0
    for seed in (1, 2):
        _, _, mu, outputs = grown(name, "orthogonal", seed)
        for then, now in outputs:
            assert (now - then).abs().max() <= CASES[name].tolerance * max(1, then.abs().max())
        mine, theirs = mine + mu, theirs + grown(name, "random", seed)[2]
    assert mine <= theirs


def test_layers_that_grow_together_stay_orthogonal():
    """New rows read the new columns of the layer below with zero weight, so cosines are those of the plan."""
    model, _, mu, _ = grown("plain", "orthogonal")
    assert mu < 1e-12
    assert largest_of_new(model.trunk[4].weight.detach(), 3) < 1e-12


def test_filters_of_a_grouped_convolution_are_compared_within_their_group():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2), nn.Flatten())
    model = model.append(nn.Linear(4, 2)).double()
    graph = auxin.trace(model, normal(2, 6, 3, 3))
    auxin.widen(model, "0[1]", 3, graph=graph, method="orthogonal")
    for half in model[0].weight.detach().chunk(2):
        assert len(half) == 7
        assert largest_of_new(half, 3) < 1e-12


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (grown("residual", "orthogonal", seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


def test_a_group_without_rows_to_compare_says_that_it_is_random():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).double()
    graph = auxin.trace(model, torch.tensor([[1, 2]]))
    event = auxin.widen(model, graph.growable()[0].name, 2, graph=graph, method="orthogonal")
    assert "random method" in event.notes[0]
    assert event.max_change < 1e-12


def test_lower_precision_keeps_its_type():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    auxin.widen(model, "0", 2, graph=auxin.trace(model, torch.randn(2, 8).bfloat16()), method="orthogonal")
    assert model[0].weight.dtype == torch.bfloat16
    assert largest_of_new(model[0].weight.detach(), 2) < 0.02


def test_a_group_of_one_neuron_and_a_frozen_weight_have_rows_to_compare():
    model = nn.Sequential(nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model[0].weight.requires_grad_(False)
    graph = auxin.trace(model, torch.randn(2, 8).double())
    for group in ("0", "2"):
        event = auxin.widen(model, group, 2, graph=graph, method="orthogonal")
        assert event.notes == ()
    assert largest_of_new(model[0].weight.detach(), 2) < 1e-12


def test_iterations_are_checked():
    with pytest.raises(ConfigError, match="0 iterations"):
        Orthogonal(iterations=-1)
