"""Copies of residual blocks: what trains them, what a replay makes of them, and how they are called."""

import copy

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.errors import ConfigError, GrowthError
from auxin.models.resnet import BasicBlock, ResNet20
from auxin.models.vit import ViT
from auxin.surgery import apply
from auxin.types import Deepen, GrowthPlan, Widen
from tests.cases import randomise

IMAGES = torch.randn(4, 3, 16, 16, dtype=torch.float64)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return randomise(ResNet20(width=4, blocks=(2, 1, 1)).double())


def vit() -> nn.Module:
    torch.manual_seed(0)
    return randomise(ViT(dim=8, depth=2, heads=2, image_size=16).double())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("build, site, stay", [(resnet, "stage1.1", "conv1"), (vit, "blocks.0", "up")])
def test_a_copy_is_trained_all_of_it(build, site, stay):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    before, names = model.eval()(IMAGES), [name for name, _ in model.named_parameters()]
    event = auxin.deepen(model, site, graph=auxin.trace(model, IMAGES), optimizer=optimizer)
    assert event.max_change < 1e-10 and torch.allclose(model.eval()(IMAGES), before, rtol=0, atol=1e-10)
    assert [name for name, _ in model.named_parameters() if ".grown." not in name] == names
    block = model.get_submodule(site).grown[0]
    assert type(block) is type(model.get_submodule(site))
    old = {name: p.detach().clone() for name, p in block.named_parameters()}
    assert torch.equal(old[f"{stay}.weight"], model.get_submodule(site).get_parameter(f"{stay}.weight"))
    train(model, optimizer)  # the zeros move first, and then what lies before them
    frozen = [name for name, p in block.named_parameters() if torch.equal(p, old[name])]
    assert not frozen


def test_a_copy_has_the_width_of_its_block_and_grows_with_it():
    model = resnet()
    graph = auxin.trace(model, IMAGES)
    auxin.widen(model, "stage1.1.conv1", 3, graph=graph)
    auxin.deepen(model, "stage1.1", graph=graph)
    assert model.stage1[1].grown[0].conv1.weight.shape == (7, 4, 3, 3)
    auxin.widen(model, "stage1.1.grown.0.conv1", 2, graph=graph)  # its hidden channels are its own
    assert model.stage1[1].grown[0].conv1.out_channels == 9 and model.stage1[1].conv1.out_channels == 7
    event = auxin.widen(model, "conv1", 1, graph=graph)  # the stream is shared
    assert event.max_change < 1e-10 and model.stage1[1].grown[0].conv1.in_channels == 5


def test_a_copy_of_a_grown_block_leaves_out_what_follows_it():
    model = resnet()
    graph = auxin.trace(model, IMAGES)
    for number in range(1, 4):
        event = auxin.deepen(model, "stage1.1", graph=graph)
        assert (event.changes[0].before, event.changes[0].after) == (number - 1, number)
    grown = model.stage1[1].grown
    assert len(grown) == 3 and not any("grown" in name for name, _ in grown.named_modules())
    assert not any(block._forward_hooks for block in grown)


def test_plain_blocks_and_copies_follow_each_other():
    model = resnet()
    graph = auxin.trace(model, IMAGES)
    before = model.eval()(IMAGES)
    auxin.deepen(model, "stage1.1", graph=graph)
    auxin.deepen(model, "stage1.1", graph=graph, copy=False, loader=[IMAGES])
    auxin.deepen(model, "stage1.1", graph=graph, copy=True)
    kinds = [type(block).__name__ for block in model.stage1[1].grown]
    assert kinds == ["BasicBlock", "IdentityBlock", "BasicBlock"]
    assert torch.allclose(model.eval()(IMAGES), before, atol=1e-10)


PLANS = [
    (resnet, (Widen("stage1.1.conv1", 2), Deepen("stage1.1"), Widen("stage1.1.conv1", 1), Deepen("stage1.1"))),
    (resnet, (Deepen("stage1.0"), Widen("conv1", 2), Deepen("stage1.1"))),
    (vit, (Widen("blocks.1.attention.qkv[heads]", 1), Deepen("blocks.1"), Deepen("blocks.0"))),
]


