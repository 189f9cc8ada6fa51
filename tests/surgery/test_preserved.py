"""The check that a function is preserved."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import auxin
from auxin.errors import ConfigError, GrowthError


class Scaled(nn.Module):
    """Divides by the square root of its width, which growth changes."""

    def __init__(self, more: str = "") -> None:
        super().__init__()
        self.a, self.b, self.price = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(6, 1)
        self.more = more

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        h = torch.relu(self.a(x))
        y = self.b(h / math.sqrt(h.shape[-1]))
        if self.more == "price":
            return {"logits": y, "price": 50_000 + self.price(x)}
        if self.more == "complex":
            return torch.complex(y, -y)
        return y.masked_fill(x[:, :4] < -0.5, float(self.more)) if self.more else y


@pytest.mark.parametrize("more", ["", "-inf", "-1e9", "price", "complex"])
def test_large_and_infinite_entries_excuse_nothing(more: str) -> None:
    torch.manual_seed(0)
    model, x = Scaled(more), torch.randn(8, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GrowthError, match="the output moved by"):
        auxin.widen(model, "a", 8, graph=auxin.trace(model, x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Lowered(nn.Module):
    """Computes in bfloat16 and returns float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.b(torch.relu(self.a(x))).float()


def test_copies_are_accepted_where_the_forward_computes_in_half_precision() -> None:
    torch.manual_seed(0)
    model, x = Lowered(), torch.randn(8, 6)
    event = auxin.widen(model, "a", 6, graph=auxin.trace(model, x), method="net2net")
    assert 0 < event.max_change < 0.02


class Through(nn.Module):
    """Uses a weight through a function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.a, self.w, self.name = nn.Linear(6, 8), nn.Parameter(torch.randn(3, 8)), name

    def forward(self, x: Tensor) -> Tensor:
        w = self.w
        used = {
            "exp": w.exp, "softplus": lambda: F.softplus(w), "square": w.square, "power": lambda: w**2,
            "product": lambda: w * w, "shifted": lambda: 1 + w, "filled": lambda: w.masked_fill(w < 0, 1.0),
            "straight-through": lambda: w + (w.sign() - w).detach(),
            "negative": w.neg, "scaled": lambda: w * 3, "double": lambda: w.double().float(),
            "halved": lambda: torch.div(w, 2),
        }[self.name]()  # fmt: skip
        return F.linear(torch.relu(self.a(x)), used)


@pytest.mark.parametrize(
    "name", ["exp", "softplus", "square", "power", "product", "shifted", "filled", "straight-through"]
)
def test_a_weight_used_through_a_function_that_is_not_linear_makes_growth_inexact(name: str) -> None:
    graph = auxin.trace(Through(name), torch.randn(2, 6))
    assert "changes the weights that read it, not linearly" in (graph["a"].inexact or "")
    assert not graph.growable()


@pytest.mark.parametrize("name", ["negative", "scaled", "double", "halved"])
@pytest.mark.parametrize("method", ["random", "net2net"])
def test_a_weight_used_through_a_linear_function_grows(name: str, method: str) -> None:
    torch.manual_seed(0)
    model, x = Through(name), torch.randn(64, 6)
    before = model(x)
    auxin.widen(model, "a", 5, graph=auxin.trace(model, x[:2]), method=method)
    assert torch.allclose(model(x), before, atol=1e-5)


def test_example_inputs_that_no_longer_run_are_one_sentence() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    grower = auxin.Grower(model, None, torch.randn(2, 4), budget=auxin.ratio(0.5))
    model.double()
    with pytest.raises(ConfigError, match=r"do not run through the model any more .*trace it again"):
        grower.grow()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_a_new_layer_with_a_norm_is_the_identity_in_half_precision(
    dtype: torch.dtype, activation: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[1].bias.fill_(3.0)
    model, x = model.to(dtype).eval(), torch.randn(16, 3, 8, 8).to(dtype)
    before = model(x)
    auxin.deepen(model, "2", graph=auxin.trace(model, x))
    largest = float(before.abs().max())
    assert float((model(x) - before).abs().max()) < 2 * torch.finfo(dtype).eps * largest


def test_a_new_layer_after_a_frozen_norm_is_the_identity_in_training_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).double().train()
    model[1].running_mean.fill_(0.3)
    model[1].eval()
    x = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    before = model(x)
    auxin.deepen(model, "2", graph=auxin.trace(model, x))
    assert torch.allclose(model(x), before, atol=1e-10)
    assert not model[1].training


@pytest.mark.parametrize(
    "activation", [nn.GELU("tanh"), nn.Softplus(2, 5), nn.CELU(0.5), nn.ELU(0.7), nn.LeakyReLU(0.3)]
)
def test_a_new_layers_activation_is_that_of_the_layer_before(activation: nn.Module) -> None:
    before = copy.deepcopy(activation)
    model, x = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3)), torch.randn(4, 6)
    history = auxin.History([auxin.deepen(model, "1", graph=auxin.trace(model, x))])
    grown: nn.Module = model.get_submodule("1.grown.0.activation.function")
    assert torch.equal(grown(x), activation.forward(x))
    fresh = nn.Sequential(nn.Linear(6, 8), copy.deepcopy(before), nn.Linear(8, 3))
    auxin.History.from_json(json.loads(json.dumps(history.to_json()))).replay(fresh)
    assert torch.equal(fresh.get_submodule("1.grown.0.activation.function")(x), grown(x))
