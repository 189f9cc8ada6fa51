"""Which modules are residual blocks, and which of their parameters a copy starts with at zero."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import auxin
from auxin.models.mobilenet import MobileNetV1
from auxin.models.resnet import ResNet20
from auxin.models.vgg import VGG16
from auxin.models.vit import ViT
from tests.cases import randomise

IMAGES, TOKENS = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)


class Block(nn.Module):
    """y = combine(x, branch(x)), with other layers that ``combine`` may use."""

    def __init__(self, branch: nn.Module, combine, **layers) -> None:
        super().__init__()
        self.branch, self.combine = branch, combine
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self, x, self.branch(x))


def conv(norm: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(4)) if norm else nn.Sequential(*layers)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8), nn.Dropout(0.1))


def plus(block: Block, x: Tensor, y: Tensor) -> Tensor:
    return x + y


BATCH_NORM = ("branch.3.weight", "branch.3.bias")


def neutral(block: nn.Module, inputs: Tensor) -> tuple[str, ...]:
    """Return what is found for a block between two layers; ( ) where it is no site or no residual one."""
    size, made = inputs.shape[1 if inputs.ndim == 4 else -1], nn.Conv2d if inputs.ndim == 4 else nn.Linear
    ends = [made(size, size, *([1] if inputs.ndim == 4 else [])) for _ in range(2)]
    model = nn.Sequential(ends[0], nn.ReLU(), block, ends[1])
    graph = auxin.trace(randomise(model.double()), inputs.double())
    found = tuple(dict({site.name: site.neutral for site in graph.sites}.get("2", ())))
    if found:
        event = auxin.deepen(model, "2", graph=graph)
        assert event.max_change < 1e-10
        assert sum(p.numel() for p in block.parameters()) - sum(p.numel() for p in block.grown.parameters()) * 2 == 0
    return found


GATE = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
RESIDUAL = {
    "norm at the end": (lambda: Block(conv(), plus), IMAGES, BATCH_NORM),
    "the branch first": (lambda: Block(conv(), lambda b, x, y: y + x), IMAGES, BATCH_NORM),
    "in place": (lambda: Block(conv(), lambda b, x, y: y.add_(x)), IMAGES, BATCH_NORM),
    "no norm": (lambda: Block(conv(False), plus), IMAGES, ("branch.2.weight", "branch.2.bias")),
    "relu": (lambda: Block(conv(), lambda b, x, y: F.relu(x + y)), IMAGES, BATCH_NORM),
    "relu6": (lambda: Block(conv(), lambda b, x, y: F.relu6(x + y)), IMAGES, BATCH_NORM),
    "two, relu after each": (
        lambda: Block(conv(), lambda b, x, y: F.relu(F.relu(x + y) + b.other(x)), other=nn.Conv2d(4, 4, 1)),
        IMAGES,
        ("branch.3.weight", "branch.3.bias", "other.weight", "other.bias"),
    ),
    "gated": (lambda: Block(conv(), lambda b, x, y: x + b.gate(y) * y, gate=GATE), IMAGES, BATCH_NORM),
    "scaled by a number": (lambda: Block(conv(), lambda b, x, y: x + 0.5 * y), IMAGES, BATCH_NORM),
    "scale of each channel": (
        lambda: Block(conv(False), lambda b, x, y: x + y * b.gamma.view(-1, 1, 1), gamma=nn.Parameter(torch.ones(4))),
        IMAGES,
        ("gamma",),
    ),
    "one learnt number": (
        lambda: Block(conv(), lambda b, x, y: x + b.alpha * y, alpha=nn.Parameter(torch.ones(1))), IMAGES, ("alpha",)
    ),
    "two branches": (
        lambda: Block(conv(), lambda b, x, y: x + (y + b.other(x)), other=nn.Conv2d(4, 4, 1, bias=False)),
        IMAGES,
        ("branch.3.weight", "branch.3.bias", "other.weight"),
    ),
    "feed forward": (lambda: Block(mlp(), plus), TOKENS, BATCH_NORM),
    "raw matrix": (
        lambda: Block(mlp(), lambda b, x, y: x + y @ b.out, out=nn.Parameter(torch.randn(8, 8))), TOKENS, ("out",)
    ),
    "norm first": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
        TOKENS,
        ("self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_copy_of_a_residual_block_starts_as_the_identity(name):
    build, inputs, expected = RESIDUAL[name]
    assert set(neutral(build(), inputs)) == set(expected)


NOT = {
    "no sum": (lambda: Block(conv(), lambda b, x, y: y), IMAGES),
    "norm last": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), TOKENS),
    "half of x": (lambda: Block(conv(), lambda b, x, y: 0.5 * x + y), IMAGES),
    "difference": (lambda: Block(conv(), lambda b, x, y: x - y), IMAGES),
    "alpha": (lambda: Block(conv(), lambda b, x, y: torch.add(x, y, alpha=2)), IMAGES),
    "not idempotent": (lambda: Block(conv(), lambda b, x, y: F.gelu(x + y)), IMAGES),
    "relu before a second sum": (
        lambda: Block(conv(), lambda b, x, y: F.relu(x + y) + b.other(x), other=nn.Conv2d(4, 4, 1)), IMAGES
    ),
    "nothing to zero": (lambda: Block(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid()), plus), IMAGES),
    "a norm without scale": (
        lambda: Block(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)), plus), IMAGES
    ),
    "a constant": (lambda: Block(conv(), lambda b, x, y: x + b.shift, shift=nn.Parameter(torch.ones(1))), IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT)
def test_other_modules_are_not_copied(name):
    build, inputs = NOT[name]
    assert neutral(build(), inputs) == ()


def test_parameters_that_are_not_trained_cannot_start_at_zero():
    block = Block(conv(), plus)
    block.branch[3].weight.requires_grad = False
    assert neutral(block, IMAGES) == ()


def test_a_layer_that_knows_its_number_is_not_copied():
    block = Block(mlp(), plus)
    block.branch[0].layer_idx = 3
    assert neutral(block, TOKENS) == ()


def copied_at(model: nn.Module, inputs: Tensor) -> list[str]:
    return [site.name for site in auxin.trace(model, inputs).sites if site.neutral]


def test_the_blocks_of_known_networks():
    images = torch.randn(2, 3, 32, 32)
    assert copied_at(ResNet20(width=2, blocks=(2, 2, 1)), images) == ["stage1.0", "stage1.1", "stage2.1"]
    assert copied_at(ViT(dim=8, depth=2, heads=2), images) == ["blocks.0", "blocks.1"]
    assert copied_at(VGG16(width=2), images) == copied_at(MobileNetV1(width=4), images) == []


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(mlp(), plus), Block(mlp(), plus)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_stage_of_residual_blocks_is_left_out_for_them():
    model = nn.Sequential(nn.Linear(8, 8), Stage(), nn.Linear(8, 2))
    assert copied_at(model, TOKENS) == ["1.blocks.0", "1.blocks.1"]


class Parts(nn.Module):
    """A transformer's layer made of two residual parts, each a module."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.think = Block(mlp(), plus), Block(mlp(), plus)

    def forward(self, x: Tensor) -> Tensor:
        return self.think(self.mix(x))


def test_a_block_of_residual_parts_is_a_site_as_they_are():
    model = nn.Sequential(nn.Linear(8, 8), Parts(), nn.Linear(8, 2))
    assert set(copied_at(model, TOKENS)) == {"1", "1.mix", "1.think"}


def test_a_module_with_parameters_for_another_output_only_is_not_copied():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.skip = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return x + self.f(torch.tanh(x)), self.skip(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Skipping(), Skipping()

        def forward(self, x):
            x, one = self.first(x)
            x, two = self.second(x)
            return one + two + x[:, :3]

    assert not any(site.neutral for site in auxin.trace(Net(), torch.randn(2, 4)).sites)
