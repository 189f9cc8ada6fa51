"""Causal and masked networks: a block that is put in must not let an output see what it did not see before."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import auxin


class LeftPadded(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (2, 0)))


class Chomped(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, :-2]


class Started(nn.Conv1d):
    """As one who writes in the operator itself does, which leaves its end open."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.slice.Tensor(super().forward(x), 2, 2)


class Prepended(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x.new_zeros(*x.shape[:2], 2), x], dim=-1))


class Masked(nn.Conv1d):
    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.tensor([1.0, 1.0, 0.0]).expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight * self.mask, self.bias, padding=1)


def causal(kind: str) -> nn.Sequential:
    layer = {
        "padded": lambda i, o: LeftPadded(i, o, 3),
        "chomped": lambda i, o: Chomped(i, o, 3, padding=2),
        "prepended": lambda i, o: Prepended(i, o, 3),
        "masked": lambda i, o: Masked(i, o, 3),
    }[kind]
    return nn.Sequential(layer(1, 6), nn.ReLU(), layer(6, 6), nn.ReLU(), nn.Conv1d(6, 2, 1))


def seen_ahead(model: nn.Module) -> float:
    """Return the largest gradient of an output position at a later input position."""
    x = torch.randn(1, 1, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[:, :, 5].sum(), x)
    return float(gradient[:, :, 6:].abs().max())


@pytest.mark.parametrize("kind", ["padded", "chomped", "prepended", "masked"])
def test_a_layer_put_into_a_causal_network_does_not_look_ahead(kind: str) -> None:
    torch.manual_seed(0)
    model = causal(kind)
    x = torch.randn(4, 1, 12)
    assert seen_ahead(model) == 0
    for site in ("1", "3"):
        auxin.deepen(model, site, graph=auxin.trace(model, x))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert seen_ahead(model) == 0


def test_a_cut_at_the_start_counts_too() -> None:
    model = nn.Sequential(Started(1, 4, 3, padding=2), nn.ReLU(), nn.Conv1d(4, 2, 1))
    (site,) = auxin.trace(model, torch.randn(2, 1, 12)).sites
    assert site.pointwise


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 2, 1)),
        nn.Sequential(nn.ConstantPad1d((0, 1), 0.0), nn.Conv1d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv1d(4, 2, 1)),
        nn.Sequential(nn.ConstantPad1d((1, 1), 0.0), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1)),
    ],
    ids=["padded on both sides", "a stride", "padded by a layer"],
)
def test_other_networks_get_whole_kernels(model: nn.Module) -> None:
    (site,) = auxin.trace(model, torch.randn(2, 1, 12)).sites
    assert not site.pointwise


def test_a_mask_over_units_leaves_no_place_for_a_dense_layer() -> None:
    class Ordered(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.register_buffer("mask", torch.ones(outputs, inputs).tril())

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * self.mask, self.bias)

    model = nn.Sequential(Ordered(4, 4), nn.ReLU(), Ordered(4, 4))
    assert not auxin.trace(model, torch.randn(2, 4)).sites
    nn.utils.prune.l1_unstructured(pruned := nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))[0], "weight", 3)
    dense = nn.Sequential(pruned, nn.ReLU(), nn.Linear(8, 2))
    assert [site.name for site in auxin.trace(dense, torch.randn(2, 4)).sites] == ["1"]
