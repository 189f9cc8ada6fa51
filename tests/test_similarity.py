"""The similarity objective against double loops in float64, and the refinement on the zoo."""

import copy
import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import auxin
from auxin import similarity
from auxin.errors import ConfigError
from auxin.similarity import Similarity, find_layers, refine
from auxin.training import RunConfig, load_config
from auxin.types import GrowthPlan, Widen
from tests.cases import CASES, call, double, randomise

CAN_GROW = [name for name, case in CASES.items() if case.growable and not case.hard_coded]


def build(name):
    case = CASES[name]
    if case.needs:
        pytest.importorskip(case.needs)
    return randomise(case.build()).double(), double(case.inputs())


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def looped_mean(rows):
    """Eq. 1 and 2, one pair after the other, on Python lists."""
    rows = [row for row in rows if any(row)]
    total, n = 0.0, len(rows)
    for i in range(n):
        for j in range(n):
            if i != j:
                dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
                total += abs(dot) / math.hypot(*rows[i]) / math.hypot(*rows[j])
    return total / (n * (n - 1)) if n > 1 else 0.0


def slope(function, rows, i, k, h=1e-6):
    def at(shift):
        moved = [list(row) for row in rows]
        moved[i][k] += shift
        return function(moved)

    return (at(h) - at(-h)) / (2 * h)


# -------------------------------------------------------------------------------------------------- the two terms


@pytest.mark.parametrize("shape", [(5, 7), (4, 2, 3, 3), (3, 2, 5), (6, 6, 1, 1)])
def test_mean_similarity_and_its_gradient_equal_the_double_loop(shape):
    weight = normal(*shape).requires_grad_()
    rows = weight.detach().flatten(1).tolist()
    value = similarity.mean_similarity(weight)
    assert value.item() == pytest.approx(looped_mean(rows), rel=1e-12)
    value.backward()
    gradient = weight.grad.flatten(1)
    for i in range(len(rows)):
        for k in range(len(rows[0])):
            assert gradient[i, k].item() == pytest.approx(slope(looped_mean, rows, i, k), abs=1e-8)


def test_the_cosine_map_is_that_of_every_pair():
    weight = normal(4, 2, 3, 3)
    rows = weight.flatten(1)
    for i in range(4):
        for j in range(4):
            expected = functional.cosine_similarity(rows[i], rows[j], dim=0)
            assert similarity.cosine_map(weight)[i, j].item() == pytest.approx(expected.item(), rel=1e-12)


def test_neurons_without_weights_have_no_direction_and_no_gradient():
    weight = normal(5, 4)
    weight[[1, 3]] = 0
    weight.requires_grad_()
    value = similarity.mean_similarity(weight)
    value.backward()
    assert value.item() == pytest.approx(looped_mean(weight.tolist()), rel=1e-12)
    assert bool(weight.grad.isfinite().all()) and not weight.grad[[1, 3]].any() and weight.grad[0].any()
    assert similarity.mean_similarity(torch.zeros(3, 4)) == 0
    assert similarity.mean_similarity(torch.cat([torch.zeros(3, 4), torch.ones(1, 4)])) == 0


def test_low_precision_weights_are_measured_in_float32():
    weight = normal(6, 30, dtype=torch.bfloat16).requires_grad_()
    value = similarity.mean_similarity(weight)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(looped_mean(weight.double().tolist()), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similarity.mean_similarity(weight), value)
    value.backward()
    assert weight.grad.dtype == torch.bfloat16 and weight.grad.any()


def test_random_neurons_are_as_similar_as_theory_says():
    assert similarity.mean_similarity(normal(300, 144)).item() == pytest.approx(
        math.sqrt(2 / (math.pi * 144)), rel=0.02
    )


def test_weight_change_by_the_letter_is_the_log_of_the_ratio():
    weight, previous = normal(4, 9, seed=1) + 1, normal(4, 9, seed=2) + 1
    expected = math.log(abs(sum(weight.flatten().tolist()) / sum(previous.flatten().tolist())))
    assert similarity.weight_change(weight, previous, literal=True).item() == pytest.approx(expected, rel=1e-12)
    assert similarity.weight_change(previous, weight, literal=True).item() == pytest.approx(-expected, rel=1e-12)
    sound = similarity.weight_change(weight, previous)
    assert sound.item() == pytest.approx(abs(expected), rel=0.02)  # both sums are far from zero
    assert sound.item() > 0


