"""Expansion scores against dense solves: F is written out, parameters × parameters, in float64."""

from __future__ import annotations

import copy
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auxin
from auxin.errors import AuxinError, ConfigError, TrainingError
from auxin.expansion import Score, expansion_score
from auxin.expansion.score import FORMS, parse_bytes
from auxin.statistics.batches import Batch, measuring
from auxin.statistics.fisher import Fisher
from tests.cases import CASES, double, randomise
from tests.statistics.test_fisher import dense
from tests.statistics.test_fisher import make as make_net
from tests.statistics.test_persample import mean_loss, more, size, true_rows

KINDS = ("empirical", "sampled", "ggn")
Rows = dict[str, Tensor]


def solve(rows: Rows, damping: float) -> float:
    """gᵀ(F + λI)⁻¹g for the given parameters, F = RᵀR/n; the first set of rows is J."""
    flat = torch.cat([row.reshape(*row.shape[:2], -1) for row in rows.values()], 2)
    sets, n, p = flat.shape
    g, r = flat[0].mean(0), flat[1 if sets > 1 else 0 :].reshape(-1, p)
    return float(g @ torch.linalg.solve(r.T @ r / n + damping * torch.eye(p, dtype=r.dtype), g))


def diagonal(rows: Rows, damping: float) -> float:
    """Σ g²/(diag F + λ)."""
    total = 0.0
    for row in rows.values():
        fisher = row[1 if len(row) > 1 else 0 :].square().sum(0).mean(0)
        total += float((row[0].mean(0).square() / (fisher + damping)).sum())
    return total


