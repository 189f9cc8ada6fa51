"""Splitting steepest descent against dense references in float64."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import auxin
from auxin.budgets import Allocated, parse_cap
from auxin.methods.splitting import Splitting
from auxin.ranking import choose, decide
from auxin.statistics import activations
from auxin.statistics.batches import Batch, measuring
from auxin.statistics.splitting import SplittingMatrices, smallest
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


def matrices_of(model, graph, batch, groups):
    with measuring(model):
        return SplittingMatrices(model, graph, [Batch(batch, None)], generic_loss, groups)


def propose(method, model, graph, budget, batch, seed=0):
    return method.propose(
        model, graph, budget, generator=generator(seed), batches=[(batch, None)], loss_fn=generic_loss
    )


def test_the_matrices_of_a_relu_convolution_with_batch_norm_are_the_written_formula():
    """S = Σ g act''(z) (c x)(c x)ᵀ with x the patches, z the norm's output, c = γ / sqrt(var + eps)."""
    model, example, batch = case("plain")
    conv, norm = model.trunk[0], model.trunk[1]
    z = norm(conv(batch[0])).detach().requires_grad_()
    h = F.relu(z)
    rest = model.head(model.trunk[3:](h).flatten(2).mean(-1))
    gradient = torch.autograd.grad(generic_loss(rest), h)[0]
    s = torch.sigmoid(3 * z.detach())
    bend = (gradient * 3 * s * (1 - s)).flatten(2)
    patches = F.unfold(batch[0], 3, padding=1)
    c = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    dense = torch.einsum("nop,ndp,nep->ode", bend, patches, patches) * c.square()[:, None, None]
    ours = matrices_of(model, auxin.trace(model, example), batch, ["trunk.0"]).dense("trunk.0")
    assert torch.allclose(ours, dense, rtol=1e-10, atol=1e-12 * float(dense.abs().max()))


def test_the_matrices_of_a_softplus_layer_are_the_hessian_by_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2)).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    gradient = torch.autograd.grad(
        generic_loss(model[2](hidden := model[1](model[0](x)).detach().requires_grad_())), hidden
    )[0]
    dense, step = torch.zeros(4, 3, 3, dtype=torch.float64), 1e-3

    def local(i, theta):
        return float((gradient[:, i] * F.softplus(x @ theta + model[0].bias[i].detach())).sum())

    axes = torch.eye(3, dtype=torch.float64) * step
    for i in range(4):
        theta = model[0].weight[i].detach()
        for a in range(3):
            for b in range(3):
                corners = [local(i, theta + p * axes[a] + q * axes[b]) * p * q for p in (1, -1) for q in (1, -1)]
                dense[i, a, b] = sum(corners) / (4 * step**2)
    ours = matrices_of(model, auxin.trace(model, x), (x,), ["0"]).dense("0")
    assert torch.allclose(ours, dense, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "residual", "grouped", "unet", "depthwise", "fused_attention", "rms_norm"])
def test_the_fast_eigenpairs_are_those_of_the_dense_matrices(name):
    model, example, batch = case(name)
    graph = auxin.trace(model, example)
    matrices = matrices_of(model, graph, batch, [g.name for g in graph.growable()])
    values, vectors = smallest(matrices, 200, generator())
    for group in matrices.units:
        dense = matrices.dense(group)
        expected = torch.linalg.eigvalsh(dense)
        scale = expected.abs().amax(1)
        assert ((values[group] - expected[:, 0]).abs() <= 1e-6 * scale).all(), group
        v = vectors[group]
        assert torch.allclose(v.norm(dim=1), torch.ones(len(v), dtype=torch.float64))
        residual = torch.einsum("nij,nj->ni", dense, v) - values[group][:, None] * v
        assert (residual.norm(dim=1) <= 1e-5 * scale).all(), group


SMOOTH = [("residual", "trunk.stem.0"), ("residual", "trunk.inner.0"), ("depthwise", "trunk.6"), ("unet", "down.0"),
          ("fused_attention", "qkv[num_heads]"), ("rms_norm", "gate"), ("called_twice", "first"), ("glu", "up[1]"),
          ("grouped", "trunk.block.3")]  # fmt: skip


