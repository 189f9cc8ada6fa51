import math

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.errors import ConfigError
from auxin.models import ViT, build, vit


def small() -> tuple[ViT, Tensor]:
    torch.manual_seed(0)
    return vit(dim=12, depth=2, heads=3, image_size=8), torch.randn(4, 3, 8, 8)


def test_parameter_count() -> None:
    block = 4 * (64 * 64 + 64) + 2 * (64 * 128) + 128 + 64 + 4 * 64  # attention, MLP, two norms
    count = (48 + 1) * 64 + 64 * 64 + 4 * block + 2 * 64 + 65 * 10
    assert sum(parameter.numel() for parameter in vit().parameters()) == count == 141_898


@pytest.mark.parametrize(("size", "patch", "channels"), [(8, 4, 1), (28, 7, 1), (32, 4, 3)])
def test_sizes(size: int, patch: int, channels: int) -> None:
    options = {"dim": 12, "depth": 2, "heads": 3, "mlp_ratio": 1.5, "patch": patch, "image_size": size}
    model = build("vit", num_classes=5, in_channels=channels, **options)
    logits = model(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 5)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("wrong", [{"dim": 10}, {"image_size": 30}])
def test_mistakes(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="do not divide"):
        build("vit", **wrong)


def test_attention_is_softmax_of_queries_and_keys() -> None:
    model, _ = small()
    attention, x = model.blocks[0].attention, torch.randn(2, 5, 12)
    got = attention(x)
    q, k, v = (part.reshape(2, 5, 3, 4) for part in attention.qkv(x).chunk(3, dim=-1))
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(4)).softmax(-1)
    wanted = attention.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 5, 12))
    assert (got - wanted).abs().max() < 1e-6


def test_heads_and_hidden_units_grow_and_the_stream_does_not() -> None:
    model, images = small()
    graph = auxin.trace(model, images)
    assert {group.name: group.size for group in graph.growable()} == {
        **{f"blocks.{k}.attention.qkv[heads]": 3 for k in range(2)},
        **{f"blocks.{k}.up": 24 for k in range(2)},
    }
    assert "normalises over it" in (graph["embed"].inexact or "")
    assert [(site.name, site.channels, bool(site.neutral)) for site in graph.sites] == [
        one for k in range(2) for one in ((f"blocks.{k}.act", 24, False), (f"blocks.{k}", 12, True))
    ]


@pytest.mark.parametrize("method", ["random", "net2net"])
def test_growth_preserves_the_function(method: str) -> None:
    model, images = small()
    nn.init.normal_(model.blocks[0].attention.qkv.bias)  # zero at first, and then it would not matter
    graph = auxin.trace(model, images)
    with torch.no_grad():
        before = model(images)
        auxin.widen(model, "blocks.0.attention.qkv[heads]", 2, graph=graph, method=method)
        auxin.widen(model, "blocks.1.up", 5, graph=graph, method=method)
        auxin.deepen(model, "blocks.0.act", graph=graph)
        after = model(images)
    attention = model.blocks[0].attention
    assert (attention.heads, attention.qkv.out_features, attention.proj.in_features) == (5, 60, 20)
    assert model.blocks[1].up.out_features == 29
    assert (after - before).abs().max() < 1e-5
