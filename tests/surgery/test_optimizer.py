"""Growth in the middle of training: optimizers, schedulers, copies, references and compiled modules go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import auxin
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
