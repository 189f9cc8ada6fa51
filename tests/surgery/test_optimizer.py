"""Growth in the middle of training: optimizers, schedulers, copies, references and compiled modules go on."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import auxin
from auxin.errors import ConfigError
from auxin.graph.capture import tensors_of
from auxin.surgery import apply
from auxin.surgery.optimizer import regather
from auxin.types import Deepen, GrowthPlan, Widen
from tests.cases import CASES, call, randomise
from tests.surgery.test_properties import cut, kept

Parameters = list[nn.Parameter]
Make = Callable[[Any], torch.optim.Optimizer]

EVERY: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-3, t0=1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=1e-3, max_iter=2, history_size=3),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=1e-3, fused=True),
}
# These take only some nets: Muon matrices without biases, SparseAdam sparse gradients.
ELSEWHERE = {"Muon", "SparseAdam", "Optimizer"}


def build(name: str = "plain", seed: int = 4) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    inputs = CASES[name].inputs()
    assert isinstance(inputs, tuple)
    return randomise(CASES[name].build(), seed).train(), inputs


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...], count: int = 1) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([out.square().mean() for out in call(model, inputs)]).sum()
        loss.backward()
        return loss

    return [float(optimizer.step(closure).detach()) for _ in range(count)][-1]  # type: ignore[arg-type,attr-defined]


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_every_optimizer_of_torch_is_in_this_file() -> None:
    classes = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    assert classes <= set(EVERY) | ELSEWHERE


@pytest.mark.parametrize("name", [name for name in EVERY if name != "LBFGS"])
@pytest.mark.parametrize("case", ["residual", "fused_attention"])
def test_state_is_carried_entry_by_entry(name: str, case: str) -> None:
    model, inputs = build(case)
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, inputs, 3)
    graph = auxin.trace(model, inputs)
    for group in graph.growable():
        states = {key: copy.deepcopy(dict(optimizer.state[p])) for key, p in model.named_parameters()}
        event = auxin.widen(model, group.name, 2, graph=graph, optimizer=optimizer, seed=1)
        axes = kept(graph, event)
        for key, parameter in model.named_parameters():
            state = optimizer.state[parameter]
            assert list(state) == list(states[key])
            for entry, old in states[key].items():
                new = state[entry]
                if torch.is_tensor(old):
                    resized = tuple(
                        n if before != 1 or n == 1 else 1 for n, before in zip(parameter.shape, old.shape, strict=False)
                    )
                    assert new.dim() == old.dim() and (old.dim() != parameter.dim() or tuple(new.shape) == resized)
                    new = cut(new, axes.get(key, {}), parameter.shape)
                assert same(new, old), f"{name}: {entry} of {key} changed for old units"
        assert torch.tensor(train(model, optimizer, inputs)).isfinite()


def test_lbfgs_keeps_its_curvature_pairs() -> None:
    model, inputs = build("called_twice")
    optimizer = EVERY["LBFGS"](model.parameters())
    train(model, optimizer, inputs, 3)
    state = optimizer.state[next(iter(model.parameters()))]
    before = copy.deepcopy(dict(state))
    sizes = {key: (p.shape, p.numel()) for key, p in model.named_parameters()}
    graph = auxin.trace(model, inputs)
    event = auxin.widen(model, "side", 2, graph=graph, optimizer=optimizer)
    axes = kept(graph, event)
    total = sum(p.numel() for p in model.parameters())
    for entry in ("old_dirs", "old_stps"):
        assert before[entry] and len(state[entry]) == len(before[entry])
        for new, old in zip(state[entry], before[entry], strict=True):
            assert new.numel() == total
            parts = new.split([p.numel() for p in model.parameters()])
            olds = old.split([count for _, count in sizes.values()])
            for (key, parameter), part, was in zip(model.named_parameters(), parts, olds, strict=True):
                assert torch.equal(
                    cut(part.view_as(parameter), axes.get(key, {}), parameter.shape), was.view(sizes[key][0])
                )
    assert torch.tensor(train(model, optimizer, inputs)).isfinite()


def test_lbfgs_goes_on_after_a_deepening_and_after_one_that_is_taken_back() -> None:
    model, x = chain(5, 7, 2), torch.randn(8, 5)
    optimizer = torch.optim.LBFGS(model.parameters())
    train(model, optimizer, (x,))
    graph = auxin.trace(model, x)
    state = optimizer.state[model[0].weight]
    before = copy.deepcopy(dict(state))
    with pytest.raises(ConfigError):
        apply(GrowthPlan("mine", (Deepen("1"), Widen("0", 0))), model, graph, optimizer=optimizer)
    assert all(map(torch.equal, state["old_dirs"], before["old_dirs"]))
    train(model, optimizer, (x,))
    before = copy.deepcopy(dict(state))
    auxin.deepen(model, "1", graph=graph, optimizer=optimizer)
    new = sum(p.numel() for p in model.parameters()) - before["d"].numel()
    for entry in ("old_dirs", "old_stps"):
        assert before[entry]
        padded = [nn.functional.pad(old, (0, new)) for old in before[entry]]
        assert all(map(torch.equal, state[entry], padded))
    assert torch.tensor(train(model, optimizer, (x,), 2)).isfinite()


class Custom(torch.optim.Optimizer):
    """Plain descent that keeps a state made from each parameter, and uses it in a way that its shape must allow."""

    def __init__(self, params: Any, start: Callable[[Tensor], Any]) -> None:
        super().__init__(params, {})
        self.start = start

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["own"] = self.start(p)
            for old, new in zip(tensors_of(state["own"]), tensors_of(self.start(p)), strict=True):
                old += new
            p -= 0.01 * p.grad
        return loss


def chain(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with tanh in between."""
    torch.manual_seed(0)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def adafactor(p: Any) -> torch.optim.Optimizer:
    transformers = pytest.importorskip("transformers")
    optimizer: torch.optim.Optimizer = transformers.Adafactor(
        p, lr=1e-3, beta1=0.9, relative_step=False, scale_parameter=False
    )
    return optimizer