def test_weight_change_by_the_letter_falls_without_bound_and_the_sound_form_does_not():
    previous = normal(4, 9) + 1
    shrunk = [previous - (1 - 10.0**-k) * previous.mean() for k in range(12)]
    literal = [similarity.weight_change(w, previous, literal=True).item() for w in shrunk]
    assert all(a - b == pytest.approx(math.log(10), rel=1e-2) for a, b in itertools.pairwise(literal))
    sound = [similarity.weight_change(w, previous).item() for w in shrunk]
    assert sound[0] == 0 and sound == sorted(sound)
    assert similarity.weight_change(-previous, previous) > max(sound)  # a change of sign counts as a change


def test_the_slope_of_the_sound_form_is_bounded_where_the_literal_one_explodes():
    previous = normal(4, 9) + 1
    weight = (previous - previous.mean() + 1e-9).requires_grad_()
    (literal,) = torch.autograd.grad(similarity.weight_change(weight, previous, literal=True), weight)
    (sound,) = torch.autograd.grad(similarity.weight_change(weight, previous), weight)
    assert literal.abs().max() > 1e6
    assert sound.abs().max() * previous.abs().sum() <= 1 / (2 * similarity.terms.EPS) + 1e-9


@pytest.mark.parametrize("literal", [False, True])
def test_the_gradient_of_weight_change_equals_finite_differences(literal):
    weight, previous = (normal(3, 4, seed=1) + 0.3).requires_grad_(), normal(3, 4, seed=2) + 0.3
    similarity.weight_change(weight, previous, literal=literal).backward()

    def value(rows):
        return similarity.weight_change(torch.tensor(rows, dtype=torch.float64), previous, literal=literal).item()

    rows = weight.detach().tolist()
    assert all(
        weight.grad[i, k].item() == pytest.approx(slope(value, rows, i, k), rel=1e-6)
        for i in range(3)
        for k in range(4)
    )


# ------------------------------------------------------------------------------------------------------ the layers


class GPTConv(nn.Module):
    """The transposed linear layer of the GPT family."""

    def __init__(self):
        super().__init__()
        self.nf = 5
        self.weight = nn.Parameter(normal(3, 5, dtype=torch.float32))


GPTConv.__name__ = "Conv1D"


@pytest.mark.parametrize(
    ("module", "neuron", "matrices"),
    [
        (nn.Linear(3, 5), lambda w, i: w[i], 1),
        (nn.Conv2d(3, 5, 3), lambda w, i: w[i], 1),
        (nn.Conv2d(6, 4, 3, groups=2), lambda w, i: w[i], 2),
        (nn.Conv2d(4, 4, 3, groups=4), lambda w, i: w[i], 1),
        (nn.ConvTranspose2d(3, 5, 2), lambda w, i: w[:, i], 1),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), lambda w, i: w[3 * (i // 2) : 3 * (i // 2) + 3, i % 2], 2),
        (GPTConv(), lambda w, i: w[:, i], 1),
    ],
)
def test_rows_are_the_neurons_of_every_kind_of_layer(module, neuron, matrices):
    (layer,) = find_layers(module, depthwise=True, classifier=True)
    laid_out = layer.matrices()
    assert laid_out.shape[0] == matrices
    rows = laid_out.flatten(0, 1)
    for i in range(len(rows)):
        assert torch.equal(rows[i], neuron(module.weight, i).flatten())
    assert torch.equal(layer.restore(laid_out), module.weight)
    mask = layer.neurons(torch.tensor([1])).flatten()
    assert mask[1] and mask.sum() == layer.blocks


def test_depthwise_filters_and_the_classifier_are_left_out_unless_asked_for():
    model, inputs = build("depthwise")
    graph = auxin.trace(model, inputs)
    names = [layer.name for layer in find_layers(model, graph=graph)]
    everything = [layer.name for layer in find_layers(model, graph=graph, depthwise=True, classifier=True)]
    assert names == ["trunk.0", "trunk.6", "trunk.12"] and everything[-1] == "head" and "trunk.3" in everything
    assert "head" not in [layer.name for layer in find_layers(model)]  # without a graph: the last layer
    assert [layer.name for layer in find_layers(model, layers=("trunk.6",))] == ["trunk.6"]
    assert [layer.name for layer in find_layers(model, layers=(r"trunk\.\d",))] == ["trunk.0", "trunk.6"]


def test_frozen_shared_and_reparametrised_weights():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight.requires_grad_(False)
    model[3].weight = shared.weight
    assert [layer.name for layer in find_layers(model)] == ["0"]
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 3), nn.Linear(3, 2))
    assert [layer.name for layer in find_layers(normed)] == ["1"]


