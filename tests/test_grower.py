"""Grower in a plain training loop."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import auxin
from auxin.errors import CheckpointError, ConfigError, GrowthError
from auxin.methods import METHODS
from auxin.methods.net2net import Net2Net
from auxin.surgery import IdentityBlock
from auxin.types import Deepen, GrowthPlan


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(3, (16,), generator=torch.Generator().manual_seed(2))


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()


def loop(model, optimizer, grower, epochs):
    for epoch in epochs:
        train(model, optimizer)
        grower.step(epoch)


def new_grower(model, optimizer, **options):
    defaults = {"trigger": auxin.every(2), "budget": auxin.ratio(0.5), "method": "net2net", "seed": 7}
    return auxin.Grower(model, optimizer, IMAGES[:2], **(defaults | options))


def test_the_same_seed_grows_the_same_weights_bit_for_bit():
    results = []
    for _ in range(2):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        loop(model, optimizer, new_grower(model, optimizer), range(5))
        results.append(model.state_dict())
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])


def test_a_resumed_loop_ends_at_the_same_weights():
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    grower = new_grower(model, optimizer)
    loop(model, optimizer, grower, range(3))
    saved = json.loads(json.dumps(grower.state_dict()))
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    loop(model, optimizer, grower, range(3, 6))

    fresh = make()
    auxin.History.from_json(saved["history"]).replay(fresh)
    fresh.load_state_dict(weights)
    second = torch.optim.Adam(fresh.parameters(), 0.01)
    second.load_state_dict(moments)
    resumed = new_grower(fresh, second)
    resumed.load_state_dict(saved)
    loop(fresh, second, resumed, range(3, 6))
    assert len(resumed.events) == len(grower.events) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_a_state_of_another_size_is_refused():
    model = make()
    grower = new_grower(model, None)
    grower.grow()
    with pytest.raises(CheckpointError, match="replay the history"):
        new_grower(make(), None).load_state_dict(grower.state_dict())


def test_an_optimizer_made_after_the_replay_of_new_layers_is_refused():
    """PyTorch tells parameters by their order: the moments of one would go to another, or past its end."""
    steps = [{"after": 1, "deepen": {"2": 1}}]
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    grower = auxin.Grower(model, optimizer, IMAGES[:2], trigger=auxin.planned(steps))
    train(model, optimizer)
    grower.step(0)
    train(model, optimizer)
    saved, weights = json.loads(json.dumps(grower.state_dict())), copy.deepcopy(model.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())

    def resumed(first: bool, state: dict) -> torch.optim.Optimizer:
        fresh = make()
        before = torch.optim.Adam(fresh.parameters(), 0.01)
        auxin.History.from_json(saved["history"]).replay(fresh, before)
        second = before if first else torch.optim.Adam(fresh.parameters(), 0.01)
        fresh.load_state_dict(weights)
        second.load_state_dict(moments)
        auxin.Grower(fresh, second, IMAGES[:2], trigger=auxin.planned(steps)).load_state_dict(state)
        return second

    again = resumed(True, saved)
    for one, two in zip(optimizer.param_groups[0]["params"], again.param_groups[0]["params"], strict=True):
        assert torch.equal(one, two) and torch.equal(optimizer.state[one]["exp_avg"], again.state[two]["exp_avg"])
    with pytest.raises(CheckpointError, match=r"another order .* History\.replay"):
        resumed(False, saved)
    resumed(False, {key: value for key, value in saved.items() if key != "optimizers"})  # as the sentence says


def test_until_caps_the_last_event_and_then_nothing_grows():
    model = make()
    grower = new_grower(model, None, until="params<=700", trigger=auxin.every(1))
    sizes = [sum(p.numel() for p in model.parameters()) for epoch in range(8) if grower.step(epoch)]
    assert sizes and sizes[-1] <= 700
    assert sizes[-1] == sum(p.numel() for p in model.parameters())
    assert grower.step(20) is None


def test_events_carry_epoch_reason_and_costs():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    grower = new_grower(model, optimizer)
    assert grower.step(0) is None
    event = grower.step(1)
    assert (event.epoch, event.reason) == (1, "every 2 epochs, event 1")
    assert event.parameters_after == sum(p.numel() for p in model.parameters()) > event.parameters_before
    assert event.flops_after == grower.graph.flops() > event.flops_before
    assert "net2net" in str(event) and "→" in str(event)


def test_state_can_be_started_anew():
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    train(model, optimizer)
    new_grower(model, optimizer, carry_state=False).grow()
    assert not optimizer.state
    train(model, optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_grower_without_a_budget_says_what_to_pass():
    with pytest.raises(ConfigError, match="budget"):
        auxin.Grower(make(), None, IMAGES[:2]).grow()


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ConfigError, match="net2net"):
        auxin.Grower(make(), None, IMAGES[:2], method="nonsense")


# Depth


@pytest.mark.parametrize("site", ["2", "5"])
def test_an_identity_block_preserves_eval_and_train_mode_and_is_trained(site):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    graph = auxin.trace(model, IMAGES[:2])
    names = list(model.state_dict())
    reference = copy.deepcopy(model)
    event = auxin.deepen(model, site, graph=graph, optimizer=optimizer, loader=[IMAGES])
    assert event.max_change < 1e-5
    assert [n for n in model.state_dict() if ".grown." not in n] == names
    with torch.no_grad():
        assert (model.train()(IMAGES) - reference.train()(IMAGES)).abs().max() < 1e-5
    before = [p.detach().clone() for p in model[int(site)].parameters()]
    train(model, optimizer, steps=3)
    assert all((now != then).any() for now, then in zip(model[int(site)].parameters(), before, strict=True))


def test_blocks_can_be_widened_and_stacked_and_replayed():
    model = make().double()
    images = IMAGES.double()
    graph = auxin.trace(model, images[:2])
    history = auxin.History()
    for step in range(2):
        history.append(auxin.deepen(model, "2", graph=graph))
        history.append(auxin.widen(model, "0", 2, graph=graph, method="net2net", seed=step))
        history.append(auxin.widen(model, "2.grown.0.map", 1, graph=graph, seed=step))
    assert len(model[2].grown) == 2
    assert max(event.max_change for event in history.events) < 1e-10
    fresh = make().double()
    auxin.History.from_json(json.loads(json.dumps(history.to_json()))).replay(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(images), model.eval()(images))


def test_new_parameters_join_the_groups_of_their_kind():
    model = make()
    norms = [p for m in model for n, p in m.named_parameters() if isinstance(m, nn.BatchNorm2d)]
    others = [p for p in model.parameters() if all(p is not q for q in norms)]
    optimizer = torch.optim.SGD([{"params": others, "weight_decay": 0.1}, {"params": norms}], lr=0.1)
    auxin.deepen(model, "2", graph=auxin.trace(model, IMAGES[:2]), optimizer=optimizer)
    block = model[2].grown[0]
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert id(block.map.weight) in groups[0]
    assert id(block.norm.weight) in groups[1] and id(block.norm.bias) in groups[1]
    assert sum(map(len, groups)) == len(list(model.parameters()))


def test_a_failed_insertion_leaves_no_trace():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    graph = auxin.trace(model, IMAGES[:2])
    state, groups = list(model.state_dict()), [list(g["params"]) for g in optimizer.param_groups]
    grower = new_grower(model, optimizer)
    plan = GrowthPlan("test", (Deepen("2"), Deepen("2", kernel_size=2)))
    with pytest.raises(ConfigError, match="odd"):
        grower.apply(plan)
    assert list(model.state_dict()) == state
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [[id(p) for p in g] for g in groups]
    assert not model[2]._forward_hooks and len(graph.sites) == 2


@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU", "GELU", "SiLU", "PReLU", "ELU", "Mish"])
@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv3d", "linear"])
@pytest.mark.parametrize("norm", [False, True])
def test_a_block_is_the_identity_on_every_kind_of_edge(activation, kind, norm):
    rank = 0 if kind == "linear" else int(kind[4])
    x = torch.randn(6, 5, *(4,) * rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = IdentityBlock(kind, 5, norm=norm, activation=activation, blend=True).double()
    flat = x.movedim(1, 0).flatten(1)
    block.calibrate(flat.mean(1), flat.var(1, unbiased=False))
    for mode in (False, True):  # training moves the running statistics
        assert (block.train(mode)(x) - x).abs().max() < 1e-12
    assert block(x).sum().requires_grad


def test_a_norm_cannot_be_calibrated_on_one_sample_and_the_error_says_so():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    graph = auxin.trace(model, torch.randn(1, 4))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="a loader whose batches hold 2 or more"):
        auxin.deepen(model, "2", graph=graph)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    auxin.deepen(model, "2", graph=graph, loader=[torch.randn(8, 4)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0.35}, "auxin.ratio"),
        ({"trigger": 3}, "no trigger"),
        ({"trigger": auxin.natural}, "with brackets"),
        ({"trigger": "every"}, "no trigger"),
        ({"method": Net2Net}, "instance"),
        ({"refine": 15}, "auxin.Similarity"),
        ({"until": 325000}, "params<=325k"),
        ({"trigger": auxin.planned([{"after": 1, "widen": {"0": 9}}]), "until": "params<=1k"}, "leave until"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)}, "no parameter of this model"),
        ({"optimizer": "sgd"}, "no optimizer"),
    ],
)
def test_an_argument_of_another_kind_is_refused_at_once(options, words):
    with pytest.raises(ConfigError, match=words):
        auxin.Grower(make(), options.pop("optimizer", None), IMAGES[:2], **options)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"nn\.Module"):
        auxin.Grower("resnet18", None, IMAGES[:2])


def test_a_state_that_is_none_is_refused():
    with pytest.raises(CheckpointError, match="history"):
        auxin.Grower(make(), None, IMAGES[:2]).load_state_dict({})


def test_a_plateau_is_not_made_of_nans():
    trigger = auxin.plateau(patience=1)
    assert [trigger(epoch, {"val_loss": value}) for epoch, value in enumerate([1.0, float("nan"), 0.5])] == [None] * 3


def test_a_compiled_model_trains_an_inserted_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    compiled, optimizer = torch.compile(model, backend="eager"), torch.optim.SGD(model.parameters(), 0.05)
    x = torch.randn(32, 5)
    compiled(x).square().mean().backward()
    auxin.deepen(model, "1", graph=auxin.trace(model, x), optimizer=optimizer)
    compiled(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for n, p in model.named_parameters() if "grown" in n)


class Auxiliary(nn.Module):
    """A head that only training uses."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 8)
        self.head, self.aux = nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, x):
        h = self.first(x).relu()
        y = self.head(self.second(h).relu())
        return (y, self.aux(h)) if self.training else y