@pytest.mark.parametrize("build, operations", PLANS)
def test_a_replay_makes_the_same_copies(build, operations):
    model = build()
    graph, history = auxin.trace(model, IMAGES), auxin.History()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    history.append(apply(GrowthPlan("hand", operations), model, graph, optimizer=optimizer))
    train(model, optimizer)
    fresh = build()
    other = torch.optim.Adam(fresh.parameters())
    auxin.History.from_json(history.to_json()).replay(fresh, other)
    fresh.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # or they would share its tensors
    assert torch.equal(fresh.eval()(IMAGES), model.eval()(IMAGES))
    train(fresh, other)
    train(model, optimizer)
    assert torch.equal(fresh.eval()(IMAGES), model.eval()(IMAGES))


def test_averaged_weights_get_a_copy_of_their_own():
    model = resnet()
    ema = torch.optim.swa_utils.AveragedModel(model)
    randomise(ema.module, seed=3)
    before = ema(IMAGES)
    auxin.deepen(model, "stage1.1", graph=auxin.trace(model, IMAGES), ema=[ema])
    assert torch.allclose(ema(IMAGES), before, atol=1e-10)
    average = ema.module.stage1[1]
    assert torch.equal(average.grown[0].conv1.weight, average.conv1.weight)
    assert not torch.equal(average.conv1.weight, model.stage1[1].conv1.weight)


def test_a_failed_event_leaves_no_copy_behind():
    model = resnet()
    graph = auxin.trace(model, IMAGES)
    before, text = copy.deepcopy(model.state_dict()), str(graph)
    with pytest.raises(ConfigError):
        apply(GrowthPlan("hand", (Deepen("stage1.1"), Deepen("nowhere"))), model, graph)
    assert list(before) == list(model.state_dict()) and not model.stage1[1]._forward_hooks
    assert not model.stage1[1]._forward_hooks_with_kwargs and str(graph) == text


class Conditioned(nn.Module):
    """A residual block that takes a condition, a flag, or its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.condition = nn.Linear(6, 6), nn.Linear(3, 6)

    def forward(self, x: Tensor, c: Tensor, *, double: bool = False) -> Tensor:
        y = self.map(torch.relu(x + self.condition(c)))
        return x + (2 * y if double else y)


class Model(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.stem, self.block, self.head, self.call = nn.Linear(4, 6), Conditioned(), nn.Linear(6, 2), call

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.head(self.call(self.block, self.stem(x), c))


CALLS = {
    "by place": lambda block, x, c: block(x, c),
    "with a flag": lambda block, x, c: block(x, c, double=True),
    "by name": lambda block, x, c: block(x=x, c=c),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_copy_is_called_as_its_block(name):
    model, inputs = Model(CALLS[name]).double(), (torch.randn(5, 4).double(), torch.randn(5, 3).double())
    before = model(*inputs)
    auxin.deepen(model, "block", graph=auxin.trace(model, inputs))
    assert torch.allclose(model(*inputs), before, atol=1e-12)
    nn.init.normal_(model.block.grown[0].map.weight)
    x, c = model.stem(inputs[0]), inputs[1]
    by_hand = copy.deepcopy(model.block)
    by_hand._forward_hooks.clear()
    flag = {"double": True} if name == "with a flag" else {}
    expected = model.head(model.block.grown[0](by_hand(x, c, **flag), c, **flag))
    assert torch.allclose(model(*inputs), expected, atol=1e-12) and not torch.allclose(expected, before)


def test_a_block_that_gets_its_stream_second_is_refused_with_nothing_changed():
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(6, 6)

        def forward(self, c: Tensor, x: Tensor) -> Tensor:
            return x + self.map(c)

    model, inputs = Model(lambda block, x, c: block(2 * x, x)), (torch.randn(5, 4), torch.randn(5, 3))
    model.block = Swapped()
    with pytest.raises(GrowthError, match="as they were"):
        auxin.deepen(model, "block", graph=auxin.trace(model, inputs))
    assert not model.block._forward_hooks


def test_noise_moves_the_zeros():
    model = resnet()
    event = auxin.deepen(model, "stage1.1", graph=auxin.trace(model, IMAGES), noise=0.1, seed=1)
    block = model.stage1[1].grown[0]
    assert event.max_change > 1e-4 and 0.02 < block.bn2.weight.std().item() < 0.5
    assert torch.equal(block.conv2.weight, model.stage1[1].conv2.weight)


def likeness(one: nn.Module, other: nn.Module) -> float:
    """Return the cosine similarity of two blocks' first kernels or matrices."""
    weights = [block.conv1.weight if isinstance(one, BasicBlock) else block.up.weight for block in (one, other)]
    return torch.nn.functional.cosine_similarity(*(weight.flatten() for weight in weights), dim=0).item()


