"""Unequal shares of the outgoing weights: the function stays, the copies stop being the same neuron."""

import pytest
import torch

import auxin
from auxin.budgets import Allocated
from auxin.methods import Firefly, Net2Net, Splitting
from auxin.methods.symmetry import outgoing_offsets
from tests.cases import call
from tests.methods.test_battery import CAN_GROW, build, data, loss_of, many


@pytest.mark.parametrize("name", CAN_GROW)
def test_every_group_of_the_zoo_keeps_its_function(name):
    model, inputs, case = build(name)
    graph = auxin.trace(model, inputs)
    reference = [out.detach() for out in call(model, inputs)]
    for group in graph.growable():
        if case.hard_coded and group.name == "conv":
            continue
        auxin.widen(model, group.name, 3, graph=graph, method=Net2Net(asymmetry=1.0), seed=1)
    for now, then in zip(call(model, inputs), reference, strict=True):
        assert (now - then).abs().max() <= 1e-10 * max(1, then.abs().max())


def test_all_groups_in_one_plan_keep_the_function_in_train_mode_too():
    model, inputs, _ = build("residual")
    model.train()
    before = [out.detach() for out in call(model, inputs)]
    auxin.Grower(model, None, inputs, method=Net2Net(asymmetry=1.0), budget=auxin.count(5)).grow()
    for now, then in zip(call(model, inputs), before, strict=True):
        assert (now - then).abs().max() <= 1e-10 * max(1, then.abs().max())


@pytest.mark.parametrize("asymmetry", [0.0, 1.0])
def test_copies_are_trained_apart(asymmetry):
    """After a few steps parent and copy still have a cosine of 1 when they share equally, and not when they do not."""
    model, inputs, _ = build("plain")
    model.eval()
    auxin.widen(model, "trunk.0", 4, graph=auxin.trace(model, inputs), method=Net2Net(asymmetry=asymmetry), seed=3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model, many(inputs)).backward()
        optimizer.step()
    rows = torch.nn.functional.normalize(model.trunk[0].weight.flatten(1), dim=1)
    closest = (rows @ rows.T - torch.eye(len(rows))).max()
    assert (closest > 1 - 1e-9) == (asymmetry == 0)


def test_the_sum_of_a_parents_shares_is_what_it_was_and_their_difference_has_the_size_asked_for():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2000)).double()
    graph, weight = auxin.trace(model, torch.randn(4, 3, dtype=torch.float64)), model[2].weight.detach().clone()
    auxin.surgery.apply(
        auxin.types.GrowthPlan(
            "test",
            (
                auxin.types.Widen(
                    "0", 2, (0, 0),
                    offsets=outgoing_offsets(model, graph, "0", (0, 0), 0.5, torch.Generator().manual_seed(0)),
                ),
            ),
        ),
        model, graph,
    )  # fmt: skip
    grown = model[2].weight.detach()
    assert torch.allclose(grown[:, [0, 2, 3]].sum(1), weight[:, 0]) and torch.equal(grown[:, 1], weight[:, 1])
    drawn = grown[:, 2] - weight[:, 0] / 3
    assert drawn.std() == pytest.approx(0.5 * float(weight.square().mean().sqrt()), rel=0.05)


def test_fresh_units_get_no_offsets():
    model, inputs, _ = build("plain")
    graph = auxin.trace(model, inputs)
    offsets = outgoing_offsets(model, graph, "trunk.0", (0, -1), 1.0, torch.Generator().manual_seed(0))
    (drawn,) = offsets.values()
    assert drawn[:, 0].abs().min() > 0 and bool((drawn[:, 1] == 0).all())


def test_the_same_seed_gives_the_same_plan():
    model, inputs, _ = build("plain")
    graph, units = auxin.trace(model, inputs), Allocated({"trunk.0": 3})
    one, same = (
        Net2Net(asymmetry=0.5).propose(model, graph, units, generator=torch.Generator().manual_seed(4)).operations[0]
        for _ in range(2)
    )
    assert one.offsets and all(torch.equal(one.offsets[key], same.offsets[key]) for key in one.offsets)


def test_noise_takes_the_place_of_asymmetry():
    model, inputs, _ = build("plain")
    graph, units = auxin.trace(model, inputs), Allocated({"trunk.0": 3})
    plan = Net2Net(noise=0.1).propose(model, graph, units, generator=torch.Generator().manual_seed(4))
    assert not plan.preserves and plan.operations[0].values and not plan.operations[0].offsets


@pytest.mark.parametrize("method", [Splitting(), Firefly(num_candidates=1)], ids=["splitting", "firefly"])
def test_the_halves_of_a_split_share_unequally_and_their_sum_is_what_it_was(method):
    model, inputs, _ = build("plain")
    graph, before = auxin.trace(model, inputs), model.trunk[4].weight.detach().clone()
    auxin.widen(model, "trunk.0", 3, graph=graph, method=method, **data(inputs))
    grown = model.trunk[4].weight.detach()
    halves = grown[:, 5:]
    gaps = torch.stack([(grown[:, p] + halves[:, c] - before[:, p]).abs().max() for p in range(5) for c in range(3)])
    pairs = (gaps < 1e-12).nonzero().flatten().tolist()
    assert pairs
    for pair in pairs:
        parent, copy = divmod(pair, 3)
        assert (grown[:, parent] - halves[:, copy]).abs().max() > 0.1 * before.square().mean().sqrt()