@pytest.mark.parametrize("sizes", [(5, 7, 2), (6, 6, 6), (5, 1, 2)])
@pytest.mark.parametrize("make", [adafactor, EVERY["Adafactor"]])
def test_factors_of_rows_and_columns_are_told_apart(make: Make, sizes: tuple[int, ...]) -> None:
    model, x = chain(*sizes), torch.randn(8, sizes[0])
    optimizer = make(model.parameters())

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()

    def factors() -> list[Tensor]:
        states = [optimizer.state[model[k].weight] for k in (0, 2)]
        return [v.clone() for state in states for key, v in state.items() if "row" in key or "col" in key]

    step()
    before = factors()
    auxin.widen(model, "0", 3, graph=auxin.trace(model, x), optimizer=optimizer)
    # The first layer's rows and the second one's columns grow.
    for old, new, by in zip(before, factors(), (3, 0, 0, 3), strict=True):
        assert new.dim() == old.dim()
        assert torch.equal(new.flatten(), nn.functional.pad(old.flatten(), (0, by)))
    step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("start", [
    lambda p: p.detach().flatten().clone(),
    lambda p: p.detach().sum(tuple(range(1, p.dim()))),
    lambda p: [p.detach().clone(), {"norms": p.detach().norm(dim=-1)}],
    lambda p: torch.zeros(()),
    lambda p: torch.zeros(1),
    lambda p: [torch.zeros(11), torch.zeros(2, 9), 3, "text", None],
])  # fmt: skip
def test_states_of_custom_optimizers_follow_or_stay(start: Callable[[Tensor], Any]) -> None:
    model, x = chain(5, 7, 2), torch.randn(8, 5)
    optimizer = Custom(model.parameters(), start)
    train(model, optimizer, (x,))
    old = copy.deepcopy([optimizer.state[p]["own"] for p in model.parameters()])
    shapes = [p.shape for p in model.parameters()]
    auxin.widen(model, "0", 3, graph=auxin.trace(model, x), optimizer=optimizer)
    for p, shape, was in zip(model.parameters(), shapes, old, strict=True):
        for before, after in zip(tensors_of(was), tensors_of(optimizer.state[p]["own"]), strict=True):
            if before.numel() == shape.numel():
                before, after = before.view(shape), after.view(p.shape)
            assert torch.equal(after[tuple(slice(n) for n in before.shape)], before)
    assert torch.tensor(train(model, optimizer, (x,), 2)).isfinite()