@pytest.mark.parametrize(("name", "group"), SMOOTH)
def test_the_predicted_change_of_the_loss_is_the_measured_one_as_the_step_goes_to_zero(name, group):
    """Real surgery, one neuron: slope 1 with an error of second order in the step."""
    errors = []
    for step in (3e-2, 1e-2, 3e-3):
        model, example, batch = case(name)
        graph = auxin.trace(model, example)
        before = float(generic_loss(call(model, batch)))
        matrices = matrices_of(model, graph, batch, [group])
        values, _ = smallest(matrices, 100, generator())
        best = int(values[group].argmin())
        plan = propose(
            Splitting(step_size=step, asymmetry=0.0, iterations=100, num_batches=1),
            model,
            graph,
            Allocated({group: 1}),
            batch,
        )
        assert plan.operations[0].parents == (best,)
        auxin.surgery.apply(plan, model, graph)
        predicted = 0.5 * step**2 * float(values[group][best])
        errors.append(abs((float(generic_loss(call(model, batch))) - before) / predicted - 1))
    assert errors[-1] < 1e-2
    assert errors[-1] < errors[0] / 10 or errors[0] < 1e-6


def test_a_step_of_zero_changes_nothing_in_eval_and_in_train_mode():
    model, example, batch = case("residual")
    model.train()
    before = call(model, batch)[0].detach()
    graph = auxin.trace(model, example)
    plan = propose(Splitting(step_size=0.0), model, graph, auxin.count(3), batch)
    assert plan.preserves and any(op.offsets for op in plan.operations)
    auxin.surgery.apply(plan, model, graph)
    assert (call(model, batch)[0] - before).abs().max() < 1e-11


def test_only_negative_eigenvalues_split_and_the_budget_is_met_exactly():
    model, example, batch = case("plain")
    graph = auxin.trace(model, example)
    matrices = matrices_of(model, graph, batch, ["trunk.0", "trunk.4"])
    values, _ = smallest(matrices, 100, generator())
    plan = propose(Splitting(iterations=100), model, graph, Allocated({"trunk.0": 9, "trunk.4": 2}), batch)
    first, second = plan.operations
    negative = {int(i) for i in (values["trunk.0"] < 0).nonzero().flatten()}
    assert {p for p in first.parents if p >= 0} == negative and first.by == len(first.parents) == 9
    assert list(second.parents) == values["trunk.4"].argsort()[:2].tolist()
    assert any("random" in note for note in plan.notes)
    auxin.surgery.apply(plan, model, graph)
    assert (graph["trunk.0"].size, graph["trunk.4"].size) == (14, 9)


def test_a_global_budget_splits_the_most_negative_neurons_of_all_groups():
    model, example, batch = case("residual")
    graph = auxin.trace(model, example)
    groups = [g.name for g in graph.growable()]
    values, _ = smallest(matrices_of(model, graph, batch, groups), 100, generator())
    ranked = sorted((float(v), name, i) for name in groups for i, v in enumerate(values[name]))[:5]
    budget = decide(auxin.count(5, scope="global"), graph)
    plan = propose(Splitting(iterations=100), model, graph, budget, batch)
    assert {(op.group, p) for op in plan.operations for p in op.parents} == {(name, i) for _, name, i in ranked}
    grower = auxin.Grower(model, None, example, method=Splitting(), budget=auxin.count(5, scope="global"))
    event = grower.grow(loader=[(batch, None)], loss_fn=generic_loss)
    assert sum(c.after - c.before for c in event.changes) == 5


