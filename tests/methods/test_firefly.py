"""Firefly: scores against finite differences, plans against what the over-grown copy promised."""

import re
import statistics

import pytest
import torch
from torch import nn

import auxin
from auxin.budgets import Allocated
from auxin.candidates import Candidates
from auxin.methods.firefly import Firefly
from auxin.statistics.batches import Batch, measuring
from tests.cases import CASES, call, double, randomise
from tests.methods.losses import generic_loss


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def case(name, size=16):
    model = randomise(CASES[name].build()).double()
    example = double(CASES[name].inputs())
    batch = tuple(torch.randn(size, *x.shape[1:], generator=generator(5), dtype=torch.float64) for x in example)
    return model, example, batch


def propose(method, model, graph, units, batch, seed=0):
    return method.propose(
        model, graph, Allocated(units), generator=generator(seed), batches=[(batch, None)], loss_fn=generic_loss
    )


def candidates_of(name, number=2):
    model, example, batch = case(name)
    graph = auxin.trace(model, example)
    with measuring(model):
        return (
            Candidates(model, graph, {g.name: number for g in graph.growable()}, generator(), asymmetry=0.7),
            Batch(batch, None),
            model,
        )


NETS = ["plain", "residual", "depthwise", "grouped", "dense_concat", "fused_attention", "called_twice"]


@pytest.mark.parametrize("name", NETS)
def test_with_closed_gates_the_overgrown_copy_is_the_model(name):
    candidates, batch, model = candidates_of(name)
    with measuring(model):
        closed = candidates.measure(candidates.gates(0.0), [batch], generic_loss)
    expected = float(generic_loss(call(model, batch.inputs)))
    assert closed == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_scores_are_the_finite_differences_in_each_gate(name):
    candidates, batch, model = candidates_of(name)
    gate, h = 0.1, 1e-5
    with measuring(model):
        scores = candidates.scores([batch], generic_loss, gate, 1)
        for group, score in scores.items():
            for i in (0, len(score) // 2, len(score) - 1):
                ends = []
                for sign in (1, -1):
                    gates = candidates.gates(gate / 2)
                    gates[group][i] += sign * h
                    ends.append(candidates.measure(gates, [batch], generic_loss))
                slope = (ends[0] - ends[1]) / (2 * h)
                assert float(score[i]) / gate == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["residual", "depthwise", "fused_attention"])
def test_the_path_integral_adds_up_to_the_change_of_the_loss(name):
    candidates, batch, model = candidates_of(name)
    with measuring(model):
        scores = candidates.scores([batch], generic_loss, 0.2, 40)
        true = candidates.measure(candidates.gates(0.2), [batch], generic_loss) - candidates.measure(
            candidates.gates(0.0), [batch], generic_loss
        )
    assert sum(float(s.sum()) for s in scores.values()) == pytest.approx(true, rel=1e-3)


def test_scores_are_the_mean_over_batches():
    candidates, batch, model = candidates_of("plain")
    with measuring(model):
        once, twice = (candidates.scores([batch] * n, generic_loss, 0.1, 1) for n in (1, 2))
    for name, score in once.items():
        assert score.abs().max() > 0
        assert torch.allclose(twice[name], score, rtol=1e-12, atol=0)


def test_training_the_directions_lowers_the_loss_and_keeps_them_on_their_spheres():
    candidates, batch, model = candidates_of("plain")
    norms = {n: g.fan_in.norm(dim=1) for n, g in candidates.groups.items()}
    with measuring(model):
        before = candidates.measure(candidates.gates(0.05), [batch], generic_loss)
        candidates.train([batch], generic_loss, 12, 0.05, 1.0)
        after = candidates.measure(candidates.gates(0.05), [batch], generic_loss)
        closed = candidates.measure(candidates.gates(0.0), [batch], generic_loss)
    assert after < min(before, closed)
    for name, group in candidates.groups.items():
        assert torch.allclose(group.fan_in.norm(dim=1), norms[name])
        for rows in (group.split, group.fan_out):
            assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows), dtype=torch.float64))


GROUPS = [
    ("plain", "trunk.0"), ("depthwise", "trunk.0"), ("grouped", "trunk.block.3"), ("fused_attention", "qkv[num_heads]"),
    ("dense_concat", "trunk.conv1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "group"), GROUPS)
def test_the_grown_model_has_the_loss_that_the_copy_measured(name, group):
    model, example, batch = case(name)
    graph = auxin.trace(model, example)
    before = float(generic_loss(call(model, batch)))
    # With one new neuron to choose from, the other two units have to be splits.
    plan = propose(Firefly(num_candidates=1), model, graph, {group: 3}, batch)
    (op,) = plan.operations
    assert op.by == 3
    auxin.surgery.apply(plan, model, graph)
    change = float(generic_loss(call(model, batch))) - before
    promised = float(plan.notes[0].split("held batches ")[1].split(" ")[0])
    assert change < 0
    assert change == pytest.approx(promised, rel=1e-2)


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "dense_concat", "unet", "glu"])
def test_so_it_does_when_every_group_grows_at_once(name):
    """New rows read the copies of new columns' parents and so on: the copy and surgery must agree on all of it."""
    model, example, batch = case(name)
    graph = auxin.trace(model, example)
    before = float(generic_loss(call(model, batch)))
    plan = propose(Firefly(num_candidates=1, step_size=0.1), model, graph, {g.name: 2 for g in graph.growable()}, batch)
    assert any(p >= 0 for op in plan.operations for p in op.parents)
    auxin.surgery.apply(plan, model, graph)
    change = float(generic_loss(call(model, batch))) - before
    assert change == pytest.approx(float(plan.notes[0].split("held batches ")[1].split(" ")[0]), rel=1e-2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["grouped", "channel_shuffle", "grouped_query_sdpa"])
