"""New neurons with uncorrelated activations, against dense covariances in float64, and the measure of it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import auxin
from auxin.budgets import Allocated
from auxin.errors import ConfigError
from auxin.methods.orthogonal import Orthogonal
from auxin.methods.random import Random
from auxin.similarity import activation_similarity
from tests.cases import CASES, call, double, randomise
from tests.methods.losses import generic_loss
from tests.methods.test_battery import many

SOME = ("residual", "depthwise", "grouped", "unet", "conv1d", "conv3d", "mixer", "tied", "lstm", "hf_gpt2", "hf_resnet")
ACTIVATION = Orthogonal(criterion="activation")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3, stride=2, padding=2, dilation=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 9, 7), nn.ReLU(), nn.Linear(7, 3),
    ).double()  # fmt: skip


IMAGES = normal(24, 2, 6, 6)
BATCHES = [(x, None) for x in IMAGES.split(8)]


def inputs_of(model, index):
    """The inputs of a layer as rows, laid out the plain way."""
    x = model[:index](IMAGES).detach()
    layer = model[index]
    if isinstance(layer, nn.Linear):
        return x
    patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def drawn(model, method, group, by, seed=1):
    graph = auxin.trace(model, IMAGES[:2].to(model[0].weight))
    generator = torch.Generator().manual_seed(seed)
    plan = method.propose(model, graph, Allocated({group: by}), generator=generator, batches=BATCHES)
    return plan.operations[0].values[f"{group}.weight:0"].flatten(1)


@pytest.mark.parametrize(("group", "by"), [("0", 3), ("2", 4), ("5", 5)])
def test_new_activations_are_uncorrelated_by_the_dense_covariance(group, by):
    model = convolutional()
    covariance = torch.cov(inputs_of(model, int(group)).T, correction=0)
    old = model[int(group)].weight.detach().flatten(1)
    new, draw = drawn(model, ACTIVATION, group, by), drawn(model, Random(), group, by)
    correlation = torch.corrcoef(torch.cat([old, new]) @ inputs_of(model, int(group)).T).abs()
    assert (correlation - torch.eye(len(correlation)))[len(old) :].abs().max() < 1e-9
    # The first is what is left of its draw once the old neurons' activations have explained what they can.
    explained = torch.linalg.solve(old @ covariance @ old.T, old @ covariance @ draw[0]) @ old
    assert abs(functional.cosine_similarity(new[0], draw[0] - explained, dim=0)) == pytest.approx(1, abs=1e-10)
    assert torch.allclose(new.norm(dim=1), draw.norm(dim=1))


def test_without_room_the_least_similar_directions_are_taken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    graph = auxin.trace(model, normal(2, 6))
    hidden = model[:2](normal(64, 6)).detach()

    def mean_of_new(method, seed):
        generator = torch.Generator().manual_seed(seed)
        batches = [(normal(64, 6), None)]
        plan = method.propose(model, graph, Allocated({"2": 4}), generator=generator, batches=batches)
        rows = torch.cat([model[2].weight.detach(), plan.operations[0].values["2.weight:0"]])
        correlation = torch.corrcoef(rows @ hidden.T).abs() - torch.eye(13)
        return float(correlation[9:].sum())

    for seed in range(4):
        assert mean_of_new(ACTIVATION, seed) < 0.95 * mean_of_new(Random(), seed)


def test_a_row_that_a_relu_would_never_let_through_is_turned_round():
    """Inputs that vary little around a mean: once the varying part has no say, the sign of the mean decides."""
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double(), 5 + 0.1 * normal(64, 6)
    graph = auxin.trace(model, x)
    auxin.widen(model, "0", 2, graph=graph, method=ACTIVATION, seed=2, loader=[(x, None)])
    assert bool((x @ model[0].weight[4:].T > 0).any(0).all())
    random = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).double() @ x.T
    assert not bool((random > 0).any(1).all())  # as drawn, some are dead


def test_a_layer_whose_inputs_never_vary_is_compared_by_weight():
    model = convolutional()
    graph = auxin.trace(model, IMAGES[:2])
    silent = [(torch.zeros_like(IMAGES), None)]
    generator = torch.Generator().manual_seed(1)
    plan = ACTIVATION.propose(model, graph, Allocated({"0": 3}), generator=generator, batches=silent)
    cosines = auxin.similarity.cosine_map(
        torch.cat([model[0].weight.detach(), plan.operations[0].values["0.weight:0"]])
    )
    assert (cosines - torch.eye(8))[5:].abs().max() < 1e-10


def grown(name, method):
    model, inputs = randomise(CASES[name].build()).double(), double(CASES[name].inputs())
    graph = auxin.trace(model, inputs)
    groups = {g.name: 2 for g in graph.growable() if not (CASES[name].hard_coded and g.name == "conv")}
    batches, before = [(many(inputs), None)], call(model, inputs)
    generator = torch.Generator().manual_seed(1)
    plan = method.propose(model, graph, Allocated(groups), generator=generator, batches=batches, loss_fn=generic_loss)
    event = auxin.surgery.apply(plan, model, graph)
    found = activation_similarity(model, [many(inputs)], graph=graph, event=event)
    for now, then in zip(call(model, inputs), before, strict=True):
        assert (now - then).abs().max() <= CASES[name].tolerance * max(1, then.abs().max())
    return model, graph, inputs, found, event, groups


@pytest.mark.parametrize("name", [name for name in SOME if name in CASES])
def test_every_net_of_the_zoo_keeps_its_function_and_gets_live_neurons_less_alike_than_random_ones(name):
    model, graph, inputs, mine, event, groups = grown(name, ACTIVATION)
    theirs = grown(name, Random())[3]
    assert mine.keys() == theirs.keys()
    if mine and not any("by weight" in note for note in event.notes):
        assert sum(mine.values()) <= sum(theirs.values())
    generic_loss(call(model, many(inputs))).backward()
    parameters = dict(model.named_parameters())
    for group in groups:
        for unit in range(graph[group].size - 2, graph[group].size):
            gradients = [
                parameters[s.parameter].grad.index_select(s.dim, torch.tensor(graph.positions(group, s, unit)))
                for s in graph[group].slots
                if s.parameter in parameters and parameters[s.parameter].grad is not None
            ]
            assert max(float(g.abs().max()) for g in gradients) > 0, f"unit {unit} of {group}"


def test_a_layer_that_is_not_called_as_a_module_is_compared_by_weight_and_the_event_says_so():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(functional.linear(x, self.first.weight, self.first.bias).tanh())

    torch.manual_seed(0)
    model, x = Functional().double(), normal(16, 6)
    graph = auxin.trace(model, x)
    event = auxin.widen(model, "first", 2, graph=graph, method=ACTIVATION, loader=[(x, None)])
    assert event.notes == ("first shows no inputs, so its new neurons were compared by weight",)
    cosines = auxin.similarity.cosine_map(model.first.weight.detach())
    assert (cosines - torch.eye(6))[4:].abs().max() < 1e-10
    assert "first" not in activation_similarity(model, [x])


def test_proposing_leaves_the_model_and_the_random_state_alone_and_repeats_itself():
    model = convolutional().train()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one, two = (drawn(model, ACTIVATION, "2", 3) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, drawn(model, ACTIVATION, "2", 3, seed=2))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_a_low_precision_model_and_autocast_are_measured_in_float32():
    model = convolutional().float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = drawn(model, ACTIVATION, "2", 3)
    assert torch.equal(inside, drawn(model, ACTIVATION, "2", 3))
    half = model.to(torch.bfloat16)
    new = drawn(half, ACTIVATION, "2", 3)
    assert new.dtype == torch.bfloat16 and half[0].weight.dtype == torch.bfloat16
    rows = torch.cat([half[2].weight.detach().flatten(1), new]).double()
    correlation = torch.corrcoef(rows @ inputs_of(copy.deepcopy(half).double(), 2).T) - torch.eye(9)
    assert correlation[6:].abs().max() < 0.05


def test_activation_similarity_is_the_mean_of_all_correlations():
    model = convolutional()
    model[2].weight.data[1] = 0  # no activation, no correlation
    found = activation_similarity(model, IMAGES.split(8))
    for index in (0, 2, 5):
        alive = model[index].weight.detach().flatten(1)
        alive = alive[alive.abs().sum(1) > 0]
        correlation = torch.corrcoef(alive @ inputs_of(model, index).T).abs()
        n = len(alive)
        assert found[str(index)] == pytest.approx(float(correlation.sum() - n) / (n * (n - 1)), rel=1e-9)
    assert list(activation_similarity(model, [IMAGES], layers=("2",))) == ["2"]


def test_it_works_without_data_only_in_words():
    model = convolutional()
    graph = auxin.trace(model, IMAGES[:2])
    with pytest.raises(ConfigError, match="pass batches"):
        auxin.widen(model, "2", 2, graph=graph, method=ACTIVATION)
    with pytest.raises(ConfigError, match="not empty"):
        activation_similarity(model, [])
    with pytest.raises(ConfigError, match="weight or activation"):
        Orthogonal(criterion="angle")
    with pytest.raises(ConfigError, match="1 batch"):
        Orthogonal(num_batches=0)
    event = auxin.widen(model, "2", 2, graph=graph)
    with pytest.raises(ConfigError, match="graph="):
        activation_similarity(model, [IMAGES], event=event)