@pytest.mark.parametrize("start", [
    lambda p: p.detach() @ p.detach().T,
    lambda p: {"GG": [p.detach() @ p.detach().T, p.detach().T @ p.detach()]},
    lambda p: torch.zeros(p.numel(), 2),
    lambda p: p.detach().flip(0).unsqueeze(0).clone(),
])  # fmt: skip
def test_a_state_that_cannot_follow_is_refused_and_all_is_as_before(start: Callable[[Tensor], Any]) -> None:
    model, x = chain(5, 7, 2), torch.randn(8, 5)
    optimizer = Custom([p for p in model.parameters() if p.dim() == 2], start)
    train(model, optimizer, (x,))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(ConfigError, match=r"Custom keeps a state 'own' of shape .*carry_state=False"):
        auxin.widen(model, "0", 3, graph=auxin.trace(model, x), optimizer=optimizer)
    after = model.state_dict(), optimizer.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(before), tensors_of(after), strict=True))
    assert torch.tensor(train(model, optimizer, (x,), 2)).isfinite()


def test_a_state_that_cannot_follow_may_start_anew() -> None:
    model, x = chain(5, 7, 2), torch.randn(8, 5)
    optimizer = Custom([p for p in model.parameters() if p.dim() == 2], lambda p: p.detach() @ p.detach().T)
    train(model, optimizer, (x,))
    assert auxin.Grower(model, optimizer, x, budget=auxin.count(3), carry_state=False).grow() is not None
    assert not optimizer.state
    assert torch.tensor(train(model, optimizer, (x,), 2)).isfinite()


def test_a_square_matrix_does_not_tell_which_side_a_state_runs_along() -> None:
    model, x = chain(6, 6, 6), torch.randn(8, 6)
    optimizer = Custom(model.parameters(), lambda p: p.detach().sum(0, keepdim=p.dim() == 1))
    train(model, optimizer, (x,))
    with pytest.raises(ConfigError, match=r"'own' of shape \(6,\)"):
        auxin.widen(model, "0", 3, graph=auxin.trace(model, x), optimizer=optimizer)


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free descent (arXiv:2405.15682): the model's weights lie between ``z`` and the average."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 0.3).sub_(p.grad, alpha=0.1 * group["lr"])
                z.sub_(p.grad, alpha=group["lr"])
        return loss


@pytest.mark.parametrize("method", ["random", "net2net"])
def test_a_weight_average_in_the_state_grows_as_the_weights_do(method: str) -> None:
    model, x = chain(5, 7, 2).double(), torch.randn(8, 5, dtype=torch.float64)
    optimizer = ScheduleFree(model.parameters(), lr=0.5)
    train(model, optimizer, (x,), 3)
    optimizer.param_groups[0]["lr"] = 0.0
    twin, second = copy.deepcopy((model, optimizer))
    auxin.widen(model, "0", 3, graph=auxin.trace(model, x), optimizer=optimizer, method=method)
    assert torch.allclose(model(x), twin(x), atol=1e-12)
    for one, its in ((model, optimizer), (twin, second)):
        train(one, its, (x,))
    assert torch.allclose(model(x), twin(x), atol=1e-12)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_on_matrices_beside_adam_on_the_rest() -> None:
    model, inputs = build("called_twice")
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    pair = [torch.optim.Muon(matrices, lr=1e-3), torch.optim.Adam(rest, lr=1e-3)]
    for optimizer in pair:
        train(model, optimizer, inputs)
    before = {key: pair[0].state[p]["momentum_buffer"].clone() for key, p in model.named_parameters() if p.dim() == 2}
    graph = auxin.trace(model, inputs)
    axes = kept(graph, auxin.widen(model, "first", 3, graph=graph, optimizer=pair))
    for key, old in before.items():
        parameter = model.get_parameter(key)
        assert torch.equal(cut(pair[0].state[parameter]["momentum_buffer"], axes.get(key, {}), parameter.shape), old)
    for optimizer in pair:
        assert torch.tensor(train(model, optimizer, inputs)).isfinite()


