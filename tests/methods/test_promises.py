"""What every method promises, where the battery over the zoo does not look: a whole MobileNetV1, autocast, moments."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import auxin
from auxin.budgets import Allocated
from auxin.methods import METHODS, Firefly, Orthogonal
from auxin.models import mobilenet_v1, small_cnn
from tests.methods.losses import generic_loss
from tests.methods.test_battery import build, data, kept_is_bit_equal, loss_of

WAYS = {**METHODS, "orthogonal by activation": Orthogonal(criterion="activation"), "path": Firefly(path_points=3)}


def images(number, channels, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, channels, side, side, generator=generator), torch.arange(number) % 10


def train_step(model, optimizer, x, y):
    model.train()
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("way", WAYS)
def test_mobilenet_v1_grows_everywhere_depthwise_filters_included(way):
    torch.manual_seed(0)
    model = mobilenet_v1(width=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    x, y = images(32, 3, 16)
    train_step(model, optimizer, x, y)
    graph = auxin.trace(model, x[:2])
    assert len(graph.growable()) == 14
    old = {n: (p.shape, optimizer.state[p]["momentum_buffer"].clone()) for n, p in model.named_parameters()}
    units = Allocated({group.name: 2 for group in graph.growable()})
    generator = torch.Generator().manual_seed(1)
    plan = WAYS[way].propose(
        model, graph, units, generator=generator, batches=[(x, y)] * 3, loss_fn=functional.cross_entropy
    )
    event = auxin.surgery.apply(plan, model, graph, optimizer=optimizer)
    assert [(change.before, change.after) for change in event.changes] == [(4, 6)] * 14
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 13
    assert all(m.groups == m.in_channels == m.out_channels == len(m.weight) == 6 for m in depthwise)
    for name, parameter in model.named_parameters():
        shape, moment = old[name]
        kept = tuple(slice(0, size) for size in shape)
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"][kept], moment), name
    if WAYS[way].preserves:
        assert event.max_change < 1e-4
    parameters = dict(model.named_parameters())
    model.train()
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    for group in graph.growable():
        for unit in (4, 5):
            reached = [
                float(parameters[s.parameter].grad.index_select(s.dim, torch.tensor(places)).abs().max())
                for s in group.slots
                if s.parameter in parameters and (places := graph.positions(group.name, s, unit))
            ]
            assert max(reached) > 0, f"unit {unit} of {group.name}"


@pytest.mark.parametrize("way", WAYS)
def test_statistics_are_in_float32_under_autocast(way):
    torch.manual_seed(0)
    model, (x, y) = small_cnn(width=6), images(32, 1, 8)
    graph = auxin.trace(model, x[:2])
    units = Allocated({group.name: 2 for group in graph.growable()})

    def propose():
        generator = torch.Generator().manual_seed(1)
        return WAYS[way].propose(
            model, graph, units, generator=generator, batches=[(x, y)] * 3, loss_fn=functional.cross_entropy
        )

    plain = propose()
    with torch.autocast("cpu", torch.bfloat16):
        inside = propose()
    for one, other in zip(plain.operations, inside.operations, strict=True):
        assert one.parents == other.parents
        for mine, theirs in ((one.values, other.values), (one.offsets, other.offsets)):
            assert mine.keys() == theirs.keys()
            assert all(v.dtype == torch.float32 and torch.equal(v, theirs[k]) for k, v in mine.items())


@pytest.mark.parametrize("way", [name for name in WAYS if name != "random"])
def test_a_group_that_a_method_cannot_treat_grows_at_random_and_the_event_says_so(way):
    model, inputs, _ = build("tied")
    graph = auxin.trace(model, inputs)
    group = next(g for g in graph.growable() if ("embed.weight", 1) in {(s.parameter, s.dim) for s in g.slots})
    event = auxin.widen(model, group, 2, graph=graph, method=WAYS[way], **data(inputs))
    treated = way.startswith("orthogonal")  # it turns what else the group holds
    assert event.changes[0].after - event.changes[0].before == 2
    assert treated or any("random" in note for note in event.notes)
    assert all("\n" not in note for note in event.notes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_every_moment_of_old_entries_is_bit_equal(way, name):
    model, inputs, _ = build(name)
    graph = auxin.trace(model, inputs)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, amsgrad=True)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, inputs).backward()
        optimizer.step()
    for group in graph.growable():
        before = group.size
        touched = {slot.parameter for slot in group.slots}
        old = {
            n: {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v) and v.shape == p.shape}
            for n, p in model.named_parameters()
        }
        auxin.widen(model, group.name, 2, graph=graph, method=WAYS[way], optimizer=optimizer, seed=1, **data(inputs))
        for parameter, tensor in model.named_parameters():
            assert old[parameter]
            for key, moment in old[parameter].items():
                now = optimizer.state[tensor][key]
                if parameter in touched:
                    assert kept_is_bit_equal(graph, group.name, parameter, now, moment, before)
                else:
                    assert torch.equal(now, moment)


def test_the_constraint_works_without_growth_on_a_users_own_model():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.Flatten(), nn.Linear(24, 2))
    alone, (x, y) = copy.deepcopy(model), (torch.randn(16, 3, 5), torch.arange(16) % 2)
    record = auxin.similarity.refine(alone)
    assert record.after < record.before and {line.name for line in record.layers} >= {"0", "1.linear1", "1.linear2"}
    ends = []
    for weight in (0.0, 1.0):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), 0.1)
        for _ in range(20):
            optimizer.zero_grad()
            loss = functional.cross_entropy(trained(x), y) + weight * auxin.similarity.loss(trained)
            loss.backward()
            optimizer.step()
        ends.append(float(auxin.similarity.loss(trained)))
    assert ends[1] < 0.8 * ends[0]
    assert generic_loss(trained(x)).isfinite()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flipped", [False, True])
def test_units_that_are_new_in_both_factors_of_an_axis_learn(way, flipped):
    """A channel of a new group that is itself new has no weights of either growth, and would be dead for ever."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    (x, _), optimizer = images(32, 3, 6), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    y = torch.arange(32) % 4
    graph = auxin.trace(model, x[:2])
    names = [group.name for group in graph.growable()]
    assert "0[groups]" in names and len(names) == 3
    units = Allocated({name: 2 for name in (reversed(names) if flipped else names)})
    plan = WAYS[way].propose(
        model, graph, units, generator=torch.Generator().manual_seed(1), batches=[(x, y)] * 3,
        loss_fn=functional.cross_entropy,
    )  # fmt: skip
    auxin.surgery.apply(plan, model, graph, optimizer=optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim > 1}
    for _ in range(10):
        train_step(model, optimizer, x, y)
    still = {
        n: (p == before[n]).flatten(1).all(1).nonzero().flatten().tolist()
        for n, p in model.named_parameters()
        if n in before
    }
    assert not any(still.values()), still
