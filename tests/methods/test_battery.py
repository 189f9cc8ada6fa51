"""One battery over every growth method and every net of the zoo."""

import pytest
import torch
from torch import nn

import auxin
from auxin.budgets import Allocated
from auxin.methods import METHODS, Net2Net, Random
from tests.cases import CASES, call, double, randomise
from tests.methods.losses import generic_loss

CAN_GROW = [name for name, case in CASES.items() if case.growable]


def build(name):
    case = CASES[name]
    if case.needs:
        pytest.importorskip(case.needs)
    model = randomise(case.build()).double()
    return model, double(case.inputs()), case


def loss_of(model, inputs):
    return generic_loss(call(model, inputs))


def data(inputs):
    """What methods that look at data are given."""
    return {"loader": [(many(inputs), None)], "loss_fn": generic_loss}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CAN_GROW)
def test_a_method_grows_every_group_of_the_zoo(method, name):
    model, inputs, case = build(name)
    graph = auxin.trace(model, inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_of(model, inputs).backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None}
    assert not idle or name == "thrown_away"
    optimizer.step()
    optimizer.zero_grad()
    reference = [out.detach() for out in call(model, inputs)]
    for group in graph.growable():
        if case.hard_coded and group.name == "conv":
            continue
        before = graph[group.name].size
        moments = {slot.parameter for slot in group.slots} - idle
        old = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters() if n in moments}
        event = auxin.widen(
            model, group.name, 2, graph=graph, method=method, optimizer=optimizer, seed=1, **data(inputs)
        )
        assert graph[group.name].size == before + 2
        assert event.changes[0].after - event.changes[0].before == 2
        for parameter, moment in old.items():
            now = optimizer.state[dict(model.named_parameters())[parameter]]["exp_avg"]
            assert kept_is_bit_equal(graph, group.name, parameter, now, moment, before)
    if METHODS[method].preserves:
        for now, then in zip(call(model, inputs), reference, strict=True):
            assert (now - then).abs().max() <= 1e-10 * max(1, then.abs().max())


def kept_is_bit_equal(graph, group, parameter, now, old, size):
    """Delete the new units' positions; what is left must be what was there."""
    for slot in graph[group].slots:
        if slot.parameter != parameter:
            continue
        new = {i for unit in range(size, graph[group].size) for i in graph.positions(group, slot, unit)}
        kept = [i for i in range(now.shape[slot.dim]) if i not in new]
        now = now.index_select(slot.dim, torch.tensor(kept))
    return torch.equal(now, old)


def many(inputs):
    """A batch of 32 like the example, large enough for every ReLU to be on for some of it."""
    generator = torch.Generator().manual_seed(5)

    def batch(x):
        shape = (32, *x.shape[1:])
        if x.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=x.dtype)
        return torch.randint(int(x.max()) + 1, shape, generator=generator)

    return {k: batch(v) for k, v in inputs.items()} if isinstance(inputs, dict) else tuple(map(batch, inputs))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CAN_GROW)
def test_no_new_neuron_is_dead(method, name):
    """Within one training step every new unit has a gradient, on its fan-in or its fan-out."""
    model, inputs, case = build(name)
    graph = auxin.trace(model, inputs)
    for group in graph.growable():
        if case.hard_coded and group.name == "conv":
            continue
        auxin.widen(model, group.name, 2, graph=graph, method=method, seed=1, **data(inputs))
    model.zero_grad()
    loss_of(model, many(inputs)).backward()
    parameters = dict(model.named_parameters())
    for group in graph.growable():
        if case.hard_coded and group.name == "conv":
            continue
        for unit in range(group.size - 2, group.size):
            gradients = [
                parameters[s.parameter].grad.index_select(s.dim, torch.tensor(graph.positions(group.name, s, unit)))
                for s in group.slots
                if s.parameter in parameters and parameters[s.parameter].grad is not None
            ]
            assert max(float(g.abs().max()) for g in gradients) > 0, f"unit {unit} of {group.name}"


@pytest.mark.parametrize("method", METHODS)
def test_proposing_changes_nothing_and_the_same_seed_gives_the_same_plan(method):
    model, inputs, _ = build("residual")
    batches = [(many(inputs), None)]
    graph = auxin.trace(model, inputs)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    sizes = {g.name: g.size for g in graph.groups}
    budget = Allocated({g.name: 3 for g in graph.growable()})

    def propose(seed):
        generator = torch.Generator().manual_seed(seed)
        return METHODS[method].propose(model, graph, budget, generator=generator, batches=batches, loss_fn=generic_loss)

    one, same, other = propose(1), propose(1), propose(2)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {g.name: g.size for g in graph.groups} == sizes
    assert signature(one) == signature(same) != signature(other)