def kronecker(model: nn.Module, batch: Batch, rows: Rows, layers: list[str], labels: Any, damping: float) -> float:
    """Σ_layers Tr[(S + √λ)⁻¹ W (A + √λ)⁻¹ Wᵀ] with factors from hooks, plus the diagonal form of the rest."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in layers:
        model.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: seen.update({name: (a[0], y)}))
    x = batch.inputs
    logs = model(x).log_softmax(1)
    own = F.nll_loss(logs, batch.target, reduction="sum")
    classes = range(logs.shape[1])
    others = {
        "empirical": [own],
        "sampled": [] if labels is None else [F.nll_loss(logs, labels, reduction="sum")],
        "ggn": [-(logs[:, c].detach().exp().sqrt() * logs[:, c]).sum() for c in classes],
    }[{1: "empirical", 2: "sampled"}.get(len(next(iter(rows.values()))), "ggn")]
    total, rest = 0.0, dict(rows)
    for name in layers:
        layer = model.get_submodule(name)
        (read, written), n = seen[name], size(batch)
        if isinstance(layer, nn.Conv2d):
            a = F.unfold(read, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
        else:
            a = read.reshape(n, -1, read.shape[-1])
        if layer.bias is not None and layer.bias.requires_grad:
            a = torch.cat([a, torch.ones_like(a[..., :1])], 2)
        s = []
        for scalar in (own, *others):
            (at,) = torch.autograd.grad(scalar, written, retain_graph=True)
            s.append(at.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else at.reshape(n, -1, at.shape[-1]))
        w = torch.einsum("nto,nti->oi", s[0], a) / n
        in_factor = torch.einsum("nti,ntj->ij", a, a) / n
        out_factor = sum(torch.einsum("nto,ntp->op", x, x) for x in s[1:]) / (n * a.shape[1])

        def inverse(matrix: Tensor) -> Tensor:
            return torch.linalg.inv(matrix + math.sqrt(damping) * torch.eye(len(matrix), dtype=matrix.dtype))

        total += float((inverse(out_factor) @ w @ inverse(in_factor) @ w.T).trace())
        for suffix in ("weight", "bias"):
            rest.pop(f"{name}.{suffix}", None)
    return total + diagonal(rest, damping)


def by_module(rows: Rows) -> list[Rows]:
    modules: dict[str, Rows] = {}
    for name, row in rows.items():
        modules.setdefault(name.rpartition(".")[0], {})[name] = row
    return list(modules.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_scores_equal_dense_solves(form: Any, kind: Any) -> None:
    model, batch = make_net()
    with measuring(model):
        generator = torch.Generator().manual_seed(4)
        labels = Fisher(model, F.cross_entropy, batch, kind=kind, generator=generator).labels
        rows = dense(model, batch, kind, labels)
        for damping in (1e-1, 1e-3, 1e-4):
            wanted = {
                "gram": lambda d: solve(rows, d),
                "blockwise": lambda d: sum(solve(part, d) for part in by_module(rows)),
                "diagonal": lambda d: diagonal(rows, d),
                "kfac": lambda d: kronecker(
                    copy.deepcopy(model), batch, rows, ["conv", "point", "up", "last"], labels, d
                ),
            }[form](damping)
            for limits in ({}, {"memory": 3000.0, "chunk": 2}):
                found = expansion_score(
                    model, F.cross_entropy, (batch.inputs, batch.target),
                    form=form, fisher=kind, damping=damping, seed=4, **limits,
                )  # fmt: skip
                assert found.value == pytest.approx(wanted, rel=1e-9)
                assert (found.form, found.fisher, found.damping, found.num_samples) == (form, kind, damping, 7)
                assert found.num_parameters == sum(p.numel() for p in model.parameters())
                assert float(found) == found.value


ZOO = [
    "residual", "shuffle_unit", "unet", "raw_parameters", "tied", "called_twice", "encoder_layer", "two_in_two_out",
    "experts",
]  # fmt: skip


@pytest.mark.parametrize("name", [*ZOO, *(name for name in ("hf_bert", "hf_vit") if name in CASES)])
def test_the_zoo(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = randomise(case.build()).double()
    inputs = more(double(case.inputs()))
    target = torch.zeros(size(Batch(inputs, None)))
    with measuring(model):
        rows = {k: row[None] for k, row in true_rows(model, Batch(inputs, target)).items() if k != "last"}
    for form, wanted in (
        ("gram", solve(rows, 1e-2)),
        ("blockwise", sum(solve(part, 1e-2) for part in by_module(rows))),
        ("diagonal", diagonal(rows, 1e-2)),
    ):
        data = [(inputs, target)]
        found = expansion_score(model, mean_loss, data, form=form, damping=1e-2, chunk=3)
        assert found.value == pytest.approx(wanted, rel=max(1e-9, 10 * case.tolerance))


@pytest.mark.parametrize("seed", range(4))
def test_the_empirical_score_is_below_one_and_falls_with_the_damping(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    scores = [expansion_score(model, F.cross_entropy, (x, y), damping=10.0**k).value for k in range(-10, 6)]
    assert all(0 <= low < high < 1 for high, low in itertools.pairwise(scores))
    # More parameters than samples: at λ → 0 any gradient is followed; at λ → ∞ η is gᵀg/λ.
    assert scores[0] == pytest.approx(1, abs=1e-5)
    loss = F.cross_entropy(model(x), y)
    square = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters())))
    assert scores[-1] == pytest.approx(square / 1e5, rel=1e-3)


def test_with_fewer_parameters_than_samples_the_limit_is_a_projection() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    j = ((model(x) - y) * 2 * x).detach()
    ones = torch.ones(40, 1, dtype=torch.float64)
    wanted = float((j @ torch.linalg.lstsq(j, ones).solution).sum()) / 40
    assert expansion_score(model, F.mse_loss, (x, y), damping=1e-8).value == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
def test_the_chosen_damping_puts_the_score_at_its_target(target: float) -> None:
    model, batch = make_net()
    data = (batch.inputs, batch.target)

    def score(form: Any, damping: float | None = None, **options: Any) -> Score:
        return expansion_score(model, F.cross_entropy, data, form=form, damping=damping, target=target, **options)

    chosen = score("gram")
    assert chosen.value == pytest.approx(target, rel=1e-6)  # 7 independent samples: the limit is 1
    assert score("gram", chosen.damping).value == pytest.approx(chosen.value, rel=1e-12)
    with measuring(model):
        rows = dense(model, batch)
        sampled = Fisher(model, F.cross_entropy, batch, kind="ggn")
        others = dense(model, batch, "ggn", sampled.labels)
    limit = sum(solve(part, 1e-11) for part in by_module(rows))
    assert score("blockwise").value == pytest.approx(target * limit, rel=1e-3)
    limit = sum(
        float((row[0].mean(0).square() / row[0].square().mean(0))[row[0].abs().sum(0) > 0].sum())
        for row in rows.values()
    )
    assert score("diagonal").value == pytest.approx(target * limit, rel=1e-3)
    for form in ("diagonal", "kfac"):
        chosen = score(form)
        assert chosen.value == pytest.approx(score(form, chosen.damping).value, rel=1e-12)
    r = torch.cat([row[1:].reshape(len(row) - 1, row.shape[1], -1) for row in others.values()], 2).flatten(0, 1)
    k = torch.linalg.svdvals(r).square() / 7
    alive = k[k > 1e-10 * k[0]]
    rank = float((alive / (alive + score("gram", fisher="ggn").damping)).sum())
    assert rank == pytest.approx(target * len(alive), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_float32_scores_are_close_to_float64_ones_where_gradients_are_dependent(form: Any, kind: Any) -> None:
    """Far fewer parameters than rows: rounded Gram matrices would not be positive definite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(150, 4), torch.randint(3, (150,))
    single = expansion_score(model, F.cross_entropy, (x, y), form=form, fisher=kind)
    exact = expansion_score(model.double(), F.cross_entropy, (x.double(), y), form=form, fisher=kind)
    assert single.value == pytest.approx(exact.value, rel=1e-3)
    assert single.damping == pytest.approx(exact.damping, rel=1e-3)


