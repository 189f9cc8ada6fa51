"""A growth event that fails leaves nothing behind: every bit of model, optimizer and graph is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import auxin
import auxin.errors
from auxin.graph import Graph
from auxin.surgery import apply
from auxin.surgery.transaction import Transaction
from auxin.types import Deepen, GrowthPlan, Widen
from tests.cases import CASES, Inputs, call, randomise


@dataclass
class Training:
    """A model in the middle of training: gradients, momentum, running statistics, a module set to eval by hand."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    graph: Graph
    inputs: Inputs


def in_training(name: str) -> Training:
    case = CASES[name]
    torch.manual_seed(0)
    model, inputs = randomise(case.build(), seed=4).train(), case.inputs()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in call(model, inputs)).backward()
        optimizer.step()
    list(model.modules())[-1].eval()
    return Training(model, optimizer, auxin.trace(model, inputs), inputs)


def snapshot(training: Training) -> dict[str, Any]:
    """Everything that must come back, by value and by identity."""
    model, optimizer, graph = training.model, training.optimizer, training.graph
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    sizes: dict[str, Any] = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, int | float | str | bool | tuple | type(None)):
                sizes[f"{path}:{key}"] = value
        sizes[f"{path}!children"] = [(key, id(child)) for key, child in module._modules.items()]
        sizes[f"{path}!hooks"] = (list(module._forward_hooks), list(module._forward_pre_hooks))
    return {
        "values": {key: tensor.detach().clone() for key, tensor in tensors.items()},
        "identity": {key: id(tensor) for key, tensor in tensors.items()},
        "gradients": {key: None if p.grad is None else p.grad.clone() for key, p in model.named_parameters()},
        "requires_grad": {key: p.requires_grad for key, p in model.named_parameters()},
        "attributes": sizes,
        "groups": [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "hyper": copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]),
        "state": [(id(p), {k: (id(v), copy.deepcopy(v)) for k, v in s.items()}) for p, s in optimizer.state.items()],
        "graph": (str(graph), graph.groups, graph.sites, graph.num_parameters(), graph.flops()),
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_restored(training: Training, before: dict[str, Any]) -> None:
    after = snapshot(training)
    for key, value in before.items():
        assert same(after[key], value), f"{key} was not restored"
    for parameter in training.model.parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
    training.optimizer.zero_grad()
    sum(out.square().mean() for out in call(training.model.train(), training.inputs)).backward()
    training.optimizer.step()


def fails(
    training: Training, plan: GrowthPlan | None, group: str = "", error: type[BaseException] = auxin.AuxinError
) -> str:
    """Run a plan (or widen a group) that must fail; return the error's text after checking that all is restored."""
    before = snapshot(training)
    with pytest.raises(error) as caught:
        if plan is None:
            auxin.widen(training.model, group, 2, graph=training.graph, optimizer=training.optimizer)
        else:
            apply(plan, training.model, training.graph, optimizer=training.optimizer)
    assert_restored(training, before)
    return str(caught.value)


def test_hard_coded_size_is_rolled_back_and_the_line_is_named() -> None:
    training = in_training("hard_coded_view")
    text = fails(training, None, "conv", auxin.errors.GrowthError)
    assert "'conv'" in text
    assert "cases.py" in text and "x.view(x.shape[0], 5 * 36)" in text
    assert "\n" not in text


def test_a_group_that_does_not_touch_the_hard_coded_size_still_grows_after_a_rollback() -> None:
    training = in_training("hard_coded_view")
    fails(training, None, "conv")
    event = auxin.widen(training.model, "hidden", 2, graph=training.graph, optimizer=training.optimizer)
    assert event.max_change < 1e-5
    assert training.graph["hidden"].size == 9