# ---------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_equation_5_and_its_gradient_reaches_the_weights():
    model, inputs = build("plain")
    graph = auxin.trace(model, inputs)
    previous = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.trunk[4].weight += 0.1
    how = Similarity(mean_similarity=0.5, weight_change=0.2)
    layers = [layer.weight for layer in find_layers(model, graph=graph)]
    names = {id(p): name for name, p in model.named_parameters()}
    expected = sum(
        0.5 * looped_mean(w.detach().flatten(1).tolist())
        + 0.2 * similarity.weight_change(w, previous[names[id(w)]]).item()
        for w in layers
    )
    value = similarity.loss(model, how, graph=graph, previous=previous)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    value.backward()
    assert all(w.grad.any() for w in layers) and model.head.weight.grad is None
    with pytest.raises(ConfigError, match="previous="):
        similarity.loss(model, how)
    with pytest.raises(ConfigError, match="previous= has no"):
        similarity.loss(model, how, previous={})


# ---------------------------------------------------------------------------------------------------- the refinement


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))


def looped_descent(weight, how, iterations):
    """The refinement of one layer with plain autograd on the plain functions."""
    start = weight.detach().clone()
    w = start.clone()
    rate = how.lr * (len(w) * w.norm(dim=1, keepdim=True) ** 2 if how.relative else torch.ones(len(w), 1).to(w))
    for _ in range(iterations):
        w.requires_grad_()
        (gradient,) = torch.autograd.grad(similarity.mean_similarity(w), w)
        w = (w - how.mean_similarity * rate * gradient).detach()
        if how.weight_change:
            w.requires_grad_()
            (gradient,) = torch.autograd.grad(similarity.weight_change(w, start, literal=how.literal), w)
            step = how.weight_change * rate * gradient
            w = w.detach()
            gap = w.sum() - start.sum()
            w = w - (step if how.literal else step * (gap / step.sum()).clamp(0, 1))
    return w


@pytest.mark.parametrize(
    "how",
    [
        Similarity(neurons="all", lr=0.05),
        Similarity(neurons="all", lr=0.5, relative=False),
        Similarity(neurons="all", lr=0.05, mean_similarity=0.7, weight_change=0.3),
        Similarity(neurons="all", lr=0.05, weight_change=0.001),
        Similarity(neurons="all", lr=0.01, relative=False, weight_change=0.3, literal=True),
    ],
    ids=["relative", "plain", "both", "short second steps", "literal"],
)
def test_the_batched_loop_equals_one_layer_at_a_time(how):
    model = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 5), nn.Linear(5, 2)).double()
    for i, parameter in enumerate(model.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=i) + 0.2)
    expected = [looped_descent(model[i].weight, how, how.iterations) for i in range(3)]
    before = [model[i].weight.detach().clone() for i in range(4)]
    record = refine(model, how)
    for i in range(3):
        assert torch.allclose(model[i].weight, expected[i], rtol=1e-10, atol=1e-12)
        layer = record.layers[i]
        assert layer.before == pytest.approx(looped_mean(before[i].tolist()), rel=1e-10)
        assert layer.after == pytest.approx(looped_mean(model[i].weight.tolist()), rel=1e-10)
        ratio = abs(model[i].weight.sum() / before[i].sum()).log().item()
        assert layer.weight_change == pytest.approx(ratio, abs=1e-10)
        assert layer.moved == pytest.approx(((model[i].weight - before[i]).norm() / before[i].norm()).item(), rel=1e-10)
    assert torch.equal(model[3].weight, before[3])


