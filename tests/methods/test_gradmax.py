"""GradMax against dense references in float64."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import auxin
from auxin.budgets import Allocated
from auxin.methods.gradmax import GradMax
from auxin.methods.random import Random
from auxin.shadow import Shadow
from auxin.statistics.units import columns_orthonormal
from auxin.types import Widen
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


def outgoing_gradients(model, example, batch, group, fan_in):
    """Return the gradient at each new unit's fan-out in a really grown model, (units, entries)."""
    graph = auxin.trace(model, example)
    (key, rows), before = next(iter(fan_in.items())), graph[group].size
    op = Widen(group, rows.shape[int(key[-1])], values=fan_in)
    auxin.surgery.apply(auxin.GrowthPlan("test", (op,)), model, graph)
    model.zero_grad()
    generic_loss(call(model, batch)).backward()
    parameters = dict(model.named_parameters())
    return torch.cat([
        torch.stack([
            parameters[s.parameter].grad.index_select(s.dim, torch.tensor(graph.positions(group, s, u))).flatten()
            for u in range(before, graph[group].size)
        ])
        for s in graph[group].slots if s.role == "consumer"
    ], dim=1)  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(d=st.integers(2, 7), n=st.integers(1, 5), out=st.integers(2, 6), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_without_a_nonlinearity_the_new_neurons_are_the_top_singular_vectors(d, n, out, k, seed):
    k = min(k, d, out)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(d, n), nn.Linear(n, out), nn.Tanh(), nn.Linear(out, 3)).double()
    x = torch.randn(20, d, dtype=torch.float64)
    z = model[1](model[0](x)).detach().requires_grad_()
    delta = torch.autograd.grad(generic_loss(model[3](model[2](z))), z)[0]
    dense = delta.T @ x  # M = Σ (∂L/∂z_out) h_inᵀ
    found = torch.linalg.svdvals(dense)
    assume(k == len(found) or found[k] < 0.9 * found[k - 1])  # what is almost as good takes as many iterations to leave
    graph = auxin.trace(model, x)
    plan = propose(GradMax(iterations=50), model, graph, {"0": k}, (x,))
    rows = plan.operations[0].values["0.weight:0"]
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert torch.allclose((rows @ dense.T).square().sum(), found[:k].square().sum(), rtol=1e-4)
    assert torch.allclose(rows @ rows.T, torch.eye(k, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("plain", "trunk.0"),
        ("plain", "trunk.4"),
        ("flatten", "0"),
        ("flatten", "4"),
        ("unet", "up"),
        ("rms_norm", "gate"),
    ],
)
def test_the_gradient_beats_a_thousand_random_directions_of_equal_norm(name, group):
    model, example, batch = case(name)
    graph = auxin.trace(model, example)
    ours = propose(GradMax(iterations=15), model, graph, {group: 1}, batch).operations[0].values
    chosen = outgoing_gradients(case(name)[0], example, batch, group, ours).norm()
    many = {}
    for key, values in ours.items():
        dim = int(key[-1])
        shape = [1000 if d == dim else size for d, size in enumerate(values.shape)]
        rows = torch.randn(shape, generator=generator(1), dtype=torch.float64).movedim(dim, 0)
        rows = rows / rows.flatten(1).norm(dim=1).view(-1, *[1] * (values.ndim - 1)) * values.norm()
        many[key] = rows.movedim(0, dim)
    others = outgoing_gradients(case(name)[0], example, batch, group, many).norm(dim=1)
    assert chosen >= others.max()
    assert chosen > 1.5 * others.median()


def test_several_neurons_have_a_larger_gradient_than_random_orthonormal_sets():
    model, example, batch = case("plain")
    graph = auxin.trace(model, example)
    ours = propose(GradMax(iterations=15), model, graph, {"trunk.0": 3}, batch).operations[0].values
    chosen = outgoing_gradients(case("plain")[0], example, batch, "trunk.0", ours).norm()
    norm = ours["trunk.0.weight:0"][0].norm()
    drawn = [torch.randn(3, 27, generator=generator(seed), dtype=torch.float64) for seed in range(100)]
    rows = torch.cat([columns_orthonormal(d, d) * norm for d in drawn]).view(300, 3, 3, 3)
    others = outgoing_gradients(case("plain")[0], example, batch, "trunk.0", {"trunk.0.weight:0": rows})
    assert chosen > others.view(100, -1).norm(dim=1).max()


