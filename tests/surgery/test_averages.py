"""Averaged copies of a model in every form in which users have them, and what is no such copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import auxin
from auxin.errors import ConfigError
from auxin.surgery.averages import averaged_copies
from auxin.types import Event

X = torch.randn(4, 6)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Holder(nn.Module):
    """A model whose own part is called as AveragedModel calls the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.module = mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out


def test_one_copy_needs_no_list() -> None:
    model = mlp()
    average, graph = AveragedModel(model), auxin.trace(model, X)
    auxin.widen(model, "0", 2, graph=graph, ema=average)
    auxin.deepen(model, "1", graph=graph, ema=average)
    auxin.Grower(model, None, X, budget=auxin.count(1), ema=average).grow()
    auxin.similarity.refine(model, ema=average)
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in model.parameters()]
    assert torch.allclose(average(X), model(X), atol=1e-5)


@pytest.mark.parametrize("make", [copy.deepcopy, AveragedModel, lambda model: AveragedModel(AveragedModel(model))])
def test_a_part_that_is_called_module_is_the_models_own(make: Callable[[nn.Module], nn.Module]) -> None:
    model = Holder()
    average = make(model)
    auxin.widen(model, "module.0", 2, graph=auxin.trace(model, X), ema=average)
    assert torch.allclose(average(X), model(X), atol=1e-6)
    assert {p.shape for p in average.parameters()} == {p.shape for p in model.parameters()}


def test_the_copy_of_a_compiled_model_is_found() -> None:
    model = mlp()
    average = AveragedModel(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    assert isinstance(averaged_copies(model, [average])[0], nn.Sequential)
    assert averaged_copies(model, None) == []


class Shadow:
    """An average of weights that is no module."""


def grower(model: nn.Module, ema: Any) -> Event | None:
    return auxin.Grower(model, None, X, budget=auxin.ratio(0.5), ema=ema).grow()


def by_hand(model: nn.Module, ema: Any) -> Event | None:
    return auxin.widen(model, "0", 2, graph=auxin.trace(model, X), ema=ema)


@pytest.mark.parametrize("grow", [grower, by_hand])
@pytest.mark.parametrize(("ema", "words"), [
    (lambda model: [Shadow()], "in ema is no module"),
    (lambda model: Shadow(), "in ema is no module"),
    (lambda model: model, "ema holds the model itself"),
    (lambda model: [nn.DataParallel(model)], "ema holds the model itself"),
    (lambda model: [AveragedModel(nn.Linear(3, 3))], r"no copy of the model: it has no 0\.weight of shape \(8, 6\)"),
    (lambda model: [AveragedModel(model), mlp()[:3]], r"it has no 4\.weight of shape \(3, 8\)"),
])  # fmt: skip
def test_what_is_no_copy_is_refused_before_growth(
    grow: Callable[[nn.Module, Any], Event | None], ema: Callable[[nn.Module], Any], words: str
) -> None:
    model = mlp()
    with pytest.raises(ConfigError, match=words):
        grow(model, ema(model))
    assert model[0].out_features == 8


def test_a_copy_that_missed_a_growth_is_refused() -> None:
    model = mlp()
    average, graph = AveragedModel(model), auxin.trace(model, X)
    auxin.widen(model, "0", 2, graph=graph)
    with pytest.raises(ConfigError, match=r"no 0\.weight of shape \(10, 6\).*to every growth from then on"):
        auxin.widen(model, "0", 2, graph=graph, ema=average)