def test_each_term_does_its_own_part():
    def run(**settings):
        model = mlp()
        sums = [model[i].weight.sum().item() for i in (0, 2)]
        record = refine(model, Similarity(neurons="all", iterations=30, lr=0.1, **settings))
        drift = [abs(model[i].weight.sum().item() - s) for i, s in zip((0, 2), sums, strict=True)]
        return record.before, record.after, max(drift)

    before, first, drift = run()
    assert first < 0.6 * before and drift > 0.05
    _, both, kept = run(weight_change=1.0)
    assert both < 0.6 * before and kept < 0.2 * drift
    _, second, still = run(mean_similarity=False, weight_change=True)
    assert second == before and still == 0  # alone, the sound second term starts at its minimum
    _, _, shrunk = run(mean_similarity=False, weight_change=0.1, literal=True)
    assert shrunk > 0  # by the letter it moves the weights for no reason


def test_the_factor_of_the_second_term_decides_how_near_the_sum_stays():
    drifts = []
    for factor in (0, 1e-4, 1e-3, 1):
        model = mlp()
        before = model[0].weight.sum().item()
        refine(model, Similarity(neurons="all", lr=0.1, weight_change=factor))
        drifts.append(abs(model[0].weight.sum().item() - before))
    assert all(nearer < 0.98 * further for further, nearer in itertools.pairwise(drifts))


def test_neurons_without_weights_do_not_lengthen_the_steps_of_the_others():
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(normal(9, 6))
        model[0].weight[[2, 5, 7]] = 0
    alive = [0, 1, 3, 4, 6, 8]
    how = Similarity(neurons="all", lr=0.05)
    expected = looped_descent(model[0].weight[alive], how, how.iterations)
    refine(model, how)
    assert torch.allclose(model[0].weight[alive], expected, rtol=1e-10, atol=1e-12)
    assert not model[0].weight[[2, 5, 7]].any()


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"iterations": 0}])
def test_no_step_changes_no_bit(settings):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    record = refine(model, Similarity(neurons="all", **settings))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert versions == [p._version for p in model.parameters()]
    assert record.before == record.after > 0


def test_nothing_but_the_weights_is_touched():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    objects = {name: (id(p), id(p.grad), p.grad.clone()) for name, p in model.named_parameters()}
    state = copy.deepcopy(optimizer.state_dict())
    random = torch.get_rng_state()
    with torch.no_grad():  # gradients turned off around it do not matter
        record = refine(model, Similarity(neurons="all", weight_change=0.1))
    assert record.after < record.before
    assert torch.equal(random, torch.get_rng_state())
    for name, p in model.named_parameters():
        address, gradient_address, gradient = objects[name]
        assert (id(p), id(p.grad)) == (address, gradient_address) and torch.equal(p.grad, gradient)
    now = optimizer.state_dict()
    assert now["param_groups"] == state["param_groups"]
    for key, values in state["state"].items():
        assert all(torch.equal(now["state"][key][name], value) for name, value in values.items())


def test_low_precision_and_channels_last_parameters_stay_what_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    model = model.to(torch.bfloat16).to(memory_format=torch.channels_last)
    record = refine(model)
    assert all(p.dtype == torch.bfloat16 and bool(p.isfinite().all()) for p in model.parameters())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert record.after < 0.7 * record.before


