"""Inserted blocks as ordinary entries of their lists: same function, same tensors, names as the class makes them."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.models.resnet import ResNet20
from auxin.models.vit import ViT
from auxin.surgery import apply
from tests.cases import randomise

IMAGES = torch.randn(4, 3, 16, 16, dtype=torch.float64)
TOKENS = torch.randn(3, 5, 8, dtype=torch.float64)


def deepened(model: nn.Module, inputs: Tensor, *sites: str) -> nn.Module:
    """Return a model after some insertions, with random numbers in every parameter."""
    graph = auxin.trace(model.double(), inputs)
    for site in sites:
        auxin.deepen(model, site, graph=graph)
    return randomise(model).eval()


def grown_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if "grown" in name]


def test_a_grown_resnet_becomes_what_its_class_makes():
    model = deepened(ResNet20(width=4, blocks=(2, 1, 1)), IMAGES, "stage1.0", "stage1.1", "stage1.1", "stage1.0")
    plain = auxin.unnest(model, IMAGES)
    assert type(plain) is ResNet20 and not grown_names(plain)
    fresh = ResNet20(width=4, blocks=(6, 1, 1)).double().eval()
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(IMAGES), model(IMAGES)) and torch.equal(plain(IMAGES), model(IMAGES))


def test_the_blocks_come_in_the_order_in_which_they_run():
    model = deepened(ViT(dim=8, depth=2, heads=2, image_size=16), IMAGES, "blocks.1", "blocks.0", "blocks.0")
    first, second = model.blocks
    expected = [first, *first.grown, second, *second.grown]
    plain = auxin.unnest(model, IMAGES)
    assert len(plain.blocks) == 5
    for block, original in zip(plain.blocks, expected, strict=True):
        assert block.up.weight is original.up.weight


def test_the_given_model_stays_as_it_is_and_shares_its_tensors():
    model = deepened(ResNet20(width=4, blocks=(2, 1, 1)), IMAGES, "stage1.1")
    names, before = list(model.state_dict()), model(IMAGES)
    plain = auxin.unnest(model, IMAGES)
    assert list(model.state_dict()) == names and torch.equal(model(IMAGES), before)
    assert {id(p) for p in plain.parameters()} == {id(p) for p in model.parameters()}
    assert {b.data_ptr() for b in plain.buffers()} == {b.data_ptr() for b in model.buffers()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    graph = auxin.trace(model, IMAGES)
    auxin.deepen(model, "stage1.1", graph=graph)  # the given one can go on growing
    assert len(model.stage1[1].grown) == 2 and len(plain.stage1) == 3


def test_a_model_that_did_not_grow_deeper_comes_back_the_same():
    model = randomise(ResNet20(width=4, blocks=(1, 1, 1)).double()).eval()
    plain = auxin.unnest(model, IMAGES)
    assert str(plain) == str(model) and torch.equal(plain(IMAGES), model(IMAGES))


def test_plain_blocks_in_a_sequence_with_names_of_its_own():
    named = OrderedDict(
        first=nn.Linear(8, 8), act=nn.ReLU(), act_1=nn.Linear(8, 8), last=nn.ReLU(), head=nn.Linear(8, 2)
    )
    model = deepened(nn.Sequential(named), TOKENS[:, 0], "act", "act", "last")
    plain = auxin.unnest(model, TOKENS[:, 0])
    assert [name for name, _ in plain.named_children()] == [
        "first", "act", "act_2", "act_3", "act_1", "last", "last_1", "head",
    ]  # fmt: skip
    assert torch.equal(plain(TOKENS[:, 0]), model(TOKENS[:, 0]))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class ByIndex(nn.Module):
    """Runs a list by the indices that it knows, and another from end to end; a block is in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.all = nn.ModuleList([Layer(), Layer()]), nn.ModuleList([Layer(), Layer()])
        self.alone, self.head = Layer(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.known[-1](self.known[0](x))
        for layer in self.all:
            x = layer(x)
        return self.head(self.alone(x))


def test_blocks_stay_where_a_list_is_not_run_through():
    model = ByIndex().double()
    graph = auxin.trace(model, TOKENS)
    for site in ("known.0", "known.1", "all.0", "all.1", "alone"):
        auxin.deepen(model, site, graph=graph)
    plain = auxin.unnest(model, TOKENS)  # the copies still do nothing: equal outputs alone would not show it
    assert grown_names(plain) == [
        f"{host}.grown{rest}" for host in ("known.0", "known.1", "alone") for rest in ("", ".0", ".0.up", ".0.down")
    ]
    assert len(plain.known) == 2 and len(plain.all) == 4
    randomise(model)
    assert torch.equal(plain(TOKENS), model(TOKENS))


class Counted(nn.Module):
    """As language models are made: each layer has a number, and a config counts them."""

    class Numbered(Layer):
        def __init__(self, number: int, kind: str) -> None:
            super().__init__()
            self.layer_idx, self.kind = number, kind

    class Config:
        def __init__(self) -> None:
            self.num_hidden_layers, self.layer_types, self.label_names = 2, ["local", "global"], ["a", "b"]

    def __init__(self) -> None:
        super().__init__()
        self.config = self.Config()
        self.layers = nn.ModuleList(self.Numbered(i, kind) for i, kind in enumerate(self.config.layer_types))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = set()
        for layer in self.layers[: self.config.num_hidden_layers]:
            x = layer(x)
            seen.add(layer.layer_idx)
        return self.head(x)


def state_of(model: Counted) -> tuple:
    numbers = [part.layer_idx for part in model.modules() if isinstance(part, Counted.Numbered)]
    return numbers, copy.copy(vars(model.config))


def test_numbered_layers_are_counted_and_come_in_order():
    model = Counted().double()
    graph = auxin.trace(model, TOKENS)
    for site in ("layers.1", "layers.0", "layers.1"):
        auxin.deepen(model, site, graph=graph)
    numbers, config = state_of(model)
    assert numbers == [0, 3, 1, 2, 4]
    assert config == {
        "num_hidden_layers": 5,
        "layer_types": ["local", "global", "global", "local", "global"],  # by number
        "label_names": ["a", "b"],
    }
    plain = auxin.unnest(randomise(model), TOKENS)
    numbers, ordered = state_of(plain)
    assert numbers == [0, 1, 2, 3, 4] and ordered["num_hidden_layers"] == 5
    assert ordered["layer_types"] == ["local", "local", "global", "global", "global"]  # by depth
    assert [layer.kind for layer in plain.layers] == ordered["layer_types"]
    assert state_of(model) == ([0, 3, 1, 2, 4], config)
    assert torch.equal(plain(TOKENS), model(TOKENS))


def test_a_refused_event_counts_nothing():
    model = Counted().double()
    before = state_of(model)
    graph = auxin.trace(model, TOKENS)
    plan = auxin.GrowthPlan("hand", (auxin.Deepen("layers.0"), auxin.Deepen("nowhere")))
    with pytest.raises(auxin.AuxinError):
        apply(plan, model, graph)
    assert state_of(model) == before


def test_a_replay_counts_alike_and_averages_have_their_own_config():
    model, fresh = Counted().double(), Counted().double()
    average = torch.optim.swa_utils.AveragedModel(model)
    graph, history = auxin.trace(model, TOKENS), auxin.History()
    for site in ("layers.1", "layers.0"):
        history.append(auxin.deepen(model, site, graph=graph, ema=[average]))
    history.replay(fresh)
    assert state_of(fresh) == state_of(model) == state_of(average.module)
    assert average.module.config is not model.config
