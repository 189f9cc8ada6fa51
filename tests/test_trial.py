"""Trying a group leaves no trace."""

import pytest
import torch
from torch import nn

import auxin
from auxin.errors import GrowthError
from auxin.trial import resisting_groups, try_group
from tests.cases import CASES, randomise


@pytest.mark.parametrize("name", ["residual", "depthwise", "grouped", "fused_attention", "dense_concat"])
def test_a_trial_grows_and_takes_everything_back_bit_for_bit(name):
    model, example = randomise(CASES[name].build()), CASES[name].inputs()
    graph = auxin.trace(model, example)
    state = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    printed, attributes = str(graph), [dict(vars(module)) for module in model.modules()]
    for group in graph.growable():
        event = try_group(model, graph, group.name)
        assert [(change.before, change.after) for change in event.changes] == [(group.size, group.size + 1)]
    assert str(graph) == printed and resisting_groups(model, graph) == {}
    for key, value in model.state_dict().items():
        assert value.data_ptr() == state[key][0] and torch.equal(value, state[key][1]), key
    for module, before in zip(model.modules(), attributes, strict=True):
        sizes = {key: value for key, value in before.items() if isinstance(value, (int, tuple))}
        assert {key: vars(module)[key] for key in sizes} == sizes


def test_a_group_that_resists_gives_its_line():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).relu().view(-1, 8))

    model = Net()
    graph = auxin.trace(model, torch.randn(4, 3))
    assert "view(-1, 8)" in resisting_groups(model, graph)["a"]
    with pytest.raises(GrowthError):
        try_group(model, graph, "a")
    assert model.a.out_features == 8