@pytest.mark.parametrize("name", CAN_GROW)
def test_new_neurons_of_every_net_of_the_zoo_move_without_changing_the_function_and_then_all_do(name):
    model, inputs = build(name)
    grower = auxin.Grower(model, None, inputs, method="random", budget=auxin.count(2), refine=Similarity(iterations=0))
    before = [out.detach() for out in call(model, inputs)]
    event = grower.grow()
    grown = copy.deepcopy(model.state_dict())
    record = refine(model, Similarity(lr=0.05), graph=grower.graph, event=event)
    for now, then in zip(call(model, inputs), before, strict=True):
        assert (now - then).abs().max() <= 1e-10 * max(1, then.abs().max())
    assert record.max_change <= 1e-10
    touched = [layer for layer in record.layers if layer.new_before is not None]
    old = new = 0.0
    for layer in find_layers(model, graph=grower.graph):
        name = next(n for n, p in model.named_parameters() if p is layer.weight)
        moved = (
            (layer.weight != grown[name]).flatten(1)
            if layer.dim == 0
            else (layer.weight != grown[name]).transpose(0, 1)
        )
        slots = [
            (g, slot)
            for g in grower.graph.groups
            for slot in g.slots
            if (slot.parameter, slot.dim) == (name, layer.dim)
        ]
        sizes = {change.target: change.before for change in event.changes}
        may = {
            position
            for g, slot in slots
            if g.name in sizes
            for unit in range(sizes[g.name], g.size)
            for position in grower.graph.positions(g.name, slot, unit)
        }
        assert set(moved.flatten(1).any(1).nonzero().flatten().tolist()) <= may
    for layer in touched:
        old, new = old + layer.new_before, new + layer.new_after
    assert new <= old
    how = Similarity(neurons="all", lr=0.02, weight_change=0.1, depthwise=True, classifier=True)
    record = how.refine(model, graph=grower.graph)
    assert record.layers and record.after < record.before and math.isfinite(record.max_change)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_parents_move_with_their_copies_where_asked():
    model, inputs = build("plain")
    graph = auxin.trace(model, inputs)
    generator = torch.Generator().manual_seed(0)
    plan = auxin.METHODS["net2net"].propose(model, graph, auxin.count(1), generator=generator)
    event = auxin.surgery.apply(plan, model, graph)
    before = copy.deepcopy(model.state_dict())
    how = Similarity(neurons="new_and_parents", lr=0.02)
    with pytest.raises(ConfigError, match="plan="):
        how.refine(model, graph=graph, event=event)
    how.refine(model, graph=graph, event=event, plan=plan)
    for op, name in zip(plan.operations, ("trunk.0.weight", "trunk.4.weight"), strict=True):
        moved = (model.state_dict()[name] != before[name]).flatten(1).any(1).nonzero().flatten().tolist()
        assert moved == sorted([*op.parents, graph[op.group].size - 1])


@pytest.mark.parametrize(("neurons", "apart"), [("new", True), ("new_and_parents", False), ("all", False)])
def test_a_copy_leaves_its_parent_only_if_the_parent_stays(neurons, apart):
    """At cosine 1 the pair's own gradient is zero, and where both may move, equal neurons get equal steps."""
    model = mlp().double()
    plan = GrowthPlan("net2net", (Widen("0", 1, parents=(2,)),))
    graph = auxin.trace(model, torch.zeros(2, 6, dtype=torch.float64))
    event = auxin.surgery.apply(plan, model, graph)
    Similarity(neurons=neurons, layers=("0",)).refine(model, graph=graph, event=event, plan=plan)
    cosine = similarity.cosine_map(model[0].weight)[2, 12].item()
    assert (cosine < 0.99) if apart else (cosine == pytest.approx(1, abs=1e-9))


# -------------------------------------------------------------------------------------------------------- the Grower


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


IMAGES, LABELS = normal(32, 1, 6, 6, dtype=torch.float32), torch.arange(32) % 3
LOADER = list(zip(IMAGES.split(8), LABELS.split(8), strict=True))


def grow_and_train(refinement, epochs=range(4), model=None, state=None, optimizer_state=None):
    model = model or convolutional()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    if optimizer_state:
        optimizer.load_state_dict(optimizer_state)
    options = {"method": "net2net", "trigger": auxin.every(2), "budget": auxin.count(2), "seed": 3}
    grower = auxin.Grower(model, optimizer, IMAGES[:2], refine=refinement, **options)
    if state:
        grower.load_state_dict(state)
    for epoch in epochs:
        torch.manual_seed(epoch)
        model.train()
        for images, labels in LOADER:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        grower.step(epoch, LOADER)
    return model, optimizer, grower


