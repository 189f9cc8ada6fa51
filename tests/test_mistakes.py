"""What users are told who pass something that cannot work: one sentence, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import auxin
from auxin.budgets import parse_cap
from auxin.errors import CheckpointError, ConfigError, FrozenError
from auxin.methods.firefly import Firefly
from auxin.methods.net2net import Net2Net
from auxin.methods.random import Random
from auxin.methods.splitting import Splitting

X = torch.randn(2, 6)


def mlp(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


class Softmax(nn.Module):
    """Its hidden layer is normalised over its units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.softmax(self.a(x), -1))


@pytest.mark.parametrize("options", [
    ({"allow_inexact": True}, {}),
    ({}, {"allow_inexact": True}),
    ({"allow_inexact": True}, {"groups": ["a"]}),
])  # fmt: skip
def test_inexact_growth_is_allowed_in_one_place(options: tuple[dict[str, Any], dict[str, Any]]) -> None:
    grower = auxin.Grower(Softmax(), None, X, budget=auxin.ratio(0.5, **options[1]), **options[0])
    assert grower.grow().changes[0].after == 12


def test_a_budget_that_names_a_group_that_may_not_grow_is_refused_at_once() -> None:
    with pytest.raises(FrozenError, match="allow_inexact=True"):
        auxin.Grower(Softmax(), None, X, budget=auxin.ratio(0.5, groups=["a"]))


def test_a_cap_on_neurons_counts_those_whose_growth_is_inexact() -> None:
    graph = auxin.trace(Softmax(), X)
    assert graph.num_neurons() == 8
    assert not parse_cap("neurons<=7").holds(graph, {})
    assert parse_cap("neurons<=10, params<=10k").clip(graph, {"a": 4}) == {"a": 2}


class Masked(nn.Module):
    """Uses a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mask = nn.Linear(6, 8), nn.Linear(8, 3), torch.ones(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) * self.mask)


def test_a_tensor_that_is_no_buffer_is_named() -> None:
    assert auxin.trace(Masked(), X)["a"].frozen == "it meets the tensor 'mask' of fixed size; register that as a buffer"
    with pytest.raises(ConfigError, match="register that as a buffer"):
        auxin.Grower(Masked(), None, X, budget=auxin.ratio(0.5))


@pytest.mark.parametrize("loader, loss_fn, words", [
    ([{"x": X, "labels": torch.tensor([0, 1])}], F.cross_entropy, "'labels', which the forward of Sequential does not"),
    ([(X, torch.tensor([0, 1]))], lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), r"loss_fn\(output"),
])  # fmt: skip
def test_batches_and_losses_of_another_kind(loader: Any, loss_fn: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        auxin.widen(mlp(), "0", 2, graph=auxin.trace(mlp(), X), method="gradmax", loader=loader, loss_fn=loss_fn)


def test_the_graph_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"The graph does not fit the model: it has 0\.weight of sizes \[8, 6\]"):
        auxin.widen(mlp(9), "0", 2, graph=auxin.trace(mlp(), X))


@pytest.mark.parametrize("make", [
    lambda: auxin.ratio(True),
    lambda: auxin.every(2, times=1.5),  # type: ignore[arg-type]
    lambda: auxin.plateau(patience=1.5),  # type: ignore[arg-type]
    lambda: Random(outgoing_scale=-1),
    lambda: Net2Net(noise=-1),
    lambda: Net2Net(asymmetry=float("nan")),
    lambda: Splitting(asymmetry=-1),
    lambda: Firefly(asymmetry=-1),
    lambda: Firefly(rate=-1),
])  # fmt: skip
def test_options_outside_their_range(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_kernel_size_is_a_whole_number() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(ConfigError, match=r"odd kernel size, not 3\.0"):
        auxin.deepen(model, "1", graph=auxin.trace(model, torch.randn(2, 3, 8, 8)), kernel_size=3.0)  # type: ignore[arg-type]


def test_a_replay_that_fails_leaves_model_and_optimizer_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    graph, history = auxin.trace(model, X), auxin.History()
    history.append(auxin.deepen(model, "1", graph=graph))
    history.append(auxin.widen(model, "0", 2, graph=graph))
    history.append(auxin.deepen(model, "3", graph=graph))
    other = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    names = {name: (parameter, parameter.shape) for name, parameter in other.named_parameters()}
    with pytest.raises(CheckpointError, match="does not fit this model"):
        history.replay(other, optimizer)
    assert {name: (parameter, parameter.shape) for name, parameter in other.named_parameters()} == names
    assert len(optimizer.param_groups[0]["params"]) == len(names)
    assert other(X).shape == (2, 3)
