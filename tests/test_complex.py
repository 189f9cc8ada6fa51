"""Models with complex weights (Fourier neural operators): every method and the natural trigger grow them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auxin
from auxin.methods import METHODS
from auxin.statistics.batches import Batch, measuring
from auxin.statistics.persample import PerSample


class Fourier(nn.Module):
    """Complex weights for the lowest frequencies, beside a convolution."""

    def __init__(self, entering: int, leaving: int, modes: int = 3) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(entering, leaving, modes, dtype=torch.cfloat) / entering)
        self.skip = nn.Conv1d(entering, leaving, 1)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(x)
        low = torch.einsum("bim,iom->bom", waves[..., : self.modes], self.weight)
        filtered = torch.fft.irfft(F.pad(low, (0, waves.shape[-1] - self.modes)), n=x.shape[-1])
        return F.gelu(filtered + self.skip(x))


def operator() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Fourier(2, 5), Fourier(5, 7), nn.Conv1d(7, 3, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())


X, Y = torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
DATA = {"loader": [(X, Y)] * 3, "loss_fn": F.cross_entropy}


@pytest.mark.parametrize("method", [*METHODS, "natural"])
def test_complex_weights_grow_and_keep_their_imaginary_parts(method: str) -> None:
    model, natural = operator(), method == "natural"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    options = {"trigger": auxin.natural(tau=0.0)} if natural else {"method": method, "budget": auxin.count(2)}
    grower = auxin.Grower(model, optimizer, X[:2], **options)  # type: ignore[arg-type]
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    before, old = model(X).detach(), model[1].weight.detach().clone()
    event = grower.step(0, DATA["loader"], DATA["loss_fn"]) if natural else grower.grow(**DATA)  # type: ignore[arg-type]
    assert event is not None and model[1].weight.is_complex()
    if natural or METHODS[method].preserves:
        assert float((model(X) - before).abs().max()) < 1e-5
    if not natural:
        assert model[1].weight.shape == (7, 9, 3)
        assert torch.equal(model[1].weight[:5, :7].imag.abs() > 0, old.imag.abs() > 0)
    assert model[1].weight.dtype == torch.cfloat and optimizer.state[model[1].weight]["exp_avg"].is_complex()
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert bool(model(X).isfinite().all())


def test_the_gradient_of_a_complex_weight_has_a_real_and_an_imaginary_entry() -> None:
    model = operator()

    def scalars(output: Tensor, batch: Batch) -> list[Tensor]:
        return [F.cross_entropy(output, batch.target)]

    with measuring(model):
        per_sample = PerSample(model, F.cross_entropy, Batch(X, Y))
        (row,) = per_sample.single(Batch(X[:1], Y[:1]), per_sample.slow, scalars)["0.weight"]
        true = torch.autograd.grad(F.cross_entropy(model(X[:1]), Y[:1]), model[0].weight)[0]
    assert {"0.weight", "1.weight"} <= per_sample.slow
    torch.testing.assert_close(row, torch.stack([true.real, true.imag], dim=-1))


class Linear(nn.Module):
    """Two complex layers, read by their absolute values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6, dtype=torch.cfloat), nn.Linear(6, 3, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.to(torch.cfloat)))).abs()


@pytest.mark.parametrize("method", ["random", "orthogonal"])
def test_complex_layers_are_no_part_of_the_similarity_constraint(method: str) -> None:
    torch.manual_seed(0)
    model, x = Linear(), torch.randn(8, 4)
    before, old = model(x).detach(), model.a.weight.detach().clone()
    refine = auxin.Similarity(iterations=3, reestimate_norms=0)
    event = auxin.Grower(model, None, x, method=method, budget=auxin.count(2, "neurons"), refine=refine).grow()
    assert event is not None and model.a.weight.shape == (8, 4)
    assert torch.equal(model.a.weight[:6], old)
    assert float((model(x) - before).abs().max()) < 1e-5
    assert method == "random" or "grew by the random method" in event.notes[0]