@pytest.mark.parametrize("name", ["depthwise", "residual", "dense_concat", "glu", "bare_attention", "grouped"])
def test_growing_every_group_at_once_preserves_the_function(name):
    model, example, batch = case(name)
    before = [out.detach() for out in call(model, batch)]
    graph = auxin.trace(model, example)
    plan = propose(GradMax(), model, graph, {g.name: 2 for g in graph.growable()}, batch)
    auxin.surgery.apply(plan, model, graph)
    for now, then in zip(call(model, batch), before, strict=True):
        assert (now - then).abs().max() <= 1e-12 * max(1, then.abs().max())


def test_the_shadow_has_the_gradients_of_the_really_grown_model():
    """Two groups that meet in one parameter: new rows read new columns with zero weight."""
    model, example, batch = case("plain")
    graph = auxin.trace(model, example)
    plan = propose(GradMax(iterations=1), model, graph, {"trunk.0": 2, "trunk.4": 3}, batch)
    shadow = Shadow(model, graph, [Widen(op.group, op.by) for op in plan.operations])
    parameters = dict(shadow.parameters)
    for op in plan.operations:
        for key, values in op.values.items():
            parameters[key[:-2]] = parameters[key[:-2]] + shadow.place(op.group, key, values)
    auxin.surgery.apply(plan, model, graph)
    for name, p in model.named_parameters():
        assert torch.equal(p, parameters[name]), name


def test_a_gated_unit_keeps_the_norm_of_each_of_its_parameters():
    model, example, batch = case("rms_norm")
    graph = auxin.trace(model, example)
    plan = propose(GradMax(), model, graph, {"gate": 2}, batch)
    norms = {key: values.norm(dim=1) for key, values in plan.operations[0].values.items()}
    assert set(norms) == {"gate.weight:0", "up.weight:0"}
    assert all(float(n.std()) < 1e-12 and float(n.min()) > 0 for n in norms.values())


def test_a_model_in_bfloat16_is_measured_in_float32_and_left_alone():
    model, example, batch = case("plain")
    model = model.to(torch.bfloat16)
    example, batch = (tuple(x.to(torch.bfloat16) for x in xs) for xs in (example, batch))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    graph = auxin.trace(model, example)
    seen = []

    def loss(output, target):
        seen.append(output.dtype)
        return output.square().mean()

    event = auxin.widen(model, "trunk.0", 2, graph=graph, method="gradmax", loader=[(batch, None)], loss_fn=loss)
    assert set(seen) == {torch.float32}
    assert torch.equal(model.trunk[0].weight[:5], state["trunk.0.weight"])
    assert event.max_change == 0


def test_missing_data_is_one_clear_sentence():
    model, example, batch = case("plain")
    graph = auxin.trace(model, example)
    for arguments in ({}, {"loader": [(batch, None)]}, {"loss_fn": generic_loss}):
        with pytest.raises(auxin.AuxinError, match=r"pass batches of \(inputs, target\) and loss_fn"):
            auxin.widen(model, "trunk.0", 2, graph=graph, method=GradMax(), **arguments)
    with pytest.raises(auxin.AuxinError, match="no batch"):
        auxin.widen(model, "trunk.0", 2, graph=graph, method=GradMax(), loader=[], loss_fn=generic_loss)
    with pytest.raises(auxin.AuxinError, match="pairs"):
        auxin.widen(model, "trunk.0", 2, graph=graph, method=GradMax(), loader=[batch[0]], loss_fn=generic_loss)


def test_a_tied_embedding_falls_back_and_the_event_says_so():
    model = randomise(CASES["tied"].build()).double()
    ids = CASES["tied"].inputs()
    graph = auxin.trace(model, ids)
    units = {g.name: 2 for g in graph.growable()}
    plan = propose(GradMax(), model, graph, units, ids)
    assert [op.by for op in plan.operations] == [2, 2]
    assert plan.notes == ("embed is read through the axis that writes it, so it grew by the random method",)


@pytest.mark.parametrize("make", [nn.Hardsigmoid, nn.Hardswish])
def test_activations_of_mobile_networks_are_climbed_through(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), make(), nn.Linear(8, 3)).double()
    x = torch.randn(32, 6, dtype=torch.float64)
    graph = auxin.trace(model, x)
    plan = propose(GradMax(), model, graph, {"0": 2}, (x,))
    start = propose(Random(), model, graph, {"0": 2}, (x,))
    assert plan.notes == ()
    norms = [
        outgoing_gradients(copy.deepcopy(model), x, (x,), "0", p.operations[0].values).norm() for p in (plan, start)
    ]
    assert norms[0] > norms[1]