def test_a_depthwise_filter_and_its_norm_are_copied_whole_and_the_next_layer_is_halved():
    model, example, batch = case("depthwise")
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = auxin.trace(model, example)
    plan = propose(Splitting(asymmetry=0.0), model, graph, Allocated({"trunk.0": 1}), batch)
    (parent,) = plan.operations[0].parents
    auxin.surgery.apply(plan, model, graph)
    new = model.state_dict()
    for name in ("trunk.3.weight", "trunk.4.weight", "trunk.4.bias", "trunk.4.running_mean", "trunk.4.running_var"):
        assert torch.equal(new[name], torch.cat([old[name], old[name][[parent]]])), name
    half = old["trunk.6.weight"][:, parent] / 2
    assert torch.equal(new["trunk.6.weight"][:, parent], half) and torch.equal(new["trunk.6.weight"][:, -1], half)
    moved = new["trunk.0.weight"][parent] - old["trunk.0.weight"][parent]
    assert moved.norm() == pytest.approx(1e-2)
    assert torch.allclose(new["trunk.0.weight"][-1], old["trunk.0.weight"][parent] - moved, atol=1e-15)


def test_offsets_move_parent_and_copy_apart_and_leave_the_optimizer_alone():
    model, example, batch = case("plain")
    optimizer = torch.optim.Adam(model.parameters())
    generic_loss(call(model, batch)).backward()
    optimizer.step()
    weight = model.trunk[0].weight
    old, moment = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    graph = auxin.trace(model, example)
    offset = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    fresh = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    key = "trunk.0.weight:0"
    op = Widen("trunk.0", 2, (3, -1), {key: fresh}, (0.5, 0.0), {key: offset})
    event = auxin.surgery.apply(auxin.GrowthPlan("test", (op,), preserves=False), model, graph, optimizer=optimizer)
    assert torch.equal(weight[3], old[3] + offset[0]) and torch.equal(weight[5], old[3] - offset[0])
    assert torch.equal(weight[6], fresh[1])
    assert torch.equal(weight[[0, 1, 2, 4]], old[[0, 1, 2, 4]])
    assert torch.equal(optimizer.state[weight]["exp_avg"][:5], moment)
    history = auxin.History()
    history.append(event)
    again = CASES["plain"].build().double()
    auxin.History.from_json(history.to_json()).replay(again)
    again.load_state_dict(model.state_dict())


def test_groups_times_channels_can_both_grow_in_one_plan():
    """Values made for the old number of groups still fit when the groups grew first."""
    model, example, batch = case("grouped")
    graph = auxin.trace(model, example)
    before = call(model, batch)[0].detach()
    event = auxin.Grower(model, None, example, method="random", budget=auxin.count(2)).grow()
    assert len(event.changes) == len(graph.growable())
    assert (call(model, batch)[0] - before).abs().max() < 1e-11


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), number=st.integers(1, 40), scope=st.sampled_from(["per_group", "global"]),
    groups=st.sampled_from([None, ["trunk.stem.0"]]),
)  # fmt: skip
def test_ranking_spends_the_budget_to_the_last_neuron(seed, number, scope, groups):
    torch.manual_seed(seed)
    scores = {g.name: torch.randn(g.size).tolist() for g in RESIDUAL.growable()}
    budget = decide(auxin.count(number, scope=scope, groups=groups), RESIDUAL)
    chosen, rest = choose(budget, RESIDUAL, scores)
    total = sum(map(len, chosen.values())) + sum(rest.values())
    assert total == sum(budget.units.values())
    assert all(scores[name][i] < 0 for name, units in chosen.items() for i in units)
    assert all(len(set(units)) == len(units) for units in chosen.values())
    if scope == "per_group":
        assert all(len(chosen.get(n, ())) + rest.get(n, 0) == by for n, by in budget.units.items())


RESIDUAL = auxin.trace(*(lambda m, e, _: (m, e))(*case("residual")))


