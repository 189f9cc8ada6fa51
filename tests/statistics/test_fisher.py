"""Gram matrices, moments and Kronecker factors against dense per-sample gradients in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.statistics import fisher as module
from auxin.statistics.batches import Batch, measuring
from auxin.statistics.fisher import CURRENT, Fisher, Share
from auxin.statistics.persample import size, take
from tests.cases import CASES, double, randomise
from tests.statistics.test_persample import mean_loss, more, true_rows

KINDS = ("empirical", "sampled", "ggn")
N, CLASSES = 7, 3


class Net(nn.Module):
    """Convolutions, depthwise and transposed (single passes), a norm, scales, linear layers over positions and not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.PReLU()
        self.transposed = nn.ConvTranspose2d(4, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.scale = nn.Parameter(torch.zeros(4, 1, 1))
        self.point = nn.Conv2d(4, 6, 1)
        self.up = nn.Linear(4, 5)
        self.last = nn.Linear(30, CLASSES)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.transposed(self.act(self.norm(self.conv(x))))
        x = self.point(x + self.scale * self.depthwise(x)).flatten(2)
        return self.last(self.up(F.silu(x)).flatten(1)) * self.temperature


def make(n: int = N) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, 5, 5, generator=draw, dtype=torch.float64)
    return randomise(Net()).double(), Batch(x, torch.randint(CLASSES, (n,), generator=draw))


def fisher(model: nn.Module, batch: Batch, **options: Any) -> Fisher:
    return Fisher(model, options.pop("loss_fn", F.cross_entropy), batch, **options)


def dense(model: nn.Module, batch: Batch, kind: str = "empirical", labels: Tensor | None = None) -> dict[str, Tensor]:
    """Rows by plain autograd: name → (sets, samples, *parameter), the samples' own gradients first."""
    batch = Batch((batch.inputs,), batch.target)
    rows = [true_rows(model, batch, F.cross_entropy)]
    if kind == "sampled":
        rows.append(true_rows(model, Batch(batch.inputs, labels), F.cross_entropy))
    if kind == "ggn":
        for c in range(CLASSES):
            probability = model(*batch.inputs).softmax(1)[:, c].detach()
            own = true_rows(model, Batch(batch.inputs, torch.full((size(batch),), c)), F.cross_entropy)
            rows.append({k: r * probability.sqrt().view(-1, *[1] * (r.ndim - 1)) for k, r in own.items()})
    return {name: torch.stack([part[name] for part in rows]) for name in rows[0]}