def test_what_only_training_uses_does_not_grow_and_holds_back_what_feeds_it():
    model, x = Auxiliary(), torch.randn(2, 3)
    grower = auxin.Grower(model, None, x, budget=auxin.ratio(0.5))
    assert {group.name for group in grower.graph.growable()} == {"first", "second"}
    event = grower.grow()
    assert [change.target for change in event.changes] == ["second"]
    assert "first is frozen from now on" in event.notes[0] and "training mode" in event.notes[0]
    assert [y.shape for y in model.train()(x)] == [(2, 4), (2, 4)]
    with pytest.raises(auxin.AuxinError, match="training mode"):
        auxin.widen(model, "first", 1, graph=auxin.trace(model, x))


def test_a_check_in_training_mode_leaves_norms_and_random_numbers_alone():
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)).train()
    graph = auxin.trace(model, torch.randn(2, 3))
    state = {name: tensor.clone() for name, tensor in model[1].state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    auxin.widen(model, "0", 2, graph=graph)
    assert torch.equal(torch.rand(2), expected) and model.training
    assert all(
        torch.equal(tensor[:6] if tensor.ndim else tensor, state[n]) for n, tensor in model[1].state_dict().items()
    )


class Written(nn.Module):
    """A size written into a view; the group behind it cannot grow, though nothing in the graph says so."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu().view(-1, 8)).relu())


@pytest.mark.parametrize("method", ["random", "net2net", "gradmax", "firefly"])
def test_a_group_that_resists_is_left_out_and_the_others_grow(method):
    torch.manual_seed(0)
    model, x, y = Written(), torch.randn(8, 3), torch.randn(8, 2)
    optimizer = torch.optim.Adam(model.parameters())
    grower = auxin.Grower(model, optimizer, x, method=method, budget=auxin.count(2))
    loss = nn.functional.mse_loss
    event = grower.grow(loader=[(x, y)] * 6, loss_fn=loss)
    assert [change.target for change in event.changes] == ["b"] and grower.history.events == [event]
    assert "a is frozen from now on" in event.notes[-1] and "view(-1, 8)" in event.notes[-1]
    again = grower.grow(loader=[(x, y)] * 6, loss_fn=loss)
    assert again is not None and not any("frozen from now on" in note for note in again.notes)
    loss(model(x), y).backward()
    optimizer.step()


def test_where_all_that_can_grow_resists_it_is_said_and_nothing_has_changed():
    model, x = Written(), torch.randn(8, 3)
    model.b, model.c = nn.Linear(8, 2), nn.Identity()
    grower = auxin.Grower(model, None, x, budget=auxin.count(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(GrowthError, match=r"'a' failed at .*view\(-1, 8\)"):
        grower.grow()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_in_which_nothing_can_grow_is_refused_at_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"No width group of this model can grow.*layer_norm .* normalises over it"):
        auxin.Grower(model, None, torch.randn(2, 3), budget=auxin.ratio(0.5))
    auxin.Grower(model, None, torch.randn(2, 3), trigger=auxin.natural())  # which may add layers
    grower = auxin.Grower(
        model, None, torch.randn(2, 3), budget=auxin.ratio(0.5, allow_inexact=True), allow_inexact=True
    )
    assert grower.grow() is not None


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_model_grows_as_the_model_does(method):
    grown = []
    for wrap in (lambda model: model, torch.compile):
        model = make()
        grower = auxin.Grower(wrap(model), None, IMAGES[:2], method=method, budget=auxin.ratio(0.5))
        grower.grow(loader=[(IMAGES, LABELS)] * 3, loss_fn=nn.functional.cross_entropy)
        graph, by_hand = auxin.trace(model, IMAGES[:2]), wrap(model)
        data = {"loader": [(IMAGES, LABELS)] * 3, "loss_fn": nn.functional.cross_entropy}
        auxin.widen(by_hand, "0", 2, graph=graph, method=method, **data)
        assert bool((model[0].weight[-2:].flatten(1).norm(dim=1) > 0).all()), "a neuron that reads nothing"
        grown.append(model.state_dict())
    assert all(torch.equal(grown[0][name], grown[1][name]) for name in grown[0])


def test_the_natural_trigger_leaves_a_resisting_group_out_too():
    torch.manual_seed(0)
    model, x, y = Written(), torch.randn(16, 3), torch.randint(2, (16,))
    trigger = auxin.natural(tau=0.0, deepen=False, data=(x, y), times=1)
    grower = auxin.Grower(model, None, x[:2], trigger=trigger)
    event = grower.step(0, None, nn.functional.cross_entropy)
    assert [change.target for change in event.changes] == ["b"] and len(grower.decisions) == 1


def test_parts_that_are_not_trained_do_not_grow():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    model[:4].requires_grad_(False)
    graph = auxin.trace(model, torch.randn(2, 4))
    assert [group.name for group in graph.growable()] == ["2", "4"]
    assert "not trained" in graph["0"].frozen
    assert len(auxin.trace(model.requires_grad_(False), torch.randn(2, 4)).growable()) == 3


@pytest.mark.parametrize("method", ["gradmax", "firefly", "splitting"])
def test_a_model_that_keeps_an_activation_or_runs_a_part_without_gradients_grows(method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 2)

        def forward(self, x):
            with torch.no_grad():
                h = self.a(x).relu()
            self.last = self.b(h).relu()
            return self.c(self.last)

    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(16, 5), torch.randn(16, 2)
    nn.functional.mse_loss(model(x), y).backward()
    grower = auxin.Grower(model, None, x[:2], method=method, budget=auxin.count(2))
    event = grower.grow(loader=[(x, y)] * 6, loss_fn=nn.functional.mse_loss)
    assert [(change.before, change.after) for change in event.changes] == [(7, 9), (6, 8)]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["gradmax", "firefly", "splitting"])
def test_recomputed_activations_are_refused_in_one_sentence(method, reentrant):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 2)

        def forward(self, x):
            return self.b(checkpoint(lambda z: self.a(z).relu(), x, use_reentrant=reentrant))

    model, x, y = Net(), torch.randn(16, 5), torch.randn(16, 2)
    grower = auxin.Grower(model, None, x[:2], method=method, budget=auxin.count(2))
    try:
        event = grower.grow(loader=[(x, y)] * 6, loss_fn=nn.functional.mse_loss)
    except ConfigError as error:
        assert "gradient_checkpointing_disable" in str(error)
    else:
        assert event is not None


def test_an_own_loop_resumes_with_the_optimizer_across_new_layers():
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        return model, torch.optim.AdamW(model.parameters(), 1e-2)

    def descend(model, optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            losses.append(nn.functional.mse_loss(model(x), y))
            losses[-1].backward()
            optimizer.step()
        return [float(loss) for loss in losses]

    x, y = torch.randn(32, 8), torch.randn(32, 8)
    model, optimizer = build()
    grower = auxin.Grower(model, optimizer, x[:2], budget=auxin.ratio(0.3))
    descend(model, optimizer, 2)
    grower.apply(auxin.GrowthPlan("test", (Deepen("1"), Deepen("3"), Deepen("1"))))
    grower.grow()
    grower.apply(auxin.GrowthPlan("test", (Deepen("1"),)))
    descend(model, optimizer, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), grower.state_dict()))
    whole = descend(model, optimizer, 3)
    model, optimizer = build()
    history = auxin.History.from_json(saved[2]["history"])
    history.replay(model, optimizer)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert descend(model, optimizer, 3) == whole
    with pytest.raises(CheckpointError, match="grown already"):
        history.replay(model)


def test_a_new_layer_takes_the_type_of_the_layers_around_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.map, self.act = nn.Embedding(5, 4).bfloat16(), nn.Linear(4, 6), nn.ReLU()
            self.head = nn.Linear(6, 2)

        def forward(self, tokens):
            return self.head(self.act(self.map(self.table(tokens).float())))

    model = Net()
    event = auxin.deepen(model, "act", graph=auxin.trace(model, torch.tensor([[1, 2]])))
    assert event.max_change < 1e-6 and model.act.grown[0].map.weight.dtype == torch.float32


def test_a_forward_that_moves_other_weights_while_it_trains_grows_and_is_left_as_it_was() -> None:
    class Teacher(nn.Module):
        """A slow copy follows the network in each training forward, as in MoCo and BYOL."""

        def __init__(self) -> None:
            super().__init__()
            self.fast, self.slow, self.head = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 6)
            self.last = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                with torch.no_grad():
                    for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
                        slow.data = 0.5 * slow.data + 0.5 * fast.data
            return self.last(torch.relu(self.head(self.fast(x)))) * self.slow(x)

    torch.manual_seed(0)
    model = Teacher()
    before = model.slow.weight.detach().clone()
    grower = auxin.Grower(model, None, torch.randn(2, 4), budget=auxin.count(2, "neurons"))
    assert "head" in [change.target for change in grower.grow().changes]
    assert torch.equal(model.slow.weight, before)


@pytest.mark.parametrize("kind", ["widen", "gradmax", "deepen", "grower"])
def test_growth_within_inference_mode_leaves_parameters_that_train(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer, x, y = torch.optim.Adam(model.parameters()), torch.randn(16, 6), torch.arange(16) % 3
    loss_fn = nn.functional.cross_entropy
    loss_fn(model(x), y).backward()
    optimizer.step()
    with torch.inference_mode():
        if kind == "deepen":
            auxin.deepen(model, "1", graph=auxin.trace(model, x), optimizer=optimizer)
        elif kind == "grower":
            auxin.Grower(model, optimizer, x, trigger=auxin.every(1), budget=auxin.ratio(0.5)).step(0)
        else:
            method = "random" if kind == "widen" else kind
            graph = auxin.trace(model, x)
            auxin.widen(
                model, "0", 3, graph=graph, optimizer=optimizer, method=method, loader=[(x, y)], loss_fn=loss_fn
            )
    assert not any(parameter.is_inference() for parameter in model.parameters())
    loss_fn(model(x), y).backward()
    optimizer.step()


def test_what_resists_growth_is_known_after_a_resume_and_a_new_trace() -> None:
    class Hard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(9, 3)
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.a(x)).view(-1, 8)
            return self.c(self.act(self.b(h)))

    def grown(model: nn.Module) -> auxin.Grower:
        return auxin.Grower(model, None, torch.randn(2, 6), trigger=auxin.every(1), budget=auxin.ratio(0.3))

    torch.manual_seed(0)
    model, again = Hard(), Hard()
    grower = grown(model)
    first = grower.step(0)
    assert "a is frozen from now on" in first.notes[0] and "a" in grower.resisting
    grower.history.replay(again)
    resumed = grown(again)
    resumed.load_state_dict(grower.state_dict())
    auxin.deepen(model, "act", graph=grower.graph)
    for one in (resumed, grower):
        event = one.step(1)
        assert event is not None and not any("frozen from now on" in note for note in event.notes)