@pytest.mark.parametrize("of", ["parameters", "flops"])
def test_a_global_budget_of_parameters_is_not_exceeded_and_neither_is_the_cap(of):
    scores = {g.name: [-1.0 - i for i in range(g.size)] for g in RESIDUAL.growable()}
    measure = RESIDUAL.num_parameters if of == "parameters" else RESIDUAL.flops
    for cap in (None, parse_cap(f"params<={RESIDUAL.num_parameters() + 200}")):
        budget = decide(auxin.ratio(0.3, of=of, scope="global"), RESIDUAL, cap)
        chosen, rest = choose(budget, RESIDUAL, scores)
        sizes = {g.name: g.size + len(chosen.get(g.name, ())) + rest.get(g.name, 0) for g in RESIDUAL.growable()}
        assert measure() < measure(sizes) <= measure() * 1.3
        assert cap is None or cap.holds(RESIDUAL, {n: s - RESIDUAL[n].size for n, s in sizes.items()})


def test_groups_that_cannot_be_treated_fall_back_and_the_event_says_so():
    model = randomise(CASES["tied"].build()).double()
    ids = CASES["tied"].inputs()
    graph = auxin.trace(model, ids)
    plan = propose(Splitting(), model, graph, Allocated({g.name: 2 for g in graph.growable()}), ids)
    assert [op.by for op in plan.operations] == [2, 2]
    assert any("embed is read through the axis that writes it, so 2" in note for note in plan.notes)
    model, example, batch = case("grouped")
    graph = auxin.trace(model, example)
    plan = propose(Splitting(), model, graph, Allocated({g.name: 1 for g in graph.growable()}), batch)
    assert sum("whole groups of a grouped convolution" in note for note in plan.notes) == 1


def test_splitting_measures_a_bfloat16_model_in_float32_and_protects_its_buffers():
    model, example, batch = case("plain")
    model = model.to(torch.bfloat16).train()
    example, batch = (tuple(x.to(torch.bfloat16) for x in xs) for xs in (example, batch))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    seen = []

    def loss(output, target):
        seen.append(output.dtype)
        return output.square().mean()

    graph = auxin.trace(model, example)
    plan = Splitting().propose(
        model, graph, Allocated({"trunk.0": 2}), generator=generator(), batches=[(batch, None)], loss_fn=loss
    )
    assert set(seen) == {torch.float32} and model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    auxin.surgery.apply(plan, model, graph)
    assert model.trunk[0].weight.shape[0] == 7


class Mixed(nn.Module):
    """A forward with its own region of autocast."""

    def __init__(self, model, enabled):
        super().__init__()
        self.model, self.enabled = model, enabled

    def forward(self, *x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return self.model(*x)


@pytest.mark.parametrize("name", ["plain", "depthwise", "fused_attention"])
def test_under_autocast_in_the_forward_the_matrices_are_those_without_but_for_rounding(name):
    model = randomise(CASES[name].build())
    batch = tuple(torch.randn(16, *x.shape[1:], generator=generator(5)) for x in CASES[name].inputs())
    found = []
    for enabled in (False, True):
        mixed = Mixed(model, enabled)
        graph = auxin.trace(mixed, batch)
        matrices = matrices_of(mixed, graph, batch, [group.name for group in graph.growable()])
        with measuring(mixed):
            found.append({group: matrices.dense(group) for group in matrices.units})
    assert found[0].keys() == found[1].keys() and found[0]
    for group, exact in found[0].items():
        assert found[1][group].dtype == torch.float32
        assert float((found[1][group] - exact).norm() / exact.norm()) < 0.05


def test_a_plan_is_proposed_under_autocast_in_the_forward():
    torch.manual_seed(0)
    mixed = Mixed(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), True)
    x = torch.randn(16, 6)
    event = auxin.widen(
        mixed, "model.2", 2, graph=auxin.trace(mixed, x), method="splitting", loader=[(x, torch.randint(3, (16,)))],
        loss_fn=lambda output, target: F.cross_entropy(output.float(), target),
    )  # fmt: skip
    assert event.changes[0].after == 10 and not any("random" in note for note in event.notes)