@pytest.mark.parametrize("build, site", [(resnet, "stage1.1"), (vit, "blocks.0")])
def test_further_copies_of_a_block_are_no_twins(build, site):
    """The first copy is one; each later one has a cosine of sqrt(1 - 1/4) with it, in one event or in several."""
    model = build()
    graph = auxin.trace(model, IMAGES)
    before = model.eval()(IMAGES)
    auxin.deepen(model, site, graph=graph)
    auxin.deepen(model, site, graph=graph)
    apply(GrowthPlan("hand", (Deepen(site), Deepen(site))), model, graph)
    assert torch.allclose(model.eval()(IMAGES), before, rtol=0, atol=1e-10)
    host = model.get_submodule(site)
    first, *others = host.grown
    assert likeness(host, first) == pytest.approx(1)
    for number, block in enumerate(others):
        assert 0.75 < likeness(host, block) < 0.95
        assert all(likeness(block, later) < 0.9 for later in others[number + 1 :])
        for (name, old), new in zip(first.named_parameters(), block.parameters(), strict=True):
            assert old.dim() > 1 or torch.equal(old, new), name  # norms and biases are those of the block


def test_a_copy_of_fresh_weights_has_their_size_and_is_another_with_another_seed():
    blocks = []
    for seed in (0, 0, 1):
        model = vit()
        auxin.deepen(model, "blocks.0", graph=auxin.trace(model, IMAGES), fresh=1.0, seed=seed)
        blocks.append(model.blocks[0].grown[0])
    host = model.blocks[0]
    assert torch.equal(blocks[0].up.weight, blocks[1].up.weight)
    assert all(abs(likeness(one, other)) < 0.3 for one, other in [(blocks[0], blocks[2]), (host, blocks[0])])
    assert blocks[0].up.weight.std().item() == pytest.approx(host.up.weight.std().item(), rel=0.3)
    assert not blocks[0].down.weight.any()


class Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.down(torch.relu(self.up(x))))


def test_a_first_copy_is_one_also_after_a_plain_block():
    x = torch.randn(3, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Rectified(), nn.Linear(6, 2))
    graph = auxin.trace(model, x)
    for copied in (False, True):
        auxin.deepen(model, "2", graph=graph, copy=copied)
    assert [type(block).__name__ for block in model[2].grown] == ["IdentityBlock", "Rectified"]
    assert likeness(model[2], model[2].grown[1]) == pytest.approx(1)


def test_a_plan_draws_other_weights_with_another_seed():
    blocks = []
    for seed in (0, 0, 1):
        plan = auxin.planned([{"after": 1, "deepen": {"stage1.1": 1}, "fresh": 0.5}])
        model = resnet()
        auxin.Grower(model, None, IMAGES, trigger=plan, seed=seed).step(0)
        blocks.append(model.stage1[1].grown[0].conv1.weight)
    assert torch.equal(blocks[0], blocks[1]) and not torch.equal(blocks[0], blocks[2])


def test_averaged_weights_get_the_same_fresh_numbers():
    model = resnet()
    ema = torch.optim.swa_utils.AveragedModel(model)
    auxin.deepen(model, "stage1.1", graph=auxin.trace(model, IMAGES), ema=[ema], fresh=0.5)
    assert torch.equal(ema.module.stage1[1].grown[0].conv1.weight, model.stage1[1].grown[0].conv1.weight)


def test_what_does_not_fit_is_one_sentence():
    model = resnet()
    graph = auxin.trace(model, IMAGES)
    with pytest.raises(ConfigError, match=r"drawn anew is 2: give 0 to 1"):
        auxin.deepen(model, "stage1.1", graph=graph, fresh=2)
    with pytest.raises(ConfigError, match=r"'stage1\.1\.act1' gets a plain block: leave fresh out"):
        auxin.deepen(model, "stage1.1.act1", graph=graph, fresh=0.5)
    with pytest.raises(ConfigError, match=r"after epoch 1 has fresh 1\.5: give 0 to 1"):
        auxin.planned([{"after": 1, "deepen": {"stage1.1": 1}, "fresh": 1.5}])
    with pytest.raises(ConfigError, match=r"after epoch 1 has fresh, but copies no residual block"):
        auxin.planned([{"after": 1, "deepen": {"stage1.1.act1": 1}, "fresh": 0.5}]).check(graph)
    with pytest.raises(ConfigError, match=r"'stage1\.1\.act1' is no residual block"):
        auxin.deepen(model, "stage1.1.act1", graph=graph, copy=True)
    with pytest.raises(ConfigError, match=r"No activation ends 'stage1\.1', so only a copy"):
        auxin.deepen(model, "stage1.1", graph=graph, copy=False)


