"""Which optimizer, and which of its groups, trains what growth adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import auxin
from auxin.errors import ConfigError
from auxin.surgery import apply
from auxin.types import Deepen, GrowthPlan


class Adversaries(nn.Module):
    """Two nets in one module, each with its own optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.gen = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 6))
        self.disc = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.disc(self.gen(x))


@pytest.mark.parametrize("sites", [("disc.1", "gen.1"), ("gen.1", "disc.1")])
def test_each_block_is_trained_by_the_optimizer_of_the_net_that_it_is_in(sites: tuple[str, str]) -> None:
    model, x = Adversaries(), torch.randn(2, 4)
    optimizers = {"gen": Adam(model.gen.parameters()), "disc": Adam(model.disc.parameters())}
    graph = auxin.trace(model, x)
    for site in sites:
        auxin.deepen(model, site, graph=graph, optimizer=list(optimizers.values()))
    for name, optimizer in optimizers.items():
        mine = dict(getattr(model, name).named_parameters())
        assert len(mine) == 7
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in mine.values()}


def test_a_block_gets_the_learning_rate_of_the_layers_around_it() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)
    )  # fmt: skip
    groups = [{"params": list(model[:2].parameters()), "lr": 1e-6}, {"params": list(model[2:].parameters()), "lr": 1.0}]
    optimizer, graph = Adam(groups), auxin.trace(model, torch.randn(2, 4))
    for site in ("4", "1"):  # the head first: its Blend is of the same kind as the backbone's
        auxin.deepen(model, site, graph=graph, optimizer=optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for name, p in model.named_parameters() if "1.grown" in name} == {1e-6}
    assert {rates[id(p)] for name, p in model.named_parameters() if "4.grown" in name} == {1.0}


@pytest.mark.parametrize(
    "grow", [lambda *a, **k: auxin.widen(a[0], "0", 2, **k), lambda *a, **k: auxin.deepen(a[0], "1", **k)]
)
def test_another_models_optimizer_is_refused(grow: Callable[..., Any]) -> None:
    model, other = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    graph, optimizer = auxin.trace(model, torch.randn(2, 4)), SGD(other.parameters(), 0.1)
    with pytest.raises(ConfigError, match="no parameter of this model"):
        grow(model, graph=graph, optimizer=optimizer)
    assert model[0].out_features == 8
    assert len(optimizer.param_groups[0]["params"]) == 4


class SAM(Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021) as most people write it: around an optimizer of its own."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {"rho": 0.05})
        self.base_optimizer = SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        with torch.no_grad():
            for p in parameters:
                self.state[p]["old_p"] = p.clone()
                p.add_(0.05 * p.grad / (p.grad.norm() + 1e-12))  # type: ignore[operator,union-attr]
        self.zero_grad()
        with torch.enable_grad():
            closure().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for p in parameters:
                p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()


def test_the_optimizer_inside_another_one_follows() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
    optimizer = SAM(model.parameters())

    def closure() -> Tensor:
        return model(x).square().mean()

    def train() -> float:
        for _ in range(5):
            optimizer.zero_grad()
            closure().backward()  # type: ignore[no-untyped-call]
            optimizer.step(closure)
        return float(closure())

    first, graph = train(), auxin.trace(model, x[:2])
    old = optimizer.base_optimizer.state[model[0].weight]["momentum_buffer"].clone()
    auxin.widen(model, "0", 4, graph=graph, optimizer=optimizer)
    auxin.deepen(model, "1", graph=graph, optimizer=optimizer)
    momentum = optimizer.base_optimizer.state[model[0].weight]["momentum_buffer"]
    assert torch.equal(momentum[:8], old)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    assert train() < first


def test_a_layer_that_no_optimizer_trains_grows_with_a_note() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    grower = auxin.Grower(model, SGD(model[2:].parameters(), 0.1), torch.randn(2, 4), budget=auxin.ratio(0.5))
    assert grower.grow().notes == ("group 0: no optimizer trains 0.weight, so its new entries stay as they are",)


class Bag(nn.Module):
    """A table of words with a row for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6, padding_idx=0), nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.table(words).sum(1))


@pytest.mark.parametrize("method", ["random", "orthogonal", "net2net", "splitting", "firefly", "gradmax"])
def test_the_padding_row_of_an_embedding_stays_zero(method: str) -> None:
    torch.manual_seed(0)
    model, words = Bag(), torch.randint(0, 10, (16, 5))
    batches = [(words, torch.randint(0, 3, (16,)))]
    graph = auxin.trace(model, words[:2])
    auxin.widen(model, "table", 2, graph=graph, method=method, loader=batches, loss_fn=nn.CrossEntropyLoss())
    assert model.table.weight.shape == (10, 8)
    assert model.table.weight[0].abs().max() == 0
    assert model.table.weight[1:, 6:].abs().max() > 0


class Additive(nn.Module):
    """A residual block that normalises first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def layered() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), Additive(), Additive(), nn.Linear(6, 2))