def test_sparse_adam_on_an_embedding() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 5, sparse=True), nn.Linear(5, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids).mean(1))

    torch.manual_seed(0)
    model, ids = Bag(), torch.randint(9, (3, 4))
    pair = [torch.optim.SparseAdam(list(model.embed.parameters())), torch.optim.SGD(model.head.parameters(), lr=0.1)]
    model(ids).square().mean().backward()
    for optimizer in pair:
        optimizer.step()
    old = {key: value.clone() for key, value in pair[0].state[model.embed.weight].items() if torch.is_tensor(value)}
    graph = auxin.trace(model, (ids,))
    auxin.widen(model, graph.growable()[0], 2, graph=graph, optimizer=pair)
    state = pair[0].state[model.embed.weight]
    assert model.embed.weight.shape == (9, 7)
    assert all(torch.equal(state[key][:, :5], value) for key, value in old.items() if value.dim() == 2)
    for optimizer in pair:
        optimizer.zero_grad()
    model(ids).square().mean().backward()
    for optimizer in pair:
        optimizer.step()


def test_a_sparse_gradient_stays_sparse_and_lists_the_same_rows() -> None:
    model, ids = nn.Sequential(nn.Embedding(9, 5, sparse=True), nn.Linear(5, 2)), torch.randint(9, (3, 4))
    optimizer = torch.optim.SparseAdam(model[0].parameters(), lr=0.1)
    table = model[0].weight
    rows = torch.cat([torch.randn(1, 5), torch.zeros(1, 5)])
    table.grad = torch.sparse_coo_tensor(torch.tensor([[7, 2]]), rows, (9, 5))
    auxin.widen(model, "0", 2, graph=auxin.trace(model, ids), optimizer=optimizer)
    assert table.grad.is_sparse and table.grad.shape == (9, 7)
    assert table.grad.coalesce().indices().tolist() == [[2, 7]]
    assert torch.equal(table.grad.coalesce().values(), nn.functional.pad(rows.flip(0), (0, 2)))
    model(ids).square().mean().backward()  # adds up
    optimizer.step()
    assert table.grad.is_sparse and table.isfinite().all()


def test_a_sparse_tensor_is_rearranged_along_any_dimension() -> None:
    dense = torch.tensor([[0.0, 2.0], [0.0, 0.0], [5.0, 0.0]])
    for dim, index in ((0, [2, -1, 0, 1]), (1, [1, -1])):
        for sparse in (dense.to_sparse(1), dense.to_sparse(2)):
            moved = regather(sparse, {dim: torch.tensor(index)})
            assert moved.is_sparse and moved.sparse_dim() == sparse.sparse_dim()
            assert torch.equal(moved.to_dense(), regather(dense, {dim: torch.tensor(index)}))


def test_groups_keep_order_members_and_hyperparameters() -> None:
    model, inputs = build("residual")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": others[::-1], "weight_decay": 0.0, "lr": 0.5, "mine": "norms"}, {"params": decayed}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    train(model, optimizer, inputs)
    before = [
        (list(map(id, g["params"])), {k: v for k, v in g.items() if k != "params"}) for g in optimizer.param_groups
    ]
    graph = auxin.trace(model, inputs)
    for group in graph.growable():
        auxin.widen(model, group.name, 1, graph=graph, optimizer=optimizer, method="net2net")
    after = [
        (list(map(id, g["params"])), {k: v for k, v in g.items() if k != "params"}) for g in optimizer.param_groups
    ]
    assert after == before
    train(model, optimizer, inputs)


def test_an_optimizer_that_has_not_stepped_yet() -> None:
    model, inputs = build()
    optimizer = torch.optim.Adam(model.parameters())
    graph = auxin.trace(model, inputs)
    auxin.widen(model, graph.growable()[0], 2, graph=graph, optimizer=optimizer)
    assert not optimizer.state
    assert torch.tensor(train(model, optimizer, inputs, 2)).isfinite()


