"""Attention written with the layers of einops, which keep the number of heads in a table of axis lengths."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.errors import GrowthError

layers = pytest.importorskip("einops.layers.torch")


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int, dim_given: bool = False) -> None:
        super().__init__()
        given = {"h": heads, "d": head_dim} if dim_given else {"h": heads}
        self.qkv, self.gate = nn.Linear(width, 3 * heads * head_dim), nn.Linear(width, heads)
        self.split = layers.Rearrange("b n (h d) -> b h n d", **given)
        self.merge = layers.Rearrange("b h n d -> b n (h d)")
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.qkv(x).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        gate = self.gate(x).sigmoid().transpose(1, 2).unsqueeze(-1)
        return x + self.out(self.merge(attended * gate))


def make(heads: int = 3, head_dim: int = 8, dim_given: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), Attention(12, heads, head_dim, dim_given), nn.Linear(12, 4)).double().eval()


@pytest.mark.parametrize("dim_given", [False, True])
def test_heads_grow_with_the_layer_that_splits_them(dim_given: bool) -> None:
    model, x = make(dim_given=dim_given), torch.randn(2, 7, 5, dtype=torch.double)
    optimizer = torch.optim.AdamW(model.parameters())
    before, graph = model(x), auxin.trace(model, x)
    event = auxin.widen(model, "1.qkv[h]", 2, graph=graph, optimizer=optimizer)
    assert (model(x) - before).abs().max() < 1e-10
    assert model[1].gate.out_features == 5
    assert dict(model[1].split._axes_lengths)["h"] == model[1].split.axes_lengths["h"] == 5
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    fresh = make(dim_given=dim_given)
    auxin.History.from_json(json.loads(json.dumps(auxin.History([event]).to_json()))).replay(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_a_layer_that_cannot_follow_is_put_back() -> None:
    """Two axes of one length: nothing says which of them the number in the graph is."""
    model, x = make(heads=4, head_dim=4, dim_given=True), torch.randn(2, 7, 5, dtype=torch.double)
    before, graph = model(x), auxin.trace(model, x)
    assert "1.qkv[h]" not in [group.name for group in graph.growable()]
    for group in graph.growable():
        try:
            auxin.widen(model, group, 1, graph=graph)
        except GrowthError:
            assert model[1].split.axes_lengths == {"h": 4, "d": 4}
    assert (model(x) - before).abs().max() < 1e-10


def test_a_layer_with_weights_of_its_own_grows() -> None:
    mix = layers.EinMix("b n (h i) -> b n (h o)", weight_shape="h i o", bias_shape="h o", h=2, i=4, o=3)
    model, x = nn.Sequential(nn.Linear(5, 8), mix, nn.ReLU(), nn.Linear(6, 2)).double(), torch.randn(2, 3, 5).double()
    before, graph = model(x), auxin.trace(model, x)
    for group in graph.growable():
        try:
            auxin.widen(model, group, 1, graph=graph)
        except GrowthError:
            continue
    assert (model(x) - before).abs().max() < 1e-10
