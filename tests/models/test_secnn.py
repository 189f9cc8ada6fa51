import copy

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.errors import ConfigError
from auxin.models import SECNN, build, secnn

BLOCKS = ("blocks.0", "blocks.1", "blocks.2")
# Every parameter count that the paper prints, and one architecture of that size: the paper does not say which it was.
PUBLISHED = [
    (9_024, (16, 16, 16), (0, 0, 0)),
    (11_360, (16, 16, 16), (0, 0, 1)),
    (13_696, (16, 16, 16), (0, 1, 1)),
    (22_636, (20, 36, 24), (1, 0, 0)),
    (27_852, (32, 16, 20), (1, 1, 1)),
    (28_588, (32, 28, 24), (1, 0, 0)),
    (37_320, (20, 20, 20), (2, 2, 3)),
    (40_960, (20, 20, 20), (0, 1, 7)),
    (51_880, (52, 16, 32), (1, 0, 1)),
    (57_808, (36, 32, 32), (2, 0, 1)),
    (66_440, (20, 40, 40), (3, 0, 2)),
    (73_720, (32, 24, 48), (1, 0, 2)),
    (74_564, (16, 52, 24), (1, 2, 0)),
]


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def busy(size: int = 32, channels: int = 3) -> tuple[SECNN, Tensor]:
    """Return a model whose norms have seen data, its dropout off, and some images."""
    torch.manual_seed(0)
    model = secnn(image_size=size, in_channels=channels)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    images = torch.randn(16, channels, size, size)
    for _ in range(2):
        model(images)
    return model, images


def outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits in eval and in training mode."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        return model.eval()(images), model.train()(images)


@pytest.mark.parametrize(("count", "channels", "added"), PUBLISHED)
def test_the_papers_parameter_counts(count: int, channels: tuple, added: tuple) -> None:
    c1, c2, c3 = channels
    formula = 30 * c1 + (9 * c1 * c2 + 3 * c2) + (9 * c2 * c3 + 3 * c3) + 10 * (c1 + c3) + 10 + 3510
    formula += sum(n * (9 * c**2 + 2 * c) for n, c in zip(added, channels, strict=True))
    assert num_parameters(secnn(channels=channels, added=added)) == formula == count


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (33, 3)])
def test_sizes(size: int, channels: int) -> None:
    model = build("secnn", num_classes=5, in_channels=channels, image_size=size, added=(1, 0, 2))
    logits = model(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 5)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_order_of_the_layers() -> None:
    model, order = secnn(added=(1, 0, 0)).eval(), []
    for name, module in model.named_modules():
        if not list(module.children()) and not isinstance(module, nn.Sequential):
            module.register_forward_hook(lambda _module, _args, y, name=name: order.append((name, *y.shape[1:])))
    model(torch.randn(1, 3, 32, 32))
    layers = ("conv", "dropout", "bn", "act")
    added = [f"added.0.{layer}" for layer in ("conv", "bn", "act")]
    head = ["conv", "act1"], ["hidden", "bn1", "act2", "dropout", "bn2"]
    assert order == [
        *((f"blocks.0.{layer}", 16, 32, 32) for layer in (*layers, *added)),
        ("blocks.0.pool", 16, 16, 16),
        *((f"blocks.1.{layer}", 16, 16, 16) for layer in layers),
        ("blocks.1.pool", 16, 8, 8),
        *((f"blocks.2.{layer}", 16, 8, 8) for layer in layers),
        ("blocks.2.pool", 16, 4, 4),
        ("skip", 16, 4, 4),
        *((f"head.{layer}", 10, 4, 4) for layer in head[0]),
        *((f"head.{layer}", 20) for layer in head[1]),
        ("classifier", 10),
    ]
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout | nn.Dropout2d)}
    assert rates == {**{f"{block}.dropout": 0.1 for block in BLOCKS}, "head.dropout": 0.05}
    slopes = {module.negative_slope for module in model.modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.2}


@pytest.mark.parametrize("wrong", [{"image_size": 7}, {"channels": (16, 16)}, {"added": (1,)}])
def test_mistakes(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"at least 8 pixels|each of the 3 blocks"):
        build("secnn", **wrong)


def test_every_convolution_grows_and_every_block_has_one_site() -> None:
    graph = auxin.trace(secnn(), torch.zeros(1, 3, 32, 32))
    assert {group.name: group.size for group in graph.growable()} == {
        **{f"{block}.conv": 16 for block in BLOCKS},
        "head.conv": 10,
        "head.hidden": 20,
    }
    assert [site.name for site in graph.sites] == [*(f"{block}.act" for block in BLOCKS), "head.act1", "head.act2"]
    assert all(
        site.activation == "LeakyReLU" and dict(site.arguments) == {"negative_slope": 0.2} for site in graph.sites
    )
    # The concatenation brings the first block's channels to the head as well.
    consumers = {slot.parameter for slot in graph["blocks.0.conv"].slots if slot.role == "consumer"}
    assert consumers == {"blocks.1.conv.weight", "head.conv.weight"}


def test_added_layers_grow_with_a_site_each() -> None:
    graph = auxin.trace(secnn(added=(2, 0, 1)), torch.zeros(1, 3, 32, 32))
    names = {group.name for group in graph.growable()}
    assert {"blocks.0.conv", "blocks.0.added.0.conv", "blocks.0.added.1.conv", "blocks.2.added.0.conv"} <= names
    sites = [site.name for site in graph.sites if site.name.startswith("blocks.0.")]
    assert sites == ["blocks.0.act", "blocks.0.added.0.act", "blocks.0.added.1.act"]


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("group", [*(f"{block}.conv" for block in BLOCKS), "head.conv", "head.hidden"])
def test_widening_preserves_the_function(size: int, group: str) -> None:
    model, images = busy(size)
    before, graph = outputs(model, images), auxin.trace(model, images[:2])
    size_before = graph[group].size
    auxin.widen(model, group, 4, graph=graph, method="random")
    assert graph[group].size == size_before + 4
    for old, new in zip(before, outputs(model, images), strict=True):
        assert (new - old).abs().max() < 1e-5


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("site", [*(f"{block}.act" for block in BLOCKS), "head.act1", "head.act2"])
def test_deepening_preserves_the_function(size: int, site: str) -> None:
    model, images = busy(size)
    before, graph, count = outputs(model, images), auxin.trace(model, images[:2]), num_parameters(model)
    auxin.deepen(model, site, graph=graph, loader=[images])
    if site.startswith("blocks"):
        assert num_parameters(model) - count == 2_336 + 1  # the blend of the activation is the one
    for old, new in zip(before, outputs(model, images), strict=True):
        assert (new - old).abs().max() < 1e-5


def test_dropout_can_be_left_out() -> None:
    assert [block.dropout.p for block in secnn().blocks] == [0.1] * 3  # type: ignore[union-attr]
    assert [block.dropout.p for block in build("secnn", dropout=0.0).blocks] == [0.0] * 3  # type: ignore[union-attr]
