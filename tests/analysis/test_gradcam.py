import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from auxin.analysis.gradcam import (
    Attention,
    attend,
    choose_layer,
    estimate,
    insertion_deletion,
    predict,
    spread,
)
from auxin.errors import ConfigError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).eval()  # fmt: skip


def test_maps_equal_the_equations() -> None:
    model, images = net(), torch.randn(6, 1, 8, 8)
    found = attend(model, images, "3")
    activations = model[:4](images).detach().requires_grad_()
    logits = model[4:](activations)
    predicted = logits.argmax(1)
    (gradient,) = torch.autograd.grad(logits.gather(1, predicted[:, None]).sum(), activations)
    coarse = (gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True).relu().detach()
    fine = functional.interpolate(coarse, (8, 8), mode="bilinear")[:, 0]
    expected = fine / fine.amax((1, 2), keepdim=True).clamp(min=1e-12)
    assert (found.predicted == predicted).all()
    torch.testing.assert_close(found.maps, expected)
    assert (predict(model, images) == predicted).all()


def test_spread_of_a_point_and_of_an_even_map() -> None:
    maps = torch.zeros(3, 4, 4)
    maps[0, 1, 2] = 1
    maps[1] = 0.3
    entropy, area = spread(maps)
    assert entropy[:2] == pytest.approx([0, 1], abs=1e-6)
    assert area[:2] == pytest.approx([1 / 16, 1])
    assert np.isnan([entropy[2], area[2]]).all()


BOARD = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1


class Corner(nn.Module):
    """Class 1 is likely where the upper left quarter is a chess board, whatever the rest."""

    def forward(self, images: Tensor) -> Tensor:
        likeness = (images[:, 0] * BOARD)[:, :4, :4].mean((1, 2))
        return torch.stack([torch.zeros_like(likeness), 10 * likeness - 5], 1)


def test_a_map_that_finds_the_evidence_scores_better_than_one_that_does_not() -> None:
    images = BOARD.expand(2, 1, 8, 8)
    maps = torch.rand(2, 8, 8) * 0.1
    maps[0, :4, :4] += 0.5
    maps[1, 4:, 4:] += 0.5
    nan = np.zeros(2)
    attention = Attention(maps, torch.ones(2, dtype=torch.long), torch.ones(2), nan, nan)
    insertion, deletion = insertion_deletion(Corner().eval(), images, attention)
    assert insertion[0] > insertion[1] + 0.1
    assert deletion[0] < deletion[1] - 0.1
    assert ((insertion >= 0) & (insertion <= 1) & (deletion >= 0) & (deletion <= 1)).all()


def test_the_confidence_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside = [(e := estimate(generator.normal(2.0, 3.0, 200))).low <= 2.0 <= e.high for _ in range(1000)]
    assert 0.93 < np.mean(inside) < 0.97
    assert estimate(np.array([1.0, np.nan, 3.0])).num_images == 2
    assert estimate(np.array([np.nan])).num_images == 0
    assert str(estimate(np.array([1.0]))) == "1.000"


def test_the_layer_is_the_last_with_a_map_worth_looking_at() -> None:
    model = net()
    assert choose_layer(model, torch.randn(1, 1, 8, 8)) == "3"
    assert choose_layer(model, torch.randn(1, 1, 4, 4)) == "0"  # the other map has 2 x 2 cells
    assert choose_layer(model, torch.randn(1, 1, 8, 8), "0") == "0"
    with pytest.raises(ConfigError, match=r"no layer 'features.3'; choose one of 0, 3"):
        choose_layer(model, torch.randn(1, 1, 8, 8), "features.3")
    with pytest.raises(ConfigError, match="needs a convolution"):
        choose_layer(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.randn(1, 1, 8, 8))