def test_the_grower_refines_after_each_event_and_says_so():
    model, _, grower = grow_and_train(Similarity(iterations=15))
    plain, _, _ = grow_and_train(None)
    assert len(grower.events) == 2
    for event in grower.events:
        assert (
            "similarity: 15 iterations on 2 layers, new neurons, μ" in event.notes[-1] and "\n" not in event.notes[-1]
        )
    assert grower.refinement.after < grower.refinement.before
    assert not torch.equal(model[0].weight, plain[0].weight)
    assert json.loads(json.dumps(grower.state_dict()))["history"][0]["notes"] == list(grower.events[0].notes)


def test_a_resumed_run_refines_to_the_same_bits():
    how = Similarity(neurons="all", weight_change=0.1, reestimate_norms=2)
    whole, _, one = grow_and_train(how)
    half, optimizer, grower = grow_and_train(how, range(2))
    base = convolutional()
    grower.history.replay(base)
    base.load_state_dict(half.state_dict())
    state = json.loads(json.dumps(grower.state_dict()))
    resumed, _, two = grow_and_train(how, range(2, 4), base, state, copy.deepcopy(optimizer.state_dict()))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert [e.notes for e in one.events] == [e.notes for e in two.events]


def test_re_estimated_norms_hold_the_statistics_of_the_batches_and_nothing_else_moves():
    model = convolutional()
    model[1].eval()  # frozen by the user, as the rest of the model trains
    frozen = model[1].running_mean.clone()
    model[5].momentum = 0.25
    random, tracked = torch.get_rng_state(), model[5].num_batches_tracked.clone()
    assert similarity.reestimate_norms(model, [images for images, _ in LOADER], 3) == 1
    with torch.no_grad():
        inputs = [model[4](model[2](model[1](model[0](images)))) for images, _ in LOADER[:3]]
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    assert torch.allclose(model[5].running_mean, mean, atol=1e-6)
    assert torch.allclose(model[5].running_var, variance, rtol=1e-5)
    assert (
        torch.equal(model[1].running_mean, frozen) and not model[1].training and model[5].training and model[3].training
    )
    assert model[5].momentum == 0.25 and torch.equal(model[5].num_batches_tracked, tracked)
    assert torch.equal(random, torch.get_rng_state())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="not empty"):
        similarity.reestimate_norms(model, [], 3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "example", "expected"),
    [
        ([1, 2], torch.zeros(1), 1),
        ([1, 2, 3], (torch.zeros(1), torch.zeros(1)), (1, 2)),
        ((1, 2, 3), [torch.zeros(1), torch.zeros(1)], (1, 2)),
        ({"x": 1, "labels": 2}, {"x": torch.zeros(1)}, {"x": 1}),
        (5, torch.zeros(1), 5),
    ],
)
def test_model_inputs_are_found_in_training_batches(batch, example, expected):
    assert similarity.model_inputs(batch, example) == expected


