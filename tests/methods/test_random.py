"""Random growth where the usual rule does not fit: tied weights, groups of transposed convolutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import auxin
from auxin.errors import FrozenError, TrainingError


class TiedAutoencoder(nn.Module):
    """Decodes with the transpose of the weights that encode."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.code(x)), self.code.weight.t())


@pytest.mark.parametrize("method", sorted(auxin.METHODS))
def test_new_units_of_a_tied_autoencoder_learn_and_change_the_function(method: str) -> None:
    torch.manual_seed(0)
    model, x = TiedAutoencoder(), torch.randn(64, 6)
    graph = auxin.trace(model, x[:2])
    options = {"method": method, "graph": graph, "loader": [(x, x)], "loss_fn": F.mse_loss}
    with pytest.raises(FrozenError, match=r"code\.weight both computes and reads it, so that units of zeros never"):
        auxin.widen(model, "code", 3, **options)  # type: ignore[arg-type]
    auxin.widen(model, "code", 3, allow_inexact=True, **options)  # type: ignore[arg-type]
    F.mse_loss(model(x), x).backward()
    assert (model.code.weight.grad[8:].norm(dim=1) > 0).all()  # type: ignore[index]


@pytest.mark.parametrize("by_groups", [True, False])
def test_fan_in_of_a_grouped_transposed_convolution(by_groups: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    x = torch.randn(2, 3, 5, 5)
    graph, weight = auxin.trace(model, x), model[2].weight
    before = weight.clone()
    name = next(g.name for g in graph.growable() if ("groups" in g.name) == by_groups and
                any(slot.parameter == "2.weight" and slot.role == "producer" for slot in g.slots))  # fmt: skip
    auxin.widen(model, name, 200, graph=graph)
    new = weight[8:] if by_groups else weight[:, before.shape[1] :]
    new = new[new != 0]
    assert float(new.std()) == pytest.approx(math.sqrt(2 / (4 * 16)), rel=0.05)


@pytest.mark.parametrize("method", ["gradmax", "splitting", "firefly"])
def test_a_batch_with_nan_is_one_sentence(method: str) -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 6)
    graph = auxin.trace(model, x[:2])
    x[3, 2] = math.nan
    batches = [(x, torch.randint(0, 3, (16,)))]
    with pytest.raises(TrainingError, match="holds NaN"):
        auxin.widen(model, "0", 2, graph=graph, method=method, loader=batches, loss_fn=F.cross_entropy)


def test_the_memory_format_of_volumes_is_kept() -> None:
    model = nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1)
    )
    model = model.to(memory_format=torch.channels_last_3d)
    auxin.widen(model, "0", 4, graph=auxin.trace(model, torch.randn(2, 3, 4, 4, 4)))
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not model[2].weight.is_contiguous()