def test_so_it_does_when_two_factors_of_one_axis_grow(name, seed, monkeypatch):
    """Groups times channels, heads times their size: a copy of one factor takes the other's candidates along."""
    losses = []
    measure = Candidates.measure
    monkeypatch.setattr(Candidates, "measure", lambda *args: losses.append(measure(*args)) or losses[-1])
    model, example, batch = case(name)
    graph = auxin.trace(model, example)
    plan = propose(
        Firefly(num_candidates=1, steps=4), model, graph, {g.name: 2 for g in graph.growable()}, batch, seed=seed
    )
    before = float(generic_loss(call(model, batch)))
    auxin.surgery.apply(plan, model, graph)
    change = float(generic_loss(call(model, batch))) - before
    assert change < 0
    assert change == pytest.approx(losses[-1] - losses[0], rel=1e-9)


def test_splits_and_new_neurons_share_one_ranking():
    model, example, batch = case("plain")
    graph = auxin.trace(model, example)
    plan = propose(Firefly(num_candidates=1), model, graph, {"trunk.0": 3}, batch)
    parents = plan.operations[0].parents
    assert sorted(p >= 0 for p in parents) == [False, True, True]
    assert len(set(parents)) == 3
    assert plan.notes[0].startswith("2 splits and 1 new neurons: ")
    unsplit = propose(Firefly(splits=False), model, graph, {"trunk.0": 3}, batch)
    assert max(unsplit.operations[0].parents, default=-1) == -1
    assert unsplit.notes[0].startswith("0 splits and 3 new neurons: ")
    event = auxin.Grower(model, None, example, method=Firefly(), budget=auxin.count(5, scope="global")).grow(
        loader=[(batch, None)], loss_fn=generic_loss
    )
    assert sum(c.after - c.before for c in event.changes) == 5


def test_what_no_candidate_earns_is_filled_at_random_and_said():
    """A neuron between two linear maps gains nothing from a split."""
    model, example, batch = case("conv1d")
    graph = auxin.trace(model, example)
    plan = propose(Firefly(num_candidates=1), model, graph, {"trunk.3": 12}, batch)
    auxin.surgery.apply(plan, model, graph)
    assert graph["trunk.3"].size == 19
    assert "random" in plan.notes[-1]


def test_a_new_depthwise_filter_is_alive():
    model, example, batch = case("depthwise")
    graph = auxin.trace(model, example)
    auxin.surgery.apply(propose(Firefly(), model, graph, {"trunk.0": 4}, batch), model, graph)
    assert model.trunk[3].weight[5:].flatten(1).norm(dim=1).min() > 0.1


def test_a_tied_embedding_falls_back_and_the_event_says_so():
    model = randomise(CASES["tied"].build()).double()
    ids = CASES["tied"].inputs()
    graph = auxin.trace(model, ids)
    plan = propose(Firefly(), model, graph, {g.name: 2 for g in graph.growable()}, ids)
    assert [op.by for op in plan.operations] == [2, 2]
    assert "embed is read through the axis that writes it, so 2 of its new neurons are random" in plan.notes


def test_an_event_lowers_the_loss_of_images_it_has_not_seen():
    """In the median over seeds, half-way through training, before any further step."""
    changes = []
    for seed in range(5):
        torch.manual_seed(seed)
        teacher = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))
        model = nn.Sequential(
            nn.Linear(6, 4),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Linear(4, 3),
        )
        x = torch.randn(20, 64, 6)
        y = teacher(x).detach()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(200):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[step % 12]), y[step % 12]).backward()
            optimizer.step()
        model.eval()
        unseen, wanted = x[12:].flatten(0, 1), y[12:].flatten(0, 1)
        before = float(nn.functional.mse_loss(model(unseen), wanted))
        grower = auxin.Grower(model, optimizer, x[0], method=Firefly(), budget=auxin.ratio(0.5), seed=seed)
        grower.grow(loader=list(zip(x[:12], y[:12], strict=True)), loss_fn=nn.functional.mse_loss)
        changes.append(float(nn.functional.mse_loss(model(unseen), wanted)) - before)
    assert statistics.median(changes) < 0


def test_a_bfloat16_model_is_measured_in_float32_and_left_alone():
    model, example, batch = case("plain")
    model = model.to(torch.bfloat16).train()
    example, batch = (tuple(x.to(torch.bfloat16) for x in xs) for xs in (example, batch))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    seen = set()

    def loss(output, target):
        seen.add(output.dtype)
        return output.square().mean()

    graph = auxin.trace(model, example)
    plan = Firefly().propose(
        model, graph, Allocated({"trunk.0": 2}), generator=generator(), batches=[(batch, None)], loss_fn=loss
    )
    assert seen == {torch.float32} and model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    auxin.surgery.apply(plan, model, graph)
    assert model.trunk[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{"steps": -1}, {"path_points": 0}, {"num_candidates": 0}, {"step_size": 0.0}])
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(auxin.AuxinError, match="Firefly needs"):
        Firefly(**options)


def test_without_splits_the_new_neurons_alone_are_trained_and_scored():
    model, example, batch = case("plain")
    graph = auxin.trace(model, example)
    step = 1e-3
    plan = propose(Firefly(splits=False, step_size=step), model, graph, {"trunk.0": 3, "trunk.4": 2}, batch)
    before = float(generic_loss(call(model, batch)))
    auxin.surgery.apply(plan, model, graph)
    predicted = float(re.search(r"loss change (\S+) at", plan.notes[0])[1])
    assert predicted == pytest.approx(float(generic_loss(call(model, batch))) - before, rel=2e-2)
    assert all(set(op.parents) <= {-1} for op in plan.operations)
