"""Forwards that look at the values of their tensors are followed as they are for the example."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import auxin
from auxin.errors import GrowthError, TraceError
from auxin.graph.readings import NoteReadings, RepeatReadings


class Deciding(nn.Module):
    """A net of one hidden layer, with something done between the two."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.between = nn.Linear(4, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Any:
        return self.leave(self.between(self, self.enter(x).relu()))


def checked(model: nn.Module, h: Tensor) -> Tensor:
    assert torch.isfinite(h).all(), "not finite"
    return h


def scaled(model: nn.Module, h: Tensor) -> Tensor:
    if h.abs().max() > 1e6:
        h = h / h.abs().max()
    return h


def told(model: nn.Module, h: Tensor) -> Tensor:
    model.seen = f"{h.detach().mean():.3f}", float(h.detach().mean()), h[0, 0].item()  # type: ignore[assignment]
    return h


def shown(model: nn.Module, h: Tensor) -> Tensor:
    model.picture = h.detach().cpu().numpy()  # type: ignore[assignment]
    return h


def cut(model: nn.Module, h: Tensor) -> Tensor:
    return h[: max(int((h.sum(-1) > 0).sum()), 1)]


def skipped(model: nn.Module, h: Tensor) -> Tensor:
    return h * 2 if torch.rand(1).item() < 0.5 else h


def selected(model: nn.Module, h: Tensor) -> Tensor:
    rows = h[h.sum(-1) > -1, :]
    return rows if len(rows) > 1 else h


def routed(model: nn.Module, h: Tensor) -> Tensor:
    kinds, out = torch.tensor([2, 0, 2]), []
    for kind in torch.unique(kinds):
        rows = (kinds == kind).nonzero().squeeze(-1)
        if len(rows) > 0 and kind in kinds:
            out.append(h[rows] * (int(kind) + 1))
    return torch.cat(out)


def stretched(model: nn.Module, h: Tensor) -> Tensor:
    durations = (h.sum(-1) > 0).long() + 1
    frames = h.repeat_interleave(durations, dim=0)
    order = torch.repeat_interleave(torch.arange(len(h)), durations)
    return frames + h[order] if len(frames) > 1 else h


X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("between", [checked, scaled, told, shown, cut, skipped, selected, routed, stretched])
def test_a_forward_that_looks_at_values_is_followed_and_grows(between: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model = Deciding(between).double()
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"looks at the values of its tensors \(.*test_readings.py:\d+: "):
        graph = auxin.trace(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert [group.name for group in graph.growable()] == ["enter"]
    torch.manual_seed(3)
    before = model(X)
    auxin.widen(model, "enter", 3, graph=graph, method="net2net")
    assert model.enter.out_features == 11
    torch.manual_seed(3)
    assert torch.allclose(model(X), before, atol=1e-12)


def test_a_policy_that_returns_a_distribution_grows_without_a_warning() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.mean, self.scale = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.zeros(2))
            self.value = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Any:
            h = self.body(x).tanh()
            action = torch.distributions.Normal(self.mean(h), self.scale.exp())
            return torch.distributions.Independent(action, 1), self.value(h).squeeze(-1)

    model = Policy()
    with warnings.catch_warnings(action="error"):
        graph = auxin.trace(model, torch.randn(3, 4))
    assert torch.distributions.Distribution._validate_args, "as it was"
    assert [group.name for group in graph.growable()] == ["body"]
    assert auxin.widen(model, "body", 2, graph=graph).max_change < 1e-6


def test_a_forward_that_differentiates_itself_grows_without_a_warning() -> None:
    class Forces(nn.Module):
        """An energy of positions, and the forces: minus its gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.energy = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 1)

        def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
            positions = positions.requires_grad_()
            energy = self.energy(self.second(self.first(positions).tanh()).tanh()).sum()
            (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
            return energy, -slope

    model, positions = Forces().double(), torch.randn(5, 3, dtype=torch.float64)
    with warnings.catch_warnings(action="error"):
        graph = auxin.trace(model, positions)
    assert [group.name for group in graph.growable()] == ["first", "second"]
    before = [y.detach() for y in model(positions.clone())]
    for method in ("random", "net2net"):
        for name in ("first", "second"):
            auxin.widen(model, name, 2, graph=graph, method=method)
    assert model.second.weight.shape == (10, 12) and not positions.requires_grad
    for now, then in zip(model(positions.clone()), before, strict=True):
        assert torch.allclose(now, then, atol=1e-12)


def test_a_lazy_layer_has_to_run_first() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(TraceError, match=r"0\.weight has no size yet: run the model once"):
        auxin.trace(model, torch.randn(2, 4))


class Exits(nn.Module):
    """Leaves early where it is sure, by a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.early, self.more, self.late = (
            *(nn.Linear(4, 8), nn.Linear(8, 2)),
            *(nn.Linear(8, 8), nn.Linear(8, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        if h.sum() < 0:
            return self.early(h)
        return self.late(self.more(h).relu())


def test_an_example_that_leaves_parameters_out_is_refused() -> None:
    with pytest.raises(TraceError, match=r"if h.sum\(\) < 0:.* leaves out early.weight.* a larger batch"):
        auxin.trace(Exits(), torch.randn(3, 4))


def test_a_decision_that_changes_with_the_units_is_refused_when_they_grow() -> None:
    model = Deciding(lambda model, h: h * 2 if (h.sum(0) > -1).sum() > 8 else h).double()
    with pytest.warns(UserWarning, match="looks at the values"):
        graph = auxin.trace(model, X)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(GrowthError, match="as they were"):
        auxin.widen(model, "enter", 1, graph=graph)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_error_in_the_forward_names_its_line() -> None:
    with pytest.raises(TraceError, match=r"could not capture Deciding, at .*test_readings.py:\d+: return self.leave"):
        auxin.trace(Deciding(lambda model, h: h[:, :7]), X.float())


def test_what_no_reading_gives_is_refused_with_its_line() -> None:
    with pytest.raises(TraceError, match=r"test_readings.py:\d+: .*h.data_ptr"):
        auxin.trace(Deciding(lambda model, h: h if h.data_ptr() > 0 else -h), X.float())


def test_readings_are_repeated_in_their_order_at_their_lines_only() -> None:
    def read(x: Tensor) -> list[Any]:
        return [*[x[i].item() for i in range(3)], x[x < 3].tolist(), torch.where(x > 1)[0].tolist()]

    x = torch.tensor([1.0, 2.0, 3.0])
    with NoteReadings() as noted:
        first = read(x)
    with RepeatReadings(noted.readings) as repeated:
        assert (x + 10).sum().item() == 36, "another line"
        assert read(x + 10) == first == [1, 2, 3, [1, 2], [1, 2]]
    assert repeated.given == noted.readings


def test_what_a_capture_does_not_ask_for_is_passed_over() -> None:
    def read(x: Tensor, eager: bool) -> Any:
        if eager and x.min() > 100:  # libraries leave checks out while they are traced
            return None
        return x.max().item()

    with NoteReadings() as noted:
        read(torch.tensor([1.0, 2.0]), eager=True)
    with RepeatReadings(noted.readings) as repeated:
        assert read(torch.tensor([5.0, 6.0]), eager=False) == 2
    assert len(noted.readings) == 2 and len(repeated.given) == 1