@pytest.mark.parametrize("site", ["1", "2"])
def test_a_copy_joins_the_groups_of_the_module_that_it_is_of(site: str) -> None:
    model = layered()
    optimizer = Adam([{"params": list(part.parameters()), "lr": 10.0**-k} for k, part in enumerate(model)])
    auxin.deepen(model, site, graph=auxin.trace(model, torch.randn(2, 4)), optimizer=optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for name, p in model.named_parameters() if "grown" in name} == {10.0 ** -int(site)}


@pytest.mark.parametrize("site", ["1", "2"])
def test_a_copys_matrices_stay_with_muon(site: str) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    model = layered()
    matrices = [p for part in (model[1], model[2]) for p in part.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not one for one in matrices)]
    muon, adam = torch.optim.Muon(matrices, lr=0.02), Adam(others)
    auxin.deepen(model, site, graph=auxin.trace(model, torch.randn(2, 4)), optimizer=[muon, adam])
    mine = {id(p) for p in muon.param_groups[0]["params"]}
    assert all((p.ndim == 2) == (id(p) in mine) for name, p in model.named_parameters() if "grown" in name)


def test_a_replay_at_the_start_of_a_warm_up_chooses_the_same_groups() -> None:
    def build() -> tuple[nn.Sequential, Adam, torch.optim.lr_scheduler.LambdaLR]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
        groups = [{"params": list(part.parameters()), "lr": lr} for part, lr in ((model[:2], 1e-4), (model[2:], 1e-3))]
        optimizer = Adam(groups)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))

    model, optimizer, schedule = build()
    for _ in range(3):
        optimizer.step()
        schedule.step()
    # The head first: its Blend is of the same kind as the backbone's, and of another learning rate.
    trigger = auxin.planned([{"after": 1, "deepen": {"4": 1}}, {"after": 2, "deepen": {"1": 1}}])
    grower = auxin.Grower(model, optimizer, torch.randn(2, 4), trigger=trigger)
    assert grower.step(0) is not None and grower.step(1) is not None
    again, fresh, _ = build()
    grower.history.replay(again, fresh)
    sizes = [[len(group["params"]) for group in one.param_groups] for one in (optimizer, fresh)]
    assert sizes[0] == sizes[1] == [5, 9]


def test_an_optimizer_without_a_learning_rate_trains_a_new_block() -> None:
    class Own(SGD):
        """Finds its rate by itself, as Adafactor may."""

        def __init__(self, params: Iterable[Tensor]) -> None:
            super().__init__(params, lr=0.1)
            for group in self.param_groups:
                group["lr"] = None

    model = layered()
    optimizer = Own(model.parameters())
    auxin.deepen(model, "1", graph=auxin.trace(model, torch.randn(2, 4)), optimizer=optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_an_optimizer_in_autograds_own_hooks_is_refused() -> None:
    from torch.distributed.optim import _apply_optimizer_in_backward

    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    _apply_optimizer_in_backward(SGD, model.parameters(), {"lr": 0.1})
    graph = auxin.trace(model, x)
    optimizers = [one for p in model.parameters() for one in p._in_backward_optimizers]
    for optimizer in (None, optimizers):
        with pytest.raises(ConfigError, match=r"optimizer of 0\.weight .*register_post_accumulate_grad_hook"):
            auxin.widen(model, "0", 2, graph=graph, optimizer=optimizer)
    with pytest.raises(ConfigError, match="register_post_accumulate_grad_hook"):
        auxin.Grower(model, optimizers, x)
    assert model[0].out_features == 8


def test_an_optimizer_in_hooks_that_stay_goes_on() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    optimizers = {p: SGD([p], 0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())  # type: ignore[index]
    auxin.widen(model, "0", 2, graph=auxin.trace(model, x), optimizer=list(optimizers.values()))
    before = [p.detach().clone() for p in model.parameters()]
    model(x).square().sum().backward()
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_fused_sgd_takes_new_layers_among_others_with_momentum() -> None:
    nets, states = [], []
    for fused in (True, False):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(8, 4)
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=fused)
        graph = auxin.trace(model, x)
        for _ in range(2):
            auxin.deepen(model, "1", graph=graph, optimizer=optimizer)
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        nets.append(model)
        states.append([optimizer.state[p]["momentum_buffer"] for p in model.parameters()])
    for fused_p, p in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(fused_p, p, atol=1e-6)
    assert all(torch.allclose(mine, plain, atol=1e-6) for mine, plain in zip(*states, strict=True))


def test_the_momentum_of_a_layer_that_is_taken_back_goes_too() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(8, 4)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, fused=True)
    model(x).square().mean().backward()
    optimizer.step()
    plan = GrowthPlan("hand", (Deepen("1"), Deepen("nowhere")))
    with pytest.raises(ConfigError):
        apply(plan, model, auxin.trace(model, x), optimizer=optimizer)
    assert set(optimizer.state) == set(model.parameters())