@pytest.mark.parametrize("method", METHODS)
def test_a_loader_that_shuffles_does_not_move_the_programs_random_numbers(method):
    model, inputs, _ = build("plain")
    x = many(inputs)[0]
    pairs = torch.utils.data.TensorDataset(x, torch.zeros(len(x)))
    loader = torch.utils.data.DataLoader(pairs, batch_size=8, shuffle=True)
    graph = auxin.trace(model, inputs)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    METHODS[method].propose(
        model, graph, Allocated({"trunk.0": 2}), generator=torch.Generator(), batches=loader, loss_fn=generic_loss
    )
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("groups", [1, 4])
def test_new_rows_of_a_transposed_convolution_have_its_true_fan_in(groups):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(64, 64, 2, groups=groups, bias=False), nn.ReLU(), nn.Conv2d(64, 2, 1), nn.Flatten()
    )
    graph = auxin.trace(model, torch.randn(1, 64, 4, 4))
    (name,) = [g.name for g in graph.growable() if any(s.parameter == "0.weight" and s.dim == 1 for s in g.slots)]
    generator = torch.Generator().manual_seed(0)
    plan = METHODS["random"].propose(model, graph, Allocated({name: 16}), generator=generator)
    std = float(plan.operations[0].values["0.weight:1"].std())
    assert std == pytest.approx((2 / (64 // groups * 4)) ** 0.5, rel=0.05)


def signature(plan):
    return [
        (op.group, op.by, op.parents, {k: v.flatten().tolist() for k, v in (*op.values.items(), *op.offsets.items())})
        for op in plan.operations
    ]


def test_several_groups_in_one_plan_equal_the_same_groups_one_after_the_other():
    """Values drawn for the old sizes are carried to the new ones: new rows read new columns with zero weight."""
    model, inputs, _ = build("plain")
    graph = auxin.trace(model, inputs)
    reference = call(model, inputs)[0]
    grower = auxin.Grower(model, None, inputs, method="random", budget=auxin.count(3))
    event = grower.grow()
    assert [(c.before, c.after) for c in event.changes] == [(5, 8), (7, 10)]
    assert graph["trunk.0"].size == 5  # another graph of the same model is not touched
    assert (call(model, inputs)[0] - reference).abs().max() < 1e-12
    corner = model.trunk[4].weight[7:, 5:]
    assert corner.shape == (3, 3, 3, 3) and bool((corner == 0).all())


def test_net2net_divides_by_the_true_multiplicity():
    """A parent drawn twice and its two copies carry a third each; the public code that halves would give 1.5."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.ReLU(), torch.nn.Linear(1, 2)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    before, weight = model(x), model[2].weight.detach().clone()
    graph = auxin.trace(model, x)
    auxin.widen(model, "0", 2, graph=graph, method=Net2Net(asymmetry=0.0))  # the only parent is drawn twice
    assert torch.allclose(model[2].weight, weight.expand(2, 3) / 3, rtol=1e-15)
    assert (model(x) - before).abs().max() < 1e-14


def test_net2net_is_exact_in_train_mode_too():
    model, inputs, _ = build("plain")
    model.train()
    model.trunk[7].eval()  # dropout is random
    before = model(*inputs).detach()
    grower = auxin.Grower(model, None, inputs, method="net2net", budget=auxin.count(4))
    grower.grow()
    assert (model(*inputs) - before).abs().max() < 1e-10


def test_net2net_copies_every_batch_norm_entry_of_every_new_unit():
    model, inputs, _ = build("plain")
    graph = auxin.trace(model, inputs)
    auxin.widen(model, "trunk.0", 5, graph=graph, method="net2net", seed=3)
    norm = model.trunk[1]
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert all((values[:5] == new).any() for new in values[5:])


def test_net2net_noise_breaks_the_tie_between_copies():
    model, inputs, _ = build("plain")
    graph = auxin.trace(model, inputs)
    event = auxin.widen(model, "trunk.0", 4, graph=graph, method=Net2Net(noise=0.1))
    weight = model.trunk[0].weight.flatten(1)
    gaps = torch.cdist(weight, weight) + torch.eye(len(weight)) * 9
    assert gaps.min() > 1e-3
    assert 0 < event.max_change < 5


def test_random_with_an_outgoing_scale_moves_the_function():
    model, inputs, _ = build("plain")
    event = auxin.widen(model, "trunk.0", 2, graph=auxin.trace(model, inputs), method=Random(outgoing_scale=0.1))
    assert event.max_change > 1e-6


def test_a_tied_embedding_falls_back_and_the_event_says_so():
    model, inputs, _ = build("tied")
    graph = auxin.trace(model, inputs)
    group = next(g for g in graph.growable() if ("embed.weight", 1) in {(s.parameter, s.dim) for s in g.slots})
    event = auxin.widen(model, group, 2, graph=graph, method="net2net")
    assert "random method" in event.notes[0]
    assert event.max_change < 1e-10