def test_a_grown_optimizer_state_dict_loads_into_a_replayed_model() -> None:
    model, inputs = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train(model, optimizer, inputs, 2)
    graph = auxin.trace(model, inputs)
    history = auxin.History([auxin.widen(model, graph.growable()[0], 2, graph=graph, optimizer=optimizer)])
    fresh, _ = build()
    history.replay(fresh)
    fresh.load_state_dict(model.state_dict())
    fresh.train()
    other = torch.optim.Adam(fresh.parameters(), lr=1e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, two in ((model, optimizer), (fresh, other)):
        torch.manual_seed(3)
        train(one, two, inputs, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_schedulers_go_on_as_if_nothing_had_happened() -> None:
    rates: list[list[float]] = []
    for grows in (False, True):
        model, inputs = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        graph = auxin.trace(model, inputs)
        seen = []
        for epoch in range(8):
            train(model, optimizer, inputs)
            schedule.step()
            if grows and epoch == 3:
                state = copy.deepcopy(schedule.state_dict())
                auxin.widen(model, graph.growable()[0], 2, graph=graph, optimizer=optimizer)
                assert schedule.state_dict() == state and schedule.optimizer is optimizer
            seen.append(optimizer.param_groups[0]["lr"])
        rates.append(seen)
    assert rates[0] == rates[1]


@pytest.mark.parametrize("method", ["random", "net2net"])
def test_averaged_copies_grow_alike(method: str) -> None:
    model, inputs = build("residual")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        train(model, optimizer, inputs)
        average.update_parameters(model)
    average.eval()
    with torch.no_grad():
        before = average(*inputs)
    grower = auxin.Grower(
        model, optimizer, inputs, method=method, trigger=auxin.every(1), budget=auxin.count(2), ema=(average,)
    )
    assert grower.step(0) is not None
    with torch.no_grad():
        after = average(*inputs)
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in model.parameters()]
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5
    train(model, optimizer, inputs)
    average.update_parameters(model)
    assert int(average.n_averaged) == 4


def test_gradients_are_carried() -> None:
    model, inputs = build()
    sum(out.square().mean() for out in call(model, inputs)).backward()
    old = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    graph = auxin.trace(model, inputs)
    axes = kept(graph, auxin.widen(model, graph.growable()[0], 2, graph=graph))
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape
        assert torch.equal(cut(parameter.grad, axes.get(key, {}), parameter.shape), old[key])


def test_accumulating_gradients_across_a_growth_event_works() -> None:
    model, inputs = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    graph = auxin.trace(model, inputs)
    sum(out.square().mean() for out in call(model, inputs)).backward()
    auxin.widen(model, graph.growable()[0], 2, graph=graph, optimizer=optimizer)
    sum(out.square().mean() for out in call(model, inputs)).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_growth_within_a_region_of_autocast_sees_the_weights_of_now() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)),
        torch.randn(16, 6),
    )
    optimizer, graph = torch.optim.AdamW(model.parameters(), lr=0.1), auxin.trace(model, x)
    with torch.autocast("cpu", torch.bfloat16):  # keeps casts of the weights until it ends
        model(x).square().mean().backward()
        optimizer.step()
        for group, method in (("0", "random"), ("2", "net2net")):
            auxin.widen(model, group, 2, graph=graph, optimizer=optimizer, method=method)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_a_parameter_without_gradient_stays_so() -> None:
    model, inputs = build()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.startswith("trunk.0"))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer, inputs)
    graph = auxin.trace(model, inputs)
    auxin.widen(model, graph.growable()[0], 2, graph=graph, optimizer=optimizer, method="net2net")
    assert {key for key, p in model.named_parameters() if not p.requires_grad} == {"trunk.0.weight", "trunk.0.bias"}
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in model.parameters())
    train(model, optimizer, inputs)


def test_references_and_a_living_loss_from_before_do_not_break_the_next_backward() -> None:
    model, inputs = build("residual")
    optimizer = torch.optim.Adam(model.parameters())
    held = dict(model.named_parameters())
    loss = sum(out.square().mean() for out in call(model, inputs))
    loss.backward(retain_graph=True)
    graph = auxin.trace(model, inputs)
    auxin.widen(model, graph.growable()[0], 2, graph=graph, optimizer=optimizer)
    assert all(held[key] is p for key, p in model.named_parameters())
    train(model, optimizer, inputs, 2)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in held.values())
    assert float(loss) >= 0