def test_a_plan_deepens_a_resnet_by_its_blocks():
    model = resnet()
    plan = auxin.planned([{"after": 1, "deepen": {r"stage1\.\d": 2}, "fresh": 0}])
    grower = auxin.Grower(model, torch.optim.SGD(model.parameters(), lr=0.1), IMAGES, trigger=plan)
    assert "copy of the residual block" in str(grower.graph)
    event = grower.step(0, loader=[IMAGES])
    assert event is not None and event.max_change < 1e-10
    assert [len(block.grown) for block in model.stage1] == [2, 2]
    assert all(likeness(*block.grown) == pytest.approx(1) for block in model.stage1)


class Decoder(nn.Module):
    """PyTorch's own layers, called with masks by name and with a memory."""

    def __init__(self) -> None:
        super().__init__()
        options = {"d_model": 16, "nhead": 4, "dim_feedforward": 24, "batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options), 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), 2)
        self.head = nn.Linear(16, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype)
        return self.head(self.decoder(target, self.encoder(source), tgt_mask=mask, tgt_is_causal=True))


@pytest.mark.parametrize("length", [4, 5])  # the memory has a length of 5: of the target's shape too
def test_layers_of_torch_that_normalise_first_are_copied_with_their_masks(length):
    torch.manual_seed(0)
    model, inputs = Decoder().double(), (torch.randn(2, 5, 16).double(), torch.randn(2, length, 16).double())
    graph = auxin.trace(model, inputs)
    names = [site.name for site in graph.sites if site.neutral]
    assert names == [f"{part}.layers.{k}" for part in ("encoder", "decoder") for k in range(2)]
    before = model.eval()(*inputs)
    for name in names:
        assert auxin.deepen(model, name, graph=graph, noise=0.0).max_change < 1e-10
    for name in names:
        nn.init.normal_(model.get_submodule(name).grown[0].linear2.weight)
    after = model(*inputs)
    assert not torch.allclose(after, before)
    changed = inputs[1].clone()
    changed[:, -1] += 1
    assert torch.allclose(model(inputs[0], changed)[:, :-1], after[:, :-1], atol=1e-10)  # the copies are causal too


def test_a_compiled_model_runs_its_copies():
    model = resnet().eval()
    compiled = torch.compile(model, backend="eager")
    before = compiled(IMAGES)
    auxin.deepen(compiled, "stage1.1", graph=auxin.trace(model, IMAGES))
    assert torch.allclose(compiled(IMAGES), before, atol=1e-10)
    nn.init.ones_(model.stage1[1].grown[0].bn2.weight)
    assert torch.allclose(compiled(IMAGES), model(IMAGES), atol=1e-10)
    assert not torch.allclose(compiled(IMAGES), before)


def test_a_copy_keeps_the_modes_of_its_parts_and_no_gradients():
    model = resnet().train()
    model.stage1[1].bn1.eval()
    model(IMAGES).square().mean().backward()
    auxin.deepen(model, "stage1.1", graph=auxin.trace(model, IMAGES))
    block = model.stage1[1].grown[0]
    assert block.training and block.bn2.training and not block.bn1.training
    assert all(p.grad is None for p in block.parameters())
    assert all(p.grad is not None for p in model.stage1[0].parameters())


class Padded(nn.Module):
    """PyTorch's encoder with padding, for which it makes nested tensors in eval mode."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16, padding_idx=0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 20, batch_first=True), 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.encoder(self.words(x), src_key_padding_mask=x == 0)[:, 0])


def test_a_block_in_pytorchs_encoder_meets_no_nested_tensor():
    torch.manual_seed(0)
    model, x = Padded().eval(), torch.randint(1, 20, (4, 6))
    x[:, 4:] = 0
    with torch.no_grad():
        before = model(x)
    site = "encoder.layers.0.linear1"
    grower = auxin.Grower(model, None, x, trigger=auxin.planned([{"after": 1, "deepen": {site: 1}}]))
    assert grower.step(0) is not None
    fresh = Padded().eval()
    grower.history.replay(fresh)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        for one in (model, fresh):
            assert torch.allclose(one(x), before, atol=1e-5)
