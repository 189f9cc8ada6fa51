"""What a model is put into while it is looked at."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.errors import TraceError
from auxin.graph.capture import evaluation


def test_tf32_is_off_while_outputs_are_compared():
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    with evaluation(nn.Linear(1, 1)):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_tf32_comes_back_as_the_user_had_it():
    torch.set_float32_matmul_precision("high")
    try:
        with evaluation(nn.Linear(1, 1)):
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


class CachedBias(nn.Module):
    """LeViT's: in eval mode a table of biases is looked up once, and kept until ``train()`` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 7), nn.Linear(7, 3)
        self.table = nn.Parameter(torch.randn(7, 3))
        self.register_buffer("index", torch.tensor([0, 2, 1, 2, 0]))
        self.bias_cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "CachedBias":
        self.bias_cache.clear()
        return super().train(mode)

    def bias(self) -> Tensor:
        if self.training:
            return self.table[:, self.index]
        if "cpu" not in self.bias_cache:
            self.bias_cache["cpu"] = self.table[:, self.index]
        return self.bias_cache["cpu"]

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.relu(self.enter(x) + self.bias().T))


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # of torch.export, swallowed where it goes to stderr
@pytest.mark.parametrize("mode", [True, False])
def test_tensors_that_a_model_keeps_in_eval_mode_follow_its_growth(mode: bool) -> None:
    model = CachedBias().double().train(mode)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    before = model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grower = auxin.Grower(model, optimizer, x, trigger=auxin.every(1), budget=auxin.ratio(0.5))
    for epoch, width in enumerate((11, 17)):
        event = grower.step(epoch)
        assert event is not None and not event.notes and model.table.shape == (width, 3)
        assert torch.allclose(model(x), before, atol=1e-12)
        model(x).sum().backward()


class Remembering(CachedBias):
    """With a table that is made once, in ``__init__``, and that the forward only reads where it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.shift_cache = {"shift": torch.ones(3)}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift_cache.get("shift", 0.0)


def test_tensors_that_the_forward_does_not_make_again_are_put_back() -> None:
    model = Remembering().eval()
    model(torch.randn(2, 5, 4))
    with evaluation(model):
        assert not model.bias_cache and not model.shift_cache
        model(torch.randn(2, 5, 4))
    assert not model.bias_cache, "made by the forward, of parameters that may have changed"
    assert model.shift_cache["shift"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_script_module_is_refused_with_what_to_grow_instead() -> None:
    model = torch.jit.trace(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(TraceError, match="Grow the Python module that it was made from"):
        auxin.trace(model, torch.randn(2, 4))


@pytest.mark.parametrize("register", [nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook])
def test_a_hook_that_needs_memory_is_named(register: Callable[..., Any]) -> None:
    model, x, seen = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4), []
    auxin.deepen(model, "1", graph=auxin.trace(model, x))
    handle = register(model[2], lambda module, args, *output: seen.append(args[0].data_ptr()))
    with pytest.raises(TraceError, match=r"the forward hook of '2' runs too: remove it while tracing"):
        auxin.trace(model, x)
    handle.remove()
    with pytest.raises(TraceError) as caught:
        auxin.trace(model, torch.randn(2, 5))
    assert "hook" not in str(caught.value)


@pytest.mark.parametrize("register", [nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook])
def test_a_hook_that_needs_numbers_gets_them(register: Callable[..., Any]) -> None:
    model, x, seen = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4), []
    register(model[2], lambda module, args, *output: seen.append(args[0].detach().numpy()))
    with pytest.warns(UserWarning, match="looks at the values of its tensors"):
        graph = auxin.trace(model, x)
    assert [group.name for group in graph.growable()] == ["0"]
    model(x)
    assert len(seen) > 1 and all((given == seen[-1]).all() for given in seen)