def test_channels_last_and_tied_weights_survive() -> None:
    model, inputs = build()
    model = model.to(memory_format=torch.channels_last)
    graph = auxin.trace(model, inputs)
    auxin.widen(model, graph.growable()[1], 3, graph=graph)
    assert model.trunk[4].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,index]
    tied, ids = build("tied")
    graph = auxin.trace(tied, ids)
    for group in graph.growable():
        auxin.widen(tied, group, 2, graph=graph)
    assert tied.embed.weight is tied.head.weight  # type: ignore[union-attr]
    assert len(list(tied.parameters())) == len(list(build("tied")[0].parameters()))


def test_a_compiled_model_grows_and_runs() -> None:
    model, inputs = build("residual")
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.Adam(model.parameters())
    train(compiled, optimizer, inputs)  # type: ignore[arg-type]
    graph = auxin.trace(compiled, inputs)  # type: ignore[arg-type]
    model.eval()
    with torch.no_grad():
        before = compiled(*inputs)
    auxin.widen(compiled, graph.growable()[0], 2, graph=graph, optimizer=optimizer)  # type: ignore[arg-type]
    with torch.no_grad():
        after = compiled(*inputs)
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5
    model.train()
    assert torch.tensor(train(compiled, optimizer, inputs, 2)).isfinite()  # type: ignore[arg-type]
    assert torch.equal(compiled(*inputs), model(*inputs))


def test_of_two_optimizers_the_one_that_trains_such_parameters_gets_the_new_ones() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    muon, adam = torch.optim.Muon(matrices, lr=0.01), torch.optim.Adam(vectors)
    x = torch.randn(8, 5)

    def step() -> None:
        model(x).square().sum().backward()
        muon.step()
        adam.step()

    step()
    grower = auxin.Grower(model, [muon, adam], x[:2], budget=auxin.count(2))
    grower.apply(auxin.GrowthPlan("test", (Deepen("1"),)))
    grower.grow()
    block = model[1].grown[0].map
    assert [id(p) for p in muon.param_groups[0]["params"]] == [*map(id, matrices), id(block.weight)]
    assert [id(p) for p in adam.param_groups[0]["params"]] == [*map(id, vectors), id(block.bias)]
    step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_alone_takes_a_layer_of_matrices_and_refuses_one_with_vectors() -> None:
    def grown(activation: nn.Module) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(5, 7, bias=False), activation, nn.Linear(7, 2, bias=False))
        x = torch.randn(8, 5)
        muon = torch.optim.Muon(model.parameters(), lr=0.01)
        auxin.deepen(model, "1", graph=auxin.trace(model, x), optimizer=muon)
        assert torch.tensor(train(model, muon, (x,))).isfinite()
        return model

    assert grown(nn.ReLU())[1].grown[0].map.bias is None, "as the layer before it"
    with pytest.raises(ConfigError, match="Muon trains matrices only"):
        grown(nn.GELU())  # which is blended in, by a number


@pytest.mark.parametrize("replayed", [False, True])
def test_state_and_gradient_lie_in_memory_as_the_parameter_does(replayed: bool) -> None:
    """A fused optimizer pairs the entries of both by their place in memory, whatever the strides."""

    def build() -> tuple[nn.Sequential, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(4, 3),
        ).to(memory_format=torch.channels_last)  # fmt: skip
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)

    model, optimizer = build()
    x = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    grower = auxin.Grower(model, optimizer, x, budget=auxin.count(3, "neurons"))
    grower.grow()
    if replayed:
        again, fresh = build()
        grower.history.replay(again, fresh)
        again.load_state_dict(model.state_dict())
        fresh.load_state_dict(optimizer.state_dict())
        model, optimizer = again, fresh
    for parameter in model.parameters():
        moments = [optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")]
        assert all(one.stride() == parameter.stride() for one in moments)
        assert parameter.grad is None or parameter.grad.stride() == parameter.stride()
    assert not model[2].weight.is_contiguous() and model[2].weight.shape[1] > 4