def test_hard_coded_split_sizes_are_rolled_back() -> None:
    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(4, 12), nn.Linear(5, 2), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.relu(self.stem(x)).split([5, 7], dim=-1)
            return self.a(a) + self.b(b)

    torch.manual_seed(0)
    model, x = Sizes(), torch.randn(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    training = Training(model, optimizer, auxin.trace(model, x), (x,))
    touching = [
        g for g in training.graph.growable() if any(s.parameter == "stem.weight" and s.dim == 0 for s in g.slots)
    ]
    for group in touching:
        text = fails(training, None, group.name)
        assert "split([5, 7]" in text and repr(group.name) in text
    frozen = [g for g in training.graph.groups if g.frozen and any(s.parameter == "stem.weight" for s in g.slots)]
    assert touching or all(g.frozen for g in frozen)


def _count(method: str, run: Callable[[], object]) -> int:
    """How often a run calls a method of the transaction."""
    original, calls = getattr(Transaction, method), []
    setattr(Transaction, method, lambda *args, **kw: (calls.append(1), original(*args, **kw))[1])
    try:
        run()
    finally:
        setattr(Transaction, method, original)
    return len(calls)


@pytest.mark.parametrize("error", [RuntimeError("injected"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("method", ["replace", "set_attribute", "set_item"])
@pytest.mark.parametrize("name", ["residual", "grouped", "fused_attention"])
def test_an_error_at_any_moment_is_rolled_back(
    name: str, method: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = in_training(name)
    group = probe.graph.growable()[0].name

    def grow() -> object:
        return auxin.widen(probe.model, group, 1, graph=probe.graph, optimizer=probe.optimizer)

    total = _count(method, grow)
    assert total, f"widening {group} never calls {method}"
    training = in_training(name)
    original = getattr(Transaction, method)
    for moment in sorted({0, total // 2, total - 1}):
        left = iter(range(total))

        def fail_then(*args: Any, _left: Any = left, _moment: int = moment, **kw: Any) -> Any:
            result = original(*args, **kw)
            if next(_left) == _moment:
                raise error
            return result

        with monkeypatch.context() as patch:
            patch.setattr(Transaction, method, fail_then)
            expected = auxin.AuxinError if isinstance(error, Exception) else KeyboardInterrupt
            fails(training, None, group, expected)


def test_an_error_in_the_forward_after_growth_is_rolled_back() -> None:
    training = in_training("residual")
    width = training.graph.growable()[0].size

    def complain(module: nn.Module, args: tuple[Any, ...]) -> None:
        if any(p.shape[0] > width and p.dim() == 4 and p.shape[1] == 3 for p in module.parameters()):
            raise ValueError("this model refuses to be wider")

    training.model.register_forward_pre_hook(complain)
    text = fails(training, None, training.graph.growable()[0].name)
    assert "this model refuses to be wider" in text
    assert "test_transaction.py" in text


@pytest.mark.parametrize("shape", [(3, 3, 3, 3), (2, 3, 3), (2, 4, 3, 3), (1,)])
def test_a_plan_with_a_wrong_shape_is_rolled_back(shape: tuple[int, ...]) -> None:
    training = in_training("plain")
    group = training.graph.growable()[0]
    slot = next(s for s in group.slots if s.role == "producer")
    values = {f"{slot.parameter}:{slot.dim}": torch.ones(shape)}
    fails(training, GrowthPlan("hand", (Widen(group.name, 2, values=values),)))


def test_values_that_are_not_numbers_are_rolled_back() -> None:
    training = in_training("plain")
    group = training.graph.growable()[0]
    slot = next(s for s in group.slots if s.role == "producer")
    shape = list(training.model.get_parameter(slot.parameter).shape)
    shape[slot.dim] = 2
    values = {f"{slot.parameter}:{slot.dim}": torch.full(shape, torch.nan)}
    fails(training, GrowthPlan("hand", (Widen(group.name, 2, values=values),)))


def test_a_plan_that_changes_the_function_though_it_promised_not_to_is_rolled_back() -> None:
    training = in_training("plain")
    group = training.graph.growable()[0]
    values = {}
    for slot in group.slots:
        if slot.role in ("producer", "consumer"):
            shape = list(training.model.get_parameter(slot.parameter).shape)
            shape[slot.dim] = 2
            values[f"{slot.parameter}:{slot.dim}"] = torch.ones(shape)
    fails(training, GrowthPlan("hand", (Widen(group.name, 2, values=values),)))
    event = apply(
        GrowthPlan("hand", (Widen(group.name, 2, values=values),), preserves=False), training.model, training.graph
    )
    assert event.max_change > 1e-3


def test_the_second_operation_of_a_plan_takes_the_first_back() -> None:
    training = in_training("plain")
    first = training.graph.growable()[0].name
    fails(training, GrowthPlan("hand", (Widen(first, 2), Widen("no such group", 1))))
    fails(training, GrowthPlan("hand", (Widen(first, 2), Deepen("no such site"))))
    site = training.graph.sites[0].name
    fails(training, GrowthPlan("hand", (Deepen(site), Widen(first, 2), Widen("no such group", 1))))


@pytest.mark.parametrize("by", [0, -1])
def test_a_count_that_adds_nothing_is_refused(by: int) -> None:
    training = in_training("plain")
    fails(training, GrowthPlan("hand", (Widen(training.graph.growable()[0].name, by),)))


def test_a_frozen_group_is_refused_with_its_reason() -> None:
    training = in_training("plain")
    frozen = next(g for g in training.graph.groups if g.frozen)
    assert frozen.frozen is not None
    assert frozen.frozen in fails(training, None, frozen.name)


def test_success_leaves_random_state_and_training_flags_alone() -> None:
    training = in_training("plain")
    before = snapshot(training)
    flags = [m.training for m in training.model.modules()]
    auxin.widen(training.model, training.graph.growable()[0].name, 2, graph=training.graph, method="net2net")
    assert torch.equal(torch.get_rng_state(), before["random"])
    assert [m.training for m in training.model.modules()] == flags
    batches = [key for key in before["values"] if key.endswith("num_batches_tracked")]
    assert batches and all(torch.equal(training.model.get_buffer(key), before["values"][key]) for key in batches)
