"""Properties of growth on random architectures: repeated, in any order, by any count, with either method."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import auxin
from auxin.graph import Graph
from tests.cases import randomise
from tests.surgery.random_nets import Net, Step, known_nets, nets, steps, traced

EVAL = {torch.float32: 1e-5, torch.float64: 1e-10}
TRAIN = {torch.float32: 1e-4, torch.float64: 1e-9}

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
}


def examples(count: int) -> settings:
    """Deterministic runs: the suite must say the same thing every time."""
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@torch.no_grad()
def output(model: nn.Module, inputs: tuple[Tensor, ...], train: bool = False) -> Tensor:
    """The output in eval or train mode, buffers untouched."""
    twin = copy.deepcopy(model).train(train)
    return twin(*inputs)


def distance(before: Tensor, after: Tensor) -> float:
    """max |Δ| relative to the largest output."""
    return float((before - after).abs().max() / before.abs().max().clamp(min=1e-3))


def grow(model: nn.Module, graph: Graph, step: Step, optimizer: torch.optim.Optimizer | None = None) -> auxin.Event:
    """Grow the group that a step points at."""
    groups = graph.growable()
    group = groups[step.which % len(groups)]
    return auxin.widen(
        model, group, step.by, graph=graph, method=step.method, optimizer=optimizer, seed=step.seed
    )  # fmt: skip


def kept(graph: Graph, event: auxin.Event) -> dict[str, dict[int, Tensor]]:
    """For each resized tensor and axis, the indices of the entries that were there before the event."""
    found: dict[str, dict[int, Tensor]] = {}
    for change in event.changes:
        group = graph[change.target]
        for slot in group.slots:
            new = {k for u in range(change.before, change.after) for k in graph.positions(group.name, slot, u)}
            size = sum(len(graph.positions(group.name, slot, u)) for u in range(group.size))
            shape = event.structure.shapes[slot.parameter]
            assert size <= shape[slot.dim]
            keep = [k for k in range(shape[slot.dim]) if k not in new]
            found.setdefault(slot.parameter, {})[slot.dim] = torch.tensor(keep)
    return found


def cut(tensor: Tensor, axes: dict[int, Tensor], shape: torch.Size) -> Tensor:
    """The old entries of a tensor of the parameter's shape, or of a factored one."""
    for dim, index in axes.items():
        if tensor.dim() == len(shape) and tensor.shape[dim] == shape[dim]:
            tensor = tensor.index_select(dim, index)
    return tensor


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...]) -> float:
    model.train()
    optimizer.zero_grad()
    loss = model(*inputs).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss)