def test_averaged_weights_are_split_around_their_own_values():
    model, example, batch = case("plain")
    averaged = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        averaged.module.trunk[0].weight.add_(0.3)
    theirs = averaged.module.trunk[0].weight.detach().clone()
    graph = auxin.trace(model, example)
    plan = propose(Splitting(), model, graph, Allocated({"trunk.0": 1}), batch)
    (op,) = plan.operations
    auxin.surgery.apply(plan, model, graph, ema=[averaged])
    offset, parent = op.offsets["trunk.0.weight:0"][0], op.parents[0]
    assert torch.allclose(averaged.module.trunk[0].weight[parent], theirs[parent] + offset, atol=1e-15)
    assert torch.allclose(averaged.module.trunk[0].weight[-1], theirs[parent] - offset, atol=1e-15)


@pytest.mark.parametrize(
    "make",
    [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.Tanh],
)
def test_every_common_activation_module_bends(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), make(), nn.Linear(8, 3)).double()
    x = torch.randn(32, 6, dtype=torch.float64)
    graph = auxin.trace(model, x)
    values, _ = smallest(matrices_of(model, graph, (x,), ["0"]), 20, generator())
    assert (values["0"] < 0).any()


def test_a_piecewise_linear_activation_bends_as_its_relus_do():
    z = torch.linspace(-8, 8, 41, dtype=torch.float64, requires_grad=True)
    for func, kwargs, ours in (
        (F.hardtanh, {"min_val": -2.0, "max_val": 3.0}, activations.hardtanh),
        (F.hardsigmoid, {}, activations.hardsigmoid),
        (F.hardswish, {}, activations.hardswish),
    ):
        assert torch.allclose(ours(z, **kwargs), func(z, **kwargs), atol=1e-15), func
    slope = torch.full((1,), 0.2, dtype=torch.float64)
    assert torch.allclose(activations.prelu(z[None], slope), F.prelu(z[None], slope), atol=1e-15)
    bend = torch.autograd.grad(torch.autograd.grad(activations.hardtanh(z).sum(), z, create_graph=True)[0].sum(), z)[0]
    low, high = torch.sigmoid(3 * (z + 1)), torch.sigmoid(3 * (z - 1))
    assert torch.allclose(bend, 3 * low * (1 - low) - 3 * high * (1 - high), atol=1e-12)


def test_an_operator_without_a_second_derivative_leaves_the_groups_to_random_growth():
    class Net(nn.Sequential):
        def forward(self, x):
            return self[1](torch.ops.aten.hardsigmoid(self[0](x)))

    model = Net(nn.Linear(4, 6), nn.Linear(6, 2)).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    plan = propose(Splitting(), model, auxin.trace(model, x), auxin.count(2), (x,))
    assert plan.operations[0].by == 2 and plan.operations[0].values
    assert plan.notes == (
        "0 is in a model with an operator that has no second derivative, so 2 of its new neurons are random",
    )


@pytest.mark.parametrize("name", ["plain", "residual", "rms_norm"])
def test_with_unequal_shares_an_event_descends_and_predicts_its_change_to_first_order(name):
    errors = []
    for step in (1e-4, 1e-5):
        model, example, batch = case(name)
        graph = auxin.trace(model, example)
        before = float(generic_loss(call(model, batch)))
        plan = propose(Splitting(step_size=step, num_batches=1), model, graph, auxin.count(2), batch)
        auxin.surgery.apply(plan, model, graph)
        change = float(generic_loss(call(model, batch))) - before
        predicted, measured = map(float, re.findall(r"-?\d\.\d+e-\d+", plan.notes[0]))
        assert change < 0 and measured == pytest.approx(change, rel=1e-2)
        errors.append(abs(predicted / change - 1))
    assert errors[1] < max(errors[0] / 3, 1e-2)


def test_an_eigenvalue_that_is_zero_but_for_rounding_is_no_saddle():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 3), nn.Softplus(), nn.Linear(3, 1))
    with torch.no_grad():
        model[2].weight.abs_()
    x = torch.randn(5, 30)
    plan = Splitting(num_batches=1).propose(
        model, auxin.trace(model, x), auxin.count(3), generator=generator(), batches=[(x, None)],
        loss_fn=lambda output, target: output.sum(),
    )  # fmt: skip
    assert plan.operations[0].parents == ()