class TextNet(nn.Module):
    """Reads named inputs and returns a dict, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        mask = attention_mask[..., None].to(self.head.weight.dtype)
        logits = self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_batches_may_be_dicts_and_the_loss_the_models_own() -> None:
    torch.manual_seed(0)
    model = TextNet().double()
    batches = [
        {
            "input_ids": torch.randint(7, (4, 5)),
            "attention_mask": torch.randint(2, (4, 5)).index_fill(1, torch.tensor([0]), 1),
            "labels": torch.randint(3, (4,)),
        }
        for _ in range(3)
    ]
    own = expansion_score(model, lambda out, batch: out["loss"], batches, num_samples=10, damping=1e-2)
    ours = expansion_score(
        model, lambda out, batch: F.cross_entropy(out["logits"], batch["labels"]), batches, num_samples=10, damping=1e-2
    )
    assert own.num_samples == ours.num_samples == 10
    assert own.value == pytest.approx(ours.value, rel=1e-12)
    merged = {key: torch.cat([batch[key] for batch in batches])[:10] for key in batches[0]}
    alone = expansion_score(model, lambda out, batch: out["loss"], merged, damping=1e-2)
    assert alone.value == pytest.approx(own.value, rel=1e-12)
    if "hf_bert" in CASES:
        import transformers

        config = transformers.BertConfig(
            vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
            max_position_embeddings=9, num_labels=3,
        )  # fmt: skip
        bert = transformers.BertForSequenceClassification(config)
        score = expansion_score(bert, lambda out, batch: out.loss, batches, num_samples=6)
        other = expansion_score(bert, lambda out, batch: F.cross_entropy(out.logits, batch["labels"]), merged,
                                num_samples=6, damping=score.damping)  # fmt: skip
        assert score.value == pytest.approx(other.value, rel=1e-4)


def test_batches_make_the_same_samples_as_a_pair_and_no_more_are_read_than_needed() -> None:
    model, batch = make_net()
    read = []

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 100, 2):
            read.append(start)
            yield batch.inputs[start : start + 2], batch.target[start : start + 2]

    pair = expansion_score(model, F.cross_entropy, (batch.inputs, batch.target), num_samples=5)
    parts = expansion_score(model, F.cross_entropy, loader(), num_samples=5)
    assert parts == pair and parts.num_samples == 5
    assert read == [0, 2, 4]


def test_frozen_parameters_do_not_count() -> None:
    model, batch = make_net()
    model.conv.requires_grad_(False)
    model.up.bias.requires_grad_(False)
    model.point.weight.requires_grad_(False)
    with measuring(model):
        rows = {name: row[None] for name, row in true_rows(model, Batch((batch.inputs,), batch.target), ce).items()}
    assert "conv.weight" not in rows and "point.bias" in rows
    for form, wanted in (("gram", solve(rows, 1e-2)), ("diagonal", diagonal(rows, 1e-2))):
        found = expansion_score(model, ce, (batch.inputs, batch.target), form=form, damping=1e-2)
        assert found.value == pytest.approx(wanted, rel=1e-9)
    # Without a trainable bias a layer has no last input of ones; without a trainable weight its bias is on its own.
    wanted = kronecker(copy.deepcopy(model), batch, rows, ["up", "last"], None, 1e-2)
    found = expansion_score(model, ce, (batch.inputs, batch.target), form="kfac", damping=1e-2)
    assert found.value == pytest.approx(wanted, rel=1e-9)
    assert found.num_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def ce(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_left_bit_for_bit_as_it_was(form: Any) -> None:
    model, batch = make_net()
    model.train()
    model.up.eval()
    for p in list(model.parameters())[::2]:
        p.grad = torch.ones_like(p)
    state = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    inputs = batch.inputs.clone()
    random = torch.random.get_rng_state()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    for kind in KINDS:
        expansion_score(model, F.cross_entropy, (batch.inputs, batch.target), form=form, fisher=kind)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [m.training for m in model.modules()] == flags
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(batch.inputs, inputs) and batch.inputs.grad is None
    assert all(p.requires_grad for p in model.parameters())
    for p, old in zip(model.parameters(), gradients, strict=True):
        assert p.grad is None if old is None else torch.equal(p.grad, old)


def test_a_compiled_model_scores_as_the_plain_one() -> None:
    model, batch = make_net()
    data = (batch.inputs, batch.target)
    plain = expansion_score(model, ce, data)
    assert expansion_score(torch.compile(model, backend="eager"), ce, data) == plain


def test_drawn_labels_follow_the_seed() -> None:
    model, batch = make_net()
    data = (batch.inputs, batch.target)
    scores = [expansion_score(model, ce, data, fisher="sampled", damping=0.1, seed=seed).value for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


NAN = torch.full((4, 4), math.nan)
X, Y = torch.ones(4, 4), torch.tensor([0, 1, 2, 0])
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "form": ({"form": "dense"}, "no form 'dense'"),
    "fisher": ({"fisher": "true"}, "no Fisher matrix 'true'"),
    "target": ({"target": 1.0}, "target"),
    "damping": ({"damping": 0.0}, "damping is 0.0"),
    "no number": ({"damping": math.nan}, "damping is nan"),
    "memory": ({"memory": "a lot"}, "'a lot' is no amount"),
    "two points": ({"memory": "1.2.3MB"}, "no amount"),
    "no memory": ({"memory": 0}, "memory"),
    "chunk": ({"chunk": 0}, "chunk"),
    "samples": ({"num_samples": 0}, "at least 1 sample"),
    "no data": ({"data": None}, "looks at data"),
    "empty": ({"data": []}, "no batch"),
    "no pairs": ({"data": [X]}, "pairs"),
    "no loss": ({"loss_fn": None}, "loss_fn"),
    "lengths": ({"data": (X, Y[:2])}, "4 inputs but 2 targets"),
    "shapes": ({"data": [(X, Y), (torch.ones(4, 3), Y)]}, "different shapes"),
    "too small": ({"damping": 1e-40, "form": "blockwise", "data": (X, Y)}, "damping"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_one_sentence(name: str) -> None:
    given, words = BAD[name]
    torch.manual_seed(0)
    options: dict[str, Any] = {"loss_fn": ce, "data": (X, Y), **given}
    with pytest.raises(ConfigError, match=words) as caught:
        expansion_score(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), **options)
    one_sentence(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_without_a_gradient_the_score_is_zero(form: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    assert expansion_score(model, lambda output, target: 0 * output.sum(), (X, Y), form=form).value == 0


def one_sentence(error: AuxinError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 250


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damping", [None, 1e-3])
def test_gradients_that_are_not_finite_are_one_sentence(form: Any, kind: Any, damping: float | None) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(TrainingError, match="not finite") as caught:
        expansion_score(model, ce, (NAN, Y), form=form, fisher=kind, damping=damping)
    one_sentence(caught.value)
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
    with pytest.raises(TrainingError, match="not finite"):
        expansion_score(model, ce, (X, Y), form=form, fisher=kind, damping=damping)


def test_models_that_cannot_be_scored_are_one_sentence() -> None:
    frozen = nn.Linear(4, 3).requires_grad_(False)
    for model in (frozen, nn.ReLU()):
        with pytest.raises(ConfigError, match="no parameter of the model is trainable"):
            expansion_score(model, ce, (X, Y))
    mixing = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ConfigError, match=r"batch norm '1'"):
        expansion_score(mixing, ce, (X, Y))
    images = nn.Conv2d(1, 2, 1)
    with pytest.raises(ConfigError, match="logits"):
        expansion_score(images, mean_loss, (torch.ones(4, 1, 2, 2), Y), fisher="ggn")


def test_amounts_of_memory() -> None:
    assert [parse_bytes(x) for x in (5, 2.5, "300", "64kB", "1.5GB", "12 MB", "7m")] == [
        5, 2.5, 300, 64e3, 1.5e9, 12e6, 7e6
    ]  # fmt: skip


def test_the_score_is_reached_from_the_trigger_class() -> None:
    assert auxin.natural.expansion_score is expansion_score


COUNTED = """
import torch, auxin
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