def test_settings_reach_the_run_configuration_and_come_back():
    config = load_config(["--growth.similarity.iterations", "30", "--growth.similarity.layers", '["features.3"]'])
    assert config.growth.similarity == Similarity(iterations=30, layers=("features.3",))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert load_config([]).growth.similarity is None
    for wrong, words in (
        (("iterations", "-1"), "0 or more"),
        (("neurons", "old"), "new_and_parents"),
        (("lr", "x"), "lr"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            load_config([f"--growth.similarity.{wrong[0]}", wrong[1]])
        assert "\n" not in str(caught.value) and "Union" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"iterations": -1}, "0 or more"),
        ({"iterations": 1.5}, "whole number"),
        ({"lr": -0.1}, "0 or more"),
        ({"lr": math.inf}, "lr is inf: give a finite number"),
        ({"lr": math.nan}, "lr is nan: give a finite number"),
        ({"mean_similarity": math.inf}, "mean_similarity is inf: give a finite number"),
        ({"weight_change": math.inf}, "weight_change is inf: give a finite number"),
        ({"weight_change": math.nan}, "weight_change is nan: give a finite number"),
        ({"mean_similarity": -1}, "0 or more"),
        ({"weight_change": -1}, "0 or more"),
        ({"mean_similarity": False}, "both terms"),
        ({"literal": True}, "second term"),
        ({"neurons": "old"}, "choose new"),
        ({"layers": ()}, "name a layer"),
        ({"reestimate_norms": -1}, "0 or more"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Similarity(**settings)
    assert "\n" not in str(caught.value)


def test_a_refinement_that_lacks_something_says_what():
    model = convolutional()
    graph = auxin.trace(model, IMAGES[:2])
    with pytest.raises(ConfigError, match="graph="):
        Similarity(neurons="new").refine(model)
    with pytest.raises(ConfigError, match="event="):
        Similarity(neurons="new").refine(model, graph=graph)
    with pytest.raises(ConfigError, match="batches="):
        Similarity(neurons="all", reestimate_norms=2).refine(model)
    with pytest.raises(ConfigError, match=r"'nowhere'; there are: 0, 4"):
        Similarity(neurons="all", layers=("nowhere",)).refine(model, graph=graph)
    grower = auxin.Grower(model, None, IMAGES[:2], budget=auxin.count(1), refine=Similarity(reestimate_norms=2))
    with pytest.raises(ConfigError, match="loader"):
        grower.grow()
    assert model[0].out_channels == 4


def test_a_step_that_makes_weights_infinite_leaves_the_model_as_it_was():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="lower it"):
        refine(model, Similarity(neurons="all", lr=1e30))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_were_not_finite_before_are_not_blamed_on_the_step(value):
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 1] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="The weights of 2 were not finite before") as caught:
        refine(model, Similarity(neurons="all"))
    assert "lower it" not in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in model.state_dict().items())


# -------------------------------------------------------------------------------------------------- averaged copies


@pytest.mark.parametrize("neurons", ["new", "all"])
@pytest.mark.parametrize("method", ["random", "net2net"])
def test_averaged_copies_move_as_far_as_the_model(method, neurons):
    model = convolutional()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    average.update_parameters(model)
    how = Similarity(neurons=neurons, reestimate_norms=2, iterations=20, lr=0.05)
    grown = {}
    for name, refinement in (("refined", how), ("not", None)):
        parts = copy.deepcopy((model, average, plain))
        grower = auxin.Grower(
            parts[0], None, IMAGES[:2], method=method, budget=auxin.count(2), ema=parts[1:], refine=refinement, seed=3
        )
        grower.grow(loader=LOADER)
        grown[name] = parts
    for part, inside in ((1, "module."), (2, "")):
        for layer, old in (("0", 4), ("4", 5)):
            name = f"{layer}.weight"
            delta = grown["refined"][0].get_parameter(name) - grown["not"][0].get_parameter(name)
            moved, still = (grown[key][part].get_parameter(inside + name) for key in ("refined", "not"))
            assert delta[old:].flatten(1).any(1).all() and bool(delta[:old].any()) == (neurons == "all")
            assert torch.allclose(moved - still, delta, atol=1e-6)
            if method == "random":  # fresh neurons have no past, so their average is what they are, to the bit
                assert torch.equal(moved[old:], grown["refined"][0].get_parameter(name)[old:])
            if neurons == "new":
                assert torch.equal(moved[:old], still[:old])
        norms = {key: parts[part].get_buffer(f"{inside}5.running_mean") for key, parts in grown.items()}
        assert not torch.equal(norms["refined"], norms["not"])


def test_a_refinement_that_fails_leaves_averaged_copies_alone():
    model = mlp()
    average = copy.deepcopy(model)
    before = copy.deepcopy(average.state_dict())
    with pytest.raises(ConfigError, match="lower it"):
        refine(model, Similarity(neurons="all", lr=1e30), ema=[average])
    assert all(torch.equal(v, before[k]) for k, v in average.state_dict().items())


def test_a_model_without_layers_to_compare_says_so():
    record = refine(nn.Sequential(nn.GRU(3, 4)), Similarity(neurons="all"))
    assert not record.layers and "no convolution or linear layer" in record.notes[0]