def by_block(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gram matrix of each module's entries."""
    result: dict[str, Tensor] = {}
    for name, row in rows.items():
        flat = row.reshape(row.shape[0] * row.shape[1], -1)
        block = name.rpartition(".")[0]
        result[block] = result.get(block, torch.zeros(())) + flat @ flat.T
    return result


def assert_grams(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert found.keys() == wanted.keys()
    for block, gram in wanted.items():
        assert found[block].dtype == torch.float64
        torch.testing.assert_close(found[block], gram, rtol=tolerance, atol=tolerance * float(gram.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [None, True, False], ids=["cheaper", "pairs", "rows"])
def test_gram_matrices_in_both_forms(kind: Any, pairs: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make()
    if pairs is not None:
        monkeypatch.setattr(Fisher, "_pairs_are_cheaper", lambda self, name: pairs and name in self.rows_of.positions)
    with measuring(model):
        ours = fisher(model, batch, kind=kind, chunk=3)
        found, whole = ours.grams(blockwise=True), ours.grams()
        wanted = by_block(dense(model, batch, kind, ours.labels))
    assert ours.num_sets == {"empirical": 1, "sampled": 2, "ggn": 1 + CLASSES}[kind]
    assert ours.rows_of.slow == {"transposed.weight", "transposed.bias"}
    assert found.keys() == {CURRENT}
    assert_grams(found[CURRENT], wanted)
    assert_grams(whole[CURRENT], {"": sum(wanted.values())})


@pytest.mark.parametrize("kind", KINDS)
def test_memory_and_chunks_change_nothing(kind: Any) -> None:
    model, batch = make()
    results = []
    with measuring(model):
        options = [*itertools.product((20_000.0, 2_000.0), (1, N)), (1.0, 3), (256e6, 100)]
        options += [(256e6, chunk) for chunk in range(1, N + 2)]
        for memory, chunk in options:
            ours = fisher(model, batch, kind=kind, memory=memory, chunk=chunk)
            assert ours.chunk <= max(1, memory / (90 * 8 * ours.num_sets))
            results.append((ours.grams(True)[CURRENT], len(list(ours._plan())), ours.labels))
    for found, _, labels in results[1:]:
        assert_grams(found, results[0][0], 1e-12)
        assert kind == "empirical" or torch.equal(labels, results[0][2])
    passes = {count for _, count, _ in results}
    assert 1 in passes and len(list(model.parameters())) in passes and len(passes) > 2


def test_moments_are_the_mean_gradient_and_mean_squares() -> None:
    model, batch = make()
    for kind in KINDS:
        with measuring(model):
            ours = fisher(model, batch, kind=kind, chunk=2)
            found = ours.moments()[CURRENT]
            rows = dense(model, batch, kind, ours.labels)
        assert found.keys() == rows.keys()
        for name, row in rows.items():
            torch.testing.assert_close(found[name].gradient, row[0].mean(0).flatten(), rtol=1e-10, atol=1e-13)
            square = row[1 if kind != "empirical" else 0 :].square().sum((0, 1)).flatten() / N
            torch.testing.assert_close(found[name].square, square, rtol=1e-10, atol=1e-13)


def test_entries_go_to_their_owners() -> None:
    model, batch = make()
    index = {"": torch.tensor([0, 3]), "a": torch.tensor([1]), "b": torch.tensor([2])}
    shares = {
        "point.weight": [Share(owner, 1, i) for owner, i in index.items()],
        "up.weight": [Share(owner, 1, i) for owner, i in index.items()],
        "norm.weight": [Share("a")],
        "norm.bias": [Share("a")],
        "depthwise.weight": [Share(owner, 0, i) for owner, i in index.items()],
        "scale": [Share("b")],
    }
    with measuring(model):
        rows = dense(model, batch)
        for memory in (256e6, 1.0):
            ours = fisher(model, batch, shares=shares, memory=memory)
            grams, moments = ours.grams(True), ours.moments()
            assert grams.keys() == moments.keys() == {"", "a", "b"}
            for owner in grams:
                mine = {}
                for name, row in rows.items():
                    for share in shares.get(name, [Share(CURRENT)]):
                        if share.owner == owner:
                            mine[name] = row if share.dim is None else row.index_select(share.dim + 2, share.index)
                assert_grams(grams[owner], by_block(mine))
                assert moments[owner].keys() == mine.keys()
                for name, row in mine.items():
                    torch.testing.assert_close(moments[owner][name].gradient, row[0].mean(0).flatten())
            total = sum(torch.stack(list(of.values())).sum(0) for of in grams.values())
            everything = torch.cat([row.reshape(row.shape[0] * row.shape[1], -1) for row in rows.values()], 1)
            torch.testing.assert_close(total, everything @ everything.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_kronecker_factors(kind: Any) -> None:
    """Against hooks: a from the layer's input (unfolded), s from autograd at its output."""
    model, batch = make()
    with measuring(model):
        ours = fisher(model, batch, kind=kind, chunk=3)
        found = ours.factors()
        names = ["conv", "point", "up", "last"]
        assert found.keys() == {f"{name}.weight" for name in names}
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        handles = [
            getattr(model, name).register_forward_hook(lambda m, args, y, name=name: seen.update({name: (args[0], y)}))
            for name in names
        ]
        output = model(batch.inputs)
        for handle in handles:
            handle.remove()
        logs = output.log_softmax(1)
        own = F.nll_loss(logs, batch.target, reduction="sum")
        wanted = {"empirical": [], "ggn": [(-logs[:, c] * logs[:, c].detach().exp().sqrt()).sum() for c in range(3)]}
        if kind == "sampled":
            wanted["sampled"] = [F.nll_loss(logs, ours.labels, reduction="sum")]
        for name in names:
            x, y = seen[name]
            layer = getattr(model, name)
            if isinstance(layer, nn.Conv2d):
                a = F.unfold(x, layer.kernel_size, stride=layer.stride).transpose(1, 2)
            else:
                a = x.reshape(N, -1, x.shape[-1])
            if layer.bias is not None:
                a = torch.cat([a, torch.ones_like(a[..., :1])], 2)

            def at_output(scalar: Tensor, y: Tensor = y, layer: nn.Module = layer) -> Tensor:
                s = torch.autograd.grad(scalar, y, retain_graph=True)[0]
                return s.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else s.reshape(N, -1, s.shape[-1])

            s = at_output(own)
            rows = [at_output(scalar) for scalar in wanted[kind]] or [s]
            mine = found[f"{name}.weight"]
            torch.testing.assert_close(mine.w, torch.einsum("nto,nti->oi", s, a) / N)
            torch.testing.assert_close(mine.a, torch.einsum("nti,ntj->ij", a, a) / N)
            expected = sum(torch.einsum("nto,ntp->op", r, r) for r in rows) / (N * a.shape[1])
            torch.testing.assert_close(mine.s, expected)
            assert mine.shares.keys() == {CURRENT}
            assert sorted(mine.shares[CURRENT].tolist()) == list(range(a.shape[2]))


def test_columns_of_a_share_are_its_channels_times_kernel_with_the_bias_for_its_owner() -> None:
    model, batch = make()
    index = {"": torch.tensor([0]), "a": torch.tensor([1])}
    shares = {"conv.weight": [Share(owner, 1, i) for owner, i in index.items()]}
    shares["point.weight"] = [Share("b", 1, torch.tensor([0, 2, 3]))]
    shares["point.bias"] = [Share("b")]
    with measuring(model):
        found = fisher(model, batch, shares=shares).factors()
    conv = found["conv.weight"].shares
    assert conv[""].tolist() == list(range(9)) and conv["a"].tolist() == list(range(9, 18))
    assert {owner: columns.tolist() for owner, columns in found["point.weight"].shares.items()} == {"b": [0, 2, 3, 4]}


def test_pairs_of_many_samples_are_taken_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    n, t = 150, 9
    assert n > 1024 // t
    a = torch.randn(n, t, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(2, n, t, 3, generator=generator, dtype=torch.float64)
    rows = torch.einsum("knto,nti->knoi", b, a).flatten(2).flatten(0, 1)
    torch.testing.assert_close(module._paired_gram(a, b), rows @ rows.T, rtol=1e-11, atol=1e-11)


def test_drawn_labels_follow_the_prediction_and_the_generator() -> None:
    model, batch = make(1)
    many = Batch(batch.inputs.expand(4000, -1, -1, -1), batch.target.expand(4000))
    with measuring(model):
        drawn = [
            fisher(model, many, kind="sampled", chunk=4000, generator=torch.Generator().manual_seed(seed)).labels
            for seed in (0, 0, 1)
        ]
        wanted = model(batch.inputs).softmax(1)[0]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    shares = torch.bincount(drawn[0], minlength=CLASSES) / 4000
    assert ((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / 4000).sqrt()).all()


def test_other_fisher_matrices_need_logits() -> None:
    model, batch = make()
    images = nn.Sequential(model.conv, model.norm)
    with measuring(images), pytest.raises(ConfigError, match="logits"):
        fisher(images, batch, kind="ggn", loss_fn=mean_loss)


ZOO = ["plain", "depthwise", "raw_parameters", "tied", "called_twice", "encoder_layer", "lstm", "conv1d", "hf_gpt2"]


@pytest.mark.parametrize("name", [name for name in ZOO if name in CASES])
def test_the_zoo(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = randomise(case.build()).double()
    inputs = more(double(case.inputs()))
    batch = Batch(inputs, torch.zeros(size(Batch(inputs, None))))
    with measuring(model):
        found = Fisher(model, mean_loss, batch, chunk=3).grams(True)[CURRENT]
        small = Fisher(model, mean_loss, batch, chunk=2, memory=3000.0).grams(True)[CURRENT]
        wanted = by_block({name: rows[None] for name, rows in true_rows(model, batch).items()})
    # A module whose parameters take no part has no gradient; it may be absent.
    assert all(block in found or float(gram.abs().max()) == 0 for block, gram in wanted.items())
    wanted = {block: gram for block, gram in wanted.items() if block in found}
    assert_grams(found, wanted, 1e-10)
    assert_grams(small, wanted, 1e-10)


def test_float32_models_have_sums_of_float32_rows() -> None:
    model, batch = make()
    with measuring(model):
        exact = fisher(model, batch).grams(True)[CURRENT]
    model, batch = model.float(), take(Batch(batch.inputs.float(), batch.target), slice(0, N))
    with measuring(model):
        assert_grams(fisher(model, batch).grams(True)[CURRENT], exact, 2e-5)
