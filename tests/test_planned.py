"""Growth by a list."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import auxin
from auxin.errors import ConfigError
from auxin.models import vgg16
from auxin.planned import Step


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def start(steps, model=None, **kwargs) -> auxin.Grower:
    model = model or mlp()
    example = torch.randn(2, 4, dtype=torch.float64) if isinstance(model, nn.Sequential) else torch.randn(2, 3, 32, 32)
    return auxin.Grower(model, None, example, trigger=auxin.planned(steps), **kwargs)


def test_each_step_comes_after_its_epoch_and_reaches_its_sizes():
    grower = start([{"after": 4, "widen": {"2": 9}}, {"after": 2, "widen": {"0": 12}}])
    assert [epoch for epoch in range(6) if grower.step(epoch)] == [1, 3]
    assert (grower.model[0].out_features, grower.model[2].out_features) == (12, 9)
    assert [decision.winner for decision in grower.decisions] == ["widen 0 by 4", "widen 2 by 3"]


def test_a_regular_expression_names_many_and_what_is_there_stays():
    grower = start([{"after": 1, "widen": {r"\d": 7}}, {"after": 2, "widen": {r"\d": 7}}])
    event = grower.step(0)
    assert [(change.target, change.before, change.after) for change in event.changes] == [("2", 6, 7)]
    assert grower.step(1) is None
    assert grower.decisions[-1].reason == "the sizes planned after epoch 2 are there already"


@pytest.mark.parametrize("method", ["random", "net2net"])
def test_layers_and_width_in_one_event_keep_the_function(method):
    x = torch.randn(16, 4, dtype=torch.float64)
    grower = start([Step(1, {"0": 10}, {"1": 2, "3": 1})], method=method)
    before = grower.model(x)
    event = grower.step(0)
    assert torch.allclose(grower.model(x), before, rtol=0, atol=1e-10)
    assert event.method == f"planned, {method}"
    assert [block.map.in_features for block in grower.model[1].grown] == [10, 10]
    assert grower.model[3].grown[0].map.in_features == 6


@pytest.mark.parametrize("method", ["random", "net2net", "orthogonal"])
def test_new_units_are_alive(method):
    """They have a fan-in, so that their fan-out, zero at first, is trained, and then the fan-in as well."""
    grower = start([Step(1, {"0": 12})], method=method)
    grower.step(0)
    first, reader = grower.model[0].weight, grower.model[2].weight
    assert (first[8:].norm(dim=1) > 0).all()
    optimizer = torch.optim.SGD(grower.model.parameters(), lr=0.1)
    x, before = torch.randn(64, 4, dtype=torch.float64), first.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        grower.model(x).square().mean().backward()
        optimizer.step()
    assert (reader[:, 8:].norm(dim=0) > 0).all() and (first[8:] != before[8:]).any(1).all()


def test_a_shallow_vgg_becomes_vgg16_and_its_norms_see_the_loader():
    torch.manual_seed(0)
    model = vgg16(width=[4, 6, 6, 6, 6], stages=[1, 1, 2, 2, 2])
    missing = {f"features.{i}": 1 for i in (2, 6, 13, 20, 27)}
    plan = [{"after": 1, "widen": {r"features\.\d+": 6}, "deepen": missing}]
    grower = start(plan, model)
    images = torch.randn(3, 8, 3, 32, 32) * 2 + 1
    probe = torch.randn(4, 3, 32, 32)
    before = model.eval()(probe)
    twin = copy.deepcopy(model).train()
    edges = torch.cat([twin.features[:3](batch) for batch in images])
    grower.step(0, [(batch, torch.zeros(8).long()) for batch in images], F.cross_entropy)
    assert torch.allclose(model(probe), before, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in vgg16(width=6).parameters())
    # The new norm knows the loader's images, not the example alone.
    mean = model.features[2].grown[0].norm.running_mean
    assert torch.allclose(mean[:4], edges.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_name_inside_an_added_layer_is_looked_up_when_it_is_there():
    grower = start([{"after": 1, "deepen": {"1": 1}}, {"after": 2, "widen": {r"1\.grown\.0\.map": 11}}])
    assert grower.step(0) and grower.step(1)
    assert grower.model[2].in_features == 11


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"after": 1, "widen": {"9": 12}}], "fits no width group"),
        ([{"after": 1, "widen": {"4": 12}}], "4 cannot grow: it reaches the model's output"),
        ([{"after": 1, "deepen": {"11": 1}}], "fits no depth site; the nearest is 1"),
        ([{"after": 1, "widen": {"(": 12}}], "no regular expression"),
        ([{"after": 0, "widen": {"0": 12}}], "1 or more"),
        ([{"after": 1, "widen": {"0": 1.5}}], "give a whole number"),
        ([{"after": 1, "deepen": {"1": 0}}], "give a whole number"),
        ([{"after": 1}], "does nothing"),
        ([{"after": 1, "wide": {"0": 12}}], "after, widen, deepen and fresh"),
        ([{"after": 1, "widen": {"0": 12}}, {"after": 1, "deepen": {"1": 1}}], "Two steps"),
        ([], "empty"),
    ],
)
def test_mistakes_are_named_before_training(steps, words):
    with pytest.raises(ConfigError, match=words):
        start(steps)


def test_a_cap_is_refused_and_so_is_use_as_a_plain_trigger():
    with pytest.raises(ConfigError, match="leave until"):
        start([{"after": 1, "widen": {"0": 12}}], until="params<=1k").step(0)
    with pytest.raises(ConfigError, match="trigger of a Grower"):
        auxin.planned([{"after": 1, "widen": {"0": 12}}])(0, {})


def test_the_state_of_a_plan_is_the_epoch_alone():
    steps = [{"after": 1, "widen": {"0": 12}}, {"after": 3, "widen": {"0": 16}}]
    whole, cut = start(steps), start(steps)
    for epoch in range(2):
        whole.step(epoch)
        cut.step(epoch)
    fresh = auxin.Grower(cut.model, None, torch.randn(2, 4, dtype=torch.float64), trigger=auxin.planned(steps))
    fresh.load_state_dict(cut.state_dict())
    whole.step(2)
    fresh.step(2)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), fresh.model.parameters(), strict=True))


def test_without_a_loader_new_norms_are_calibrated_on_the_example():
    model = vgg16(width=4, stages=[1, 1, 1, 1, 1])
    grower = start([{"after": 1, "deepen": {"features.2": 1}}], model)
    event = grower.step(0)
    assert event.max_change < 1e-5 and len(model.features[2].grown) == 1