@examples(120)
@given(net=nets(), plan=steps, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_growth_preserves_the_function_in_eval_and_train_mode(net: Net, plan: list[Step], dtype: torch.dtype) -> None:
    model, inputs = net.build().to(dtype), net.inputs(dtype)
    graph = auxin.trace(model, inputs)
    assume(graph.growable())
    for step in plan:
        evaluated, trained = output(model, inputs), output(model, inputs, train=True)
        before = graph.num_parameters()
        event = grow(model, graph, step)
        assert distance(evaluated, output(model, inputs)) < EVAL[dtype]
        assert distance(trained, output(model, inputs, train=True)) < TRAIN[dtype]
        assert event.changes[0].after - event.changes[0].before == step.by
        actual = sum(p.numel() for p in model.parameters())
        assert before == event.parameters_before < event.parameters_after == actual == graph.num_parameters()


@examples(110)
@given(net=known_nets, plan=steps, name=st.sampled_from(sorted(OPTIMIZERS)))
def test_training_goes_on_and_moments_of_old_units_are_bit_equal(net: Net, plan: list[Step], name: str) -> None:
    model, inputs = net.build(), net.inputs()
    graph = traced(net)
    assume(graph.growable())
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    order = [id(p) for group in optimizer.param_groups for p in group["params"]]
    train_step(model, optimizer, inputs)
    for step in plan:
        named = dict(model.named_parameters())
        states = {key: copy.deepcopy(dict(optimizer.state[p])) for key, p in named.items()}
        values = {key: p.detach().clone() for key, p in named.items()}
        gradients = {key: None if p.grad is None else p.grad.clone() for key, p in named.items()}
        event = grow(model, graph, step, optimizer)
        axes = kept(graph, event)
        for key, parameter in model.named_parameters():
            assert parameter is named[key]
            for entry, old in states[key].items():
                new = optimizer.state[parameter][entry]
                same = (
                    torch.equal(cut(new, axes.get(key, {}), parameter.shape), old)
                    if torch.is_tensor(old)
                    else new == old
                )
                assert same, f"{key}: {entry} of old units changed"
            if step.method == "random":
                assert torch.equal(cut(parameter.detach(), axes.get(key, {}), parameter.shape), values[key])
            if gradients[key] is not None and parameter.grad is not None:
                assert torch.equal(cut(parameter.grad, axes.get(key, {}), parameter.shape), gradients[key])
        assert [id(p) for group in optimizer.param_groups for p in group["params"]] == order
        assert torch.tensor(train_step(model, optimizer, inputs)).isfinite()
        assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
        assert output(model, inputs).isfinite().all()


@examples(80)
@given(net=known_nets, plan=steps)
def test_a_replayed_history_loads_the_state_dict_and_computes_the_same(net: Net, plan: list[Step]) -> None:
    model, inputs = net.build(), net.inputs()
    graph = traced(net)
    assume(graph.growable())
    history = auxin.History()
    for step in plan:
        history.append(grow(model, graph, step))
    data = json.loads(json.dumps(history.to_json()))
    fresh = net.build()
    auxin.History.from_json(data).replay(fresh)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(output(fresh, inputs), output(model, inputs))
    assert torch.equal(output(fresh, inputs, train=True), output(model, inputs, train=True))
    again = auxin.trace(fresh, inputs)
    assert {g.name: g.size for g in again.groups} == {g.name: g.size for g in graph.groups}
    assert again.flops() == graph.flops()


@examples(30)
@given(net=known_nets, plan=steps, data=st.data())
def test_width_and_depth_in_any_order_preserve_the_function(net: Net, plan: list[Step], data: st.DataObject) -> None:
    model, inputs = net.build().double(), net.inputs(torch.float64)
    graph = auxin.trace(model, inputs)
    assume(graph.growable() and graph.sites)
    history = auxin.History()
    for number, step in enumerate(plan):
        before = output(model, inputs)
        if number < 2:
            site = graph.sites[data.draw(st.integers(0, len(graph.sites) - 1))]
            history.append(auxin.deepen(model, site, graph=graph))
        history.append(grow(model, graph, step))
        assert distance(before, output(model, inputs)) < 1e-9
    fresh = net.build().double()
    auxin.History.from_json(json.loads(json.dumps(history.to_json()))).replay(fresh)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(output(fresh, inputs), output(model, inputs))


@examples(30)
@given(net=known_nets, plan=steps)
def test_copies_of_residual_blocks_preserve_the_function_and_grow(net: Net, plan: list[Step]) -> None:
    model, inputs = net.build().double(), net.inputs(torch.float64)
    graph = auxin.trace(model, inputs)
    blocks = [site.name for site in graph.sites if site.neutral]
    assume(blocks and graph.growable())
    before, trained = output(model, inputs), output(model, inputs, train=True)
    for name in blocks:
        auxin.deepen(model, name, graph=graph)
    assert distance(before, output(model, inputs)) < 1e-10
    assert distance(trained, output(model, inputs, train=True)) < 1e-10
    for step in plan[:2]:
        grow(model, graph, step)
    assert distance(before, output(model, inputs)) < 1e-9
    randomise(model)
    plain = auxin.unnest(model, inputs)
    assert torch.equal(output(plain, inputs), output(model, inputs))
    assert {id(parameter) for parameter in plain.parameters()} == {id(parameter) for parameter in model.parameters()}
