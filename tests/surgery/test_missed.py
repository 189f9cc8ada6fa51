"""Sizes that the trace cannot see: only checked, or used in a method that another module calls."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.errors import GrowthError


class Asserts(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = self.unrelated = channels

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels, f"expected {self.unrelated}"
        return nn.functional.avg_pool2d(x, 2)  # fmt: skip


class Raises(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            if x.size(1) != self.width:
                raise ValueError("wrong number of channels")
            return x * 2
        return x


class RaisesElsewhere(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.checked = channels

    def check(self, x: Tensor) -> Tensor:
        if x.size(1) != 8 or self.checked != 8:
            raise ValueError("only eight channels")
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.check(x)


def make(middle: type[nn.Module], first: int = 8, second: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1), middle(first), nn.Conv2d(first, second, 3, padding=1), middle(second),
        nn.Conv2d(second, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).double()  # fmt: skip


@pytest.mark.parametrize("middle", [Asserts, Raises])
def test_a_size_that_is_only_checked_follows(middle: type[nn.Module]) -> None:
    model, x = make(middle), torch.randn(2, 3, 8, 8, dtype=torch.double)
    average = torch.optim.swa_utils.AveragedModel(model)
    graph, before = auxin.trace(model, x), model(x)
    events = [auxin.widen(model, "0", by, graph=graph, ema=[average]) for by in (3, 2)]
    assert (model(x) - before).abs().max() < 1e-10
    average(x)
    name = "channels" if middle is Asserts else "width"
    assert [getattr(model[1], name), getattr(model[3], name)] == [13, 8]
    assert getattr(model[1], "unrelated", 8) == 8
    fresh = make(middle)
    auxin.History.from_json(json.loads(json.dumps(auxin.History(events).to_json()))).replay(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_where_the_check_names_another_number_everything_is_put_back() -> None:
    model, x = make(RaisesElsewhere), torch.randn(2, 3, 8, 8, dtype=torch.double)
    graph, before = auxin.trace(model, x), model(x)
    attributes = graph.attributes
    with pytest.raises(GrowthError, match="only eight channels"):
        auxin.widen(model, "0", 1, graph=graph)
    assert graph.attributes == attributes
    assert [model[1].checked, model[3].checked] == [8, 8]
    assert torch.equal(model(x), before)


def test_groups_that_could_both_be_meant_are_told_apart_by_growing_one_at_a_time() -> None:
    """Both groups have eight channels and grow by different amounts, so that eight has two meanings."""
    model, x = make(Raises), torch.randn(2, 3, 8, 8, dtype=torch.double)

    class Uneven:
        name = "uneven"

        def propose(self, model: Any, graph: auxin.Graph, allocated: Any, **rest: Any) -> auxin.GrowthPlan:
            units = {"0": 1, "2": 3}
            return auxin.METHODS["random"].propose(model, graph, type(allocated)(units), **rest)

    before = model(x)
    grower = auxin.Grower(model, None, x, method=Uneven(), budget=auxin.count(2))  # type: ignore[arg-type]
    event = grower.grow()
    assert event is not None and not event.notes
    assert (model(x) - before).abs().max() < 1e-10
    assert [model[1].width, model[3].width] == [9, 11]


class Table(nn.Module):
    """A bias per head that the attention asks for, so that its operators seem to be the attention's."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.num_heads, self.shape = heads, (size, size, heads)
        self.entries = nn.Linear(2, heads)
        self.register_buffer("places", torch.randn(size * size, 2))

    def table(self) -> Tensor:
        rows = self.entries(self.places).view(-1, self.num_heads)
        return rows.view(self.shape).permute(2, 0, 1)


class BiasedAttention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int, size: int) -> None:
        super().__init__()
        self.num_heads, self.bias = heads, Table(heads, size)
        self.qkv, self.out = nn.Linear(width, 3 * heads * head_dim), nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) + self.bias.table()).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize("method", ["random", "net2net"])
def test_sizes_in_a_method_that_another_module_calls_follow(method: str) -> None:
    torch.manual_seed(0)
    attention = BiasedAttention(12, 3, 4, 7)
    model, x = nn.Sequential(nn.Linear(5, 12), attention, nn.Linear(12, 2)).double(), torch.randn(2, 7, 5).double()
    graph, before = auxin.trace(model, x), model(x)
    heads = next(group for group in graph.growable() if group.size == 3)
    auxin.widen(model, heads, 2, graph=graph, method=method)
    assert (model(x) - before).abs().max() < 1e-10
    assert (attention.num_heads, attention.bias.num_heads, attention.bias.shape) == (5, 5, (7, 7, 5))


class Splits(nn.Module):
    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes
        self.up, self.down = nn.Linear(5, sum(sizes)), nn.Linear(max(sizes), 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.up(x), self.sizes, dim=-1)
        return self.down(a * b + c.relu().sum(-1, keepdim=True) * a)


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_sizes_of_a_split_follow_as_they_are_kept(kind: type) -> None:
    torch.manual_seed(0)
    model, x = Splits(kind((6, 6, 3))).double(), torch.randn(2, 5).double()
    graph, before = auxin.trace(model, x), model(x)
    for group in graph.growable():
        auxin.widen(model, group, 1, graph=graph)
    assert (model(x) - before).abs().max() < 1e-10
    assert isinstance(model.sizes, kind) and sum(model.sizes) == model.up.out_features > 15