torch.manual_seed(0)
first, second = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 6, 3)
model = nn.Sequential(first, nn.BatchNorm2d(5), nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
data = torch.randn(12, 2, 6, 6), torch.arange(12) % 3
decider = auxin.natural(tau=0, data=data, form="blockwise", memory="2kB")
with FlopCounterMode(display=False) as counter:
    decision = decider.decide(model, auxin.trace(model, data[0][:2]), epoch=0, loss_fn=cross_entropy)
print(counter.get_total_flops(), [one.score for one in decision.proposals])
"""


def test_scores_and_their_cost_do_not_depend_on_the_order_of_sets() -> None:
    """Python orders sets of names by a seed of each process: a resumed run has another."""
    runs = [
        subprocess.run([sys.executable, "-c", COUNTED], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("0", "2")
    ]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert runs[0].stdout == runs[1].stdout and b"[" in runs[0].stdout


class Lowered(nn.Module):
    """Its forward computes in bfloat16, as wrappers for mixed precision make any forward do."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = self.body(x)
        return y.float()


@pytest.mark.parametrize("form", FORMS)
def test_a_forward_within_autocast_is_scored_in_full_precision(form: Any) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    data, enter = (torch.randn(12, 3, 6, 6), torch.arange(12) % 3), torch.autocast.__enter__
    scores = [
        expansion_score(model, F.cross_entropy, data, damping=0.1, form=form).value for model in (body, Lowered(body))
    ]
    assert scores[0] == scores[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.autocast.__enter__ is enter and body(data[0]).dtype == torch.bfloat16
