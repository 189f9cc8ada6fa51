"""Plans and events as files."""

import json

import torch
from safetensors.torch import load, save

import auxin
from auxin.budgets import Allocated
from auxin.methods import METHODS
from auxin.surgery import apply
from auxin.types import Event
from tests.cases import CASES, randomise


def test_a_plan_written_to_files_grows_the_same_model():
    case = CASES["residual"]
    models = [randomise(case.build()) for _ in range(2)]
    graphs = [auxin.trace(model, case.inputs()) for model in models]
    budget = Allocated({group.name: 2 for group in graphs[0].growable()})
    plan = METHODS["random"].propose(models[0], graphs[0], budget, generator=torch.Generator().manual_seed(3))
    data, tensors = plan.to_parts()
    copy = auxin.GrowthPlan.from_parts(json.loads(json.dumps(data)), load(save(tensors)))
    assert str(copy) == str(plan)
    assert [vars(op).keys() for op in copy.operations] == [vars(op).keys() for op in plan.operations]
    events = [apply(p, m, g) for p, m, g in zip((plan, copy), models, graphs, strict=True)]
    assert events[0].changes == events[1].changes
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_an_event_survives_json():
    case = CASES["mlp_layer_norm"]
    model = randomise(case.build())
    graph = auxin.trace(model, case.inputs())
    group = next(g for g in graph.groups if g.inexact)
    event = auxin.widen(model, group, 2, graph=graph, allow_inexact=True)
    again = Event.from_dict(json.loads(json.dumps(event.to_dict())))
    assert again == event
    assert [v for k, v in again.structure.attributes.items() if k.endswith(":normalized_shape")] == [(12,)]
