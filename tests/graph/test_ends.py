"""Where a forward ends: outputs in objects, layers that only training uses, modules that return more than a tensor."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.errors import TraceError


@dataclass
class Output:
    logits: Tensor
    extra: object = None


class Language(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.table, self.head, self.wrap = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False), wrap

    def forward(self, tokens: Tensor):
        return self.wrap(self.head(self.table(tokens)))


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    "wrap",
    [
        Output,
        lambda y: (Output(y), y.mean()),
        lambda y: {"out": Output(y.detach(), extra=Output(y))},
        lambda y: torch.distributions.Categorical(logits=y, validate_args=False),
    ],
)
def test_a_class_number_inside_an_object_is_an_output(wrap):
    model = Language(wrap)
    graph = auxin.trace(model, TOKENS)
    assert [group.name for group in graph.growable()] == ["table"]
    assert auxin.widen(model, "table", 2, graph=graph).max_change < 1e-6


def test_a_forward_without_a_tensor_is_refused():
    with pytest.raises(TraceError, match="returns no tensor that can be followed but a NoneType"):
        auxin.trace(Language(lambda y: None), TOKENS)


class Branch(nn.Module):
    """An auxiliary head of its own kernel, and an optional input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 4)
        self.aux, self.condition = nn.Conv2d(6, 4, 1), nn.Linear(5, 4)

    def forward(self, x: Tensor, c: Tensor | None = None):
        h = self.stem(x).relu()
        y = self.head(self.body(h).relu().mean((2, 3)))
        if c is not None:
            y = y + self.condition(c)
        return (y, self.aux(h)) if self.training else y


def test_what_the_traced_forward_does_not_use_is_frozen():
    graph = auxin.trace(Branch(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in graph.growable()] == ["stem", "body"]
    unused = [group for group in graph.groups if group.slots[0].parameter.startswith(("aux", "condition"))]
    assert unused and all("does not use it" in group.frozen for group in unused)


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 7)

    def forward(self, x: Tensor):
        return (self.map(x).relu(),)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Tuple(), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0])


def test_a_layer_is_never_offered_after_a_module_that_returns_a_tuple():
    model, x = Reader(), torch.randn(2, 5)
    graph = auxin.trace(model, x)
    assert [site.name for site in graph.sites] == ["inner.map"]
    assert auxin.deepen(model, "inner.map", graph=graph).max_change < 1e-6


class Fixed(nn.Module):
    """One attribute gives the size of the input and that of a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.map, self.head = 6, nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.dim)
        h = self.map(x).relu()
        h = h.reshape(-1, self.dim)
        return self.head(h)


def test_an_attribute_that_also_gives_a_frozen_size_holds_its_group_back():
    graph = auxin.trace(Fixed(), torch.randn(4, 6))
    assert graph.growable() == () and "also gives a size that cannot grow" in graph["map"].frozen
