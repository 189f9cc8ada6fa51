"""Gradients of single samples against plain backward passes, one sample at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.statistics.batches import Batch, measuring
from auxin.statistics.persample import PerSample, size, take
from tests.cases import CASES, RMSNorm, double, flatten, randomise

N = 5


def mean_loss(output: object, target: object) -> Tensor:
    """A mean over samples that any output has, with a generic gradient everywhere."""
    total = torch.zeros((), dtype=torch.float64)
    for leaf in flatten(output):
        flat = leaf.double().flatten(1)
        total = total + (flat - torch.arange(flat.shape[1]).cos()).square().mean(1).mean(0)
    return total


def true_rows(model: nn.Module, batch: Batch, loss_fn: Callable[..., Tensor] = mean_loss) -> dict[str, Tensor]:
    """Plain autograd, sample by sample: name → (samples, *parameter)."""
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
    rows = []
    for i in range(size(batch)):
        one = take(batch, slice(i, i + 1))
        output = model(**one.inputs) if isinstance(one.inputs, dict) else model(*one.inputs)
        rows.append(torch.autograd.grad(loss_fn(output, one.target), parameters, materialize_grads=True))
    return {name: torch.stack(per_sample) for name, per_sample in zip(names, zip(*rows, strict=True), strict=True)}


def found_rows(per_sample: PerSample, batch: Batch) -> dict[str, Tensor]:
    """The rows that uses and single passes give together."""

    def scalars(output: object, part: Batch) -> list[Tensor]:
        return [per_sample.losses(output, part).sum()]

    uses, (gradients,) = per_sample.uses(batch, scalars)
    rows = {name: torch.zeros(size(batch), *p.shape).to(p) for name, p in per_sample.parameters.items()}
    for use, b in zip(uses, gradients, strict=True):
        for name in use.rows.keys() - per_sample.slow:
            rows[name] += use.rows[name](b)
    for i in range(size(batch) if per_sample.slow else 0):
        single = per_sample.single(take(batch, slice(i, i + 1)), per_sample.slow, scalars)
        for name, (row,) in single.items():
            rows[name][i] = row
    return rows


def check(model: nn.Module, inputs: object, tolerance: float = 1e-10) -> PerSample:
    """Compare all rows with plain autograd, their sum with n times the mean loss's gradient, factors with rows."""
    batch = Batch(inputs, torch.zeros(size(Batch(inputs, None))))
    with measuring(model):
        per_sample = PerSample(model, mean_loss, batch)
        found, true = found_rows(per_sample, batch), true_rows(model, batch)
        whole = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        trainable = [p for p in model.parameters() if p.requires_grad]
        mean = torch.autograd.grad(mean_loss(whole, None), trainable, materialize_grads=True)
        uses, (gradients,) = per_sample.uses(batch, lambda o, b: [per_sample.losses(o, b).sum()])
    assert found.keys() == true.keys()
    for name, rows in true.items():
        torch.testing.assert_close(found[name], rows, rtol=tolerance, atol=tolerance * (1 + float(rows.abs().max())))
    for (name, rows), gradient in zip(found.items(), mean, strict=True):
        atol = tolerance * (1 + float(gradient.abs().max()))
        torch.testing.assert_close(rows.mean(0), gradient, rtol=tolerance, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for use, b in zip(uses, gradients, strict=True):
        for name, linear in use.linear.items():
            if name not in per_sample.positions:
                continue
            s, a = linear.b(b), linear.a()
            assert s.shape[1] == a.shape[1] == per_sample.positions[name]
            by_pairs = torch.einsum("nto,nti->noi", s, a).reshape(found[name].shape)
            torch.testing.assert_close(by_pairs, found[name], rtol=1e-9, atol=1e-11)
    return per_sample


def generic(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Function(nn.Module):
    """A forward from a function and named parts."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self, *args)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


IMAGE, SEQUENCE, VECTOR, WAVE = (N, 4, 7, 6), (N, 3, 4), (N, 4), (N, 4, 11)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), VECTOR),
    "linear over positions": (lambda: nn.Linear(4, 3, bias=False), SEQUENCE),
    "conv2d stride and padding": (lambda: nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(1, 0)), IMAGE),
    "conv2d dilation": (lambda: nn.Conv2d(4, 3, 3, padding=2, dilation=2), IMAGE),
    "conv2d same, even kernel": (lambda: nn.Conv2d(4, 3, (2, 4), padding="same", dilation=(1, 2)), IMAGE),
    "conv2d valid": (lambda: nn.Conv2d(4, 3, 3, padding="valid"), IMAGE),
    "conv2d circular": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv2d reflect": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), IMAGE),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2, bias=False), IMAGE),
    "conv2d 1x1": (lambda: nn.Conv2d(4, 3, 1), IMAGE),
    "conv2d 1x1 padded": (lambda: nn.Conv2d(4, 3, 1, padding=1, stride=2), IMAGE),
    "conv2d 1x1 groups": (lambda: nn.Conv2d(4, 2, 1, groups=2), IMAGE),
    "conv1d": (lambda: nn.Conv1d(4, 3, 3, stride=2, padding=1, dilation=2), WAVE),
    "conv1d same groups": (lambda: nn.Conv1d(4, 4, 4, padding="same", groups=2), WAVE),
    "conv1d 1": (lambda: nn.Conv1d(4, 3, 1), WAVE),
    "batch norm": (lambda: nn.BatchNorm2d(4), IMAGE),
    "batch norm of vectors": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), VECTOR),
    "layer norm": (lambda: nn.LayerNorm(4), SEQUENCE),
    "layer norm over two": (lambda: nn.LayerNorm((3, 4)), SEQUENCE),
    "layer norm of vectors": (lambda: nn.LayerNorm(4, bias=False), VECTOR),
    "group norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "in-place activation": (
        lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True)),
        IMAGE,
    ),
    "layer scale": (lambda: Function(lambda m, x: x + m.gamma * m.f(x), f=nn.Linear(4, 4), gamma=parameter(4)), VECTOR),
    "scale per channel": (lambda: Function(lambda m, x: x * m.scale, scale=parameter(1, 4, 1, 1)), IMAGE),
    "scalar": (lambda: Function(lambda m, x: m.scale * x, scale=parameter(1)), IMAGE),
    "class token and positions": (
        lambda: Function(
            lambda m, x: m.f(torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.position).relu(),
            f=nn.Linear(4, 2), token=parameter(1, 1, 4), position=parameter(4, 4),
        ),
        SEQUENCE,
    ),
    "in-place addition": (
        lambda: Function(lambda m, x: m.f(x).add_(m.shift).relu_(), f=nn.Linear(4, 3), shift=parameter(3)), SEQUENCE
    ),
    "weight used twice": (lambda: Function(lambda m, x: m.f(m.f(x).tanh()), f=nn.Linear(4, 4)), SEQUENCE),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_explained_by_their_uses(name: str) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    model = randomise(build()).double()
    per_sample = check(model, (generic(*shape),))
    assert per_sample.slow == set()


def test_matrices_used_once_have_factors_and_their_biases() -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(2), nn.Linear(20, 2), nn.Flatten())).double()
    per_sample = check(model, (generic(*IMAGE),))
    assert per_sample.positions == {"0.weight": 20, "2.weight": 3}
    assert per_sample.biases == {"0.weight": "0.bias", "2.weight": "2.bias"}
    grouped = randomise(LAYERS["conv2d groups"][0]()).double()
    assert check(grouped, (generic(*IMAGE),)).positions == {}
    twice = randomise(LAYERS["weight used twice"][0]()).double()
    assert check(twice, (generic(*SEQUENCE),)).positions == {}


SLOW: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "embedding": (
        lambda: Function(lambda m, x: m.f(m.e(x.argmax(-1))), e=nn.Embedding(4, 3), f=nn.Linear(3, 2)),
        SEQUENCE, {"e.weight"},
    ),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 3, 2), IMAGE, {"weight", "bias"}),
    "conv3d": (lambda: nn.Conv3d(4, 2, 2), (N, 4, 3, 3, 3), {"weight", "bias"}),
    "sum of two parameters": (
        lambda: Function(lambda m, x: x + (m.a + m.b), a=parameter(3, 1), b=parameter(1, 4)), SEQUENCE, {"a", "b"}
    ),
    "scaled weight": (
        lambda: Function(lambda m, x: F.linear(x, m.weight * m.gain), weight=parameter(3, 4), gain=parameter(3, 1)),
        SEQUENCE, {"weight", "gain"},
    ),
    "generated weight": (
        lambda: Function(
            lambda m, x: F.linear(x, m.f(m.code).relu().view(3, 4)), code=parameter(5), f=nn.Linear(5, 12)
        ),
        VECTOR, {"code", "f.weight", "f.bias"},
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), VECTOR,
        {"parametrizations.weight.original0", "parametrizations.weight.original1"},
    ),
    "samples in the second dimension": (
        lambda: Function(
            lambda m, x: m.last(m.f(x.transpose(0, 1)).tanh().transpose(0, 1)), f=nn.Linear(4, 4), last=nn.Linear(4, 2)
        ),
        SEQUENCE, {"f.weight", "f.bias"},
    ),
    "as many positions as the samples that are compared": (
        lambda: Function(
            lambda m, x: m.last(m.f(x.transpose(0, 1)).tanh().transpose(0, 1)), f=nn.Linear(4, 4), last=nn.Linear(4, 2)
        ),
        (N, 2, 4), {"f.weight", "f.bias"},
    ),
    "sequence first attention": (
        lambda: Function(
            lambda m, x: m.last(m.attend(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)),
            attend=nn.MultiheadAttention(4, 2), last=nn.Linear(4, 2),
        ),
        SEQUENCE,
        {"attend.in_proj_weight", "attend.in_proj_bias", "attend.out_proj.weight", "attend.out_proj.bias"},
    ),
    "recurrent": (
        lambda: Function(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(4, 3, batch_first=True)), SEQUENCE,
        {f"lstm.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_what_no_use_explains_is_computed_sample_by_sample(name: str) -> None:
    build, shape, slow = SLOW[name]
    torch.manual_seed(0)
    model = randomise(build()).double()
    assert check(model, (generic(*shape),)).slow == slow


def test_prelu_and_a_weight_that_is_also_an_embedding_have_right_rows() -> None:
    torch.manual_seed(0)
    check(randomise(nn.Sequential(nn.Conv2d(4, 3, 3), nn.PReLU(3))).double(), (generic(*IMAGE),))
    check(randomise(nn.Sequential(nn.Linear(4, 3), nn.PReLU())).double(), (generic(*VECTOR),))

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids).tanh())

    ids = torch.randint(6, (N, 3), generator=torch.Generator().manual_seed(4))
    per_sample = check(randomise(Tied()).double(), (ids,))
    assert per_sample.slow == {"embed.weight"}
    assert list(per_sample.parameters) == ["embed.weight"]


def more(inputs: object) -> object:
    """Four or six different samples from a case's two or three."""

    def double_up(x: Tensor) -> Tensor:
        return torch.cat([x, 0.7 * x.flip(-1) if x.is_floating_point() else x.flip(-1)])

    if isinstance(inputs, dict):
        return {name: double_up(x) for name, x in inputs.items()}
    return tuple(double_up(x) for x in inputs)


@pytest.mark.parametrize("name", CASES)
def test_the_zoo(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    check(randomise(case.build()).double(), more(double(case.inputs())), max(case.tolerance, 1e-10))


@pytest.mark.parametrize("seed", range(12))
def test_random_small_nets(seed: int) -> None:
    pick = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=pick))

    torch.manual_seed(seed)
    width, layers = 4, list[nn.Module]()
    for _ in range(draw(2, 4)):
        kind, out = draw(0, 5), 2 * draw(1, 3)
        if kind == 0:
            layers.append(nn.Conv2d(width, out, draw(1, 3), draw(1, 2), draw(0, 2), groups=draw(1, 2)))
            width = out
        elif kind == 1:
            layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bool(draw(0, 1))))
        elif kind == 2:
            layers += [nn.BatchNorm2d(width), nn.GELU()]
        elif kind == 3:
            layers += [nn.GroupNorm(2, width), nn.SiLU(inplace=True)]
        elif kind == 4:
            layers.append(nn.Conv2d(width, out, (1, draw(1, 4)), padding="same", dilation=draw(1, 2)))
            width = out
        else:
            layers.append(nn.PReLU(width))
    model = randomise(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 3)), seed)
    per_sample = check(model.double(), (generic(N, 4, 9, 8, seed=seed),))
    assert "0.weight" not in per_sample.slow or isinstance(model[0], nn.PReLU)


def test_frozen_parameters_have_no_rows() -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))).double()
    model[0].weight.requires_grad_(False)
    assert list(check(model, (generic(*VECTOR),)).parameters) == ["0.bias", "2.weight", "2.bias"]
    batch = Batch((generic(*VECTOR),), torch.zeros(N))
    with measuring(model):
        chosen = PerSample(model, mean_loss, batch, frozenset({"0.weight"}))
        rows = found_rows(chosen, batch)
    model.requires_grad_(True)
    assert list(rows) == ["0.weight"]
    torch.testing.assert_close(rows["0.weight"], true_rows(model, batch)["0.weight"])


def test_parameters_that_take_no_part_have_rows_of_zeros() -> None:
    torch.manual_seed(0)
    model = randomise(Function(lambda m, x: m.f(x), f=nn.Linear(4, 2), unused=nn.Linear(2, 2))).double()
    per_sample = check(model, (generic(*VECTOR),))
    assert per_sample.slow == set()


def test_an_unknown_use_counts_where_the_samples_compared_at_first_have_no_gradient() -> None:
    torch.manual_seed(0)
    model = randomise(
        Function(lambda m, x: m.last((m.up(x.relu()) + x).flatten(1)),
                 up=nn.ConvTranspose1d(3, 3, 1, bias=False), last=nn.Linear(12, 2))
    ).double()  # fmt: skip
    inputs = generic(*SEQUENCE).abs()
    inputs[:2] *= -1
    assert check(model, (inputs,)).slow == {"up.weight"}


def test_reading_a_size_or_casting_a_weight_to_its_own_type_is_no_use() -> None:
    torch.manual_seed(0)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        weight = m.f.weight.to(x.dtype)
        return F.linear(x.to(weight.device, m.f.weight.dtype), weight, m.f.bias) * weight.shape[0] ** -0.5

    assert check(randomise(Function(forward, f=nn.Linear(4, 2))).double(), (generic(*VECTOR),)).slow == set()


def test_a_loss_that_the_model_computes_itself_is_taken_sample_by_sample() -> None:
    """Such a loss is already a mean over whatever samples went in."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.f(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    model = randomise(Own()).double()
    inputs = {"x": generic(*VECTOR), "labels": torch.arange(N) % 3}
    batch = Batch(inputs, inputs)

    def loss(output: dict[str, Tensor], batch: object) -> Tensor:
        return output["loss"]

    with measuring(model):
        per_sample = PerSample(model, loss, batch)
        found, true = found_rows(per_sample, batch), true_rows(model, batch, loss)
    for name in true:
        torch.testing.assert_close(found[name], true[name])


def test_rms_norm_over_positions() -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(RMSNorm(4), nn.Linear(4, 3))).double()
    assert check(model, (generic(*SEQUENCE),)).slow == set()


def test_the_number_of_samples_is_the_length_of_the_first_tensor() -> None:
    assert size(Batch({"a": torch.zeros(3, 2), "b": torch.zeros(())}, None)) == 3
    part = take(Batch({"a": torch.arange(3), "b": torch.tensor(5)}, torch.arange(3)), slice(1, 3))
    assert part.inputs["a"].tolist() == [1, 2] and part.inputs["b"] == 5 and part.target.tolist() == [1, 2]
    with pytest.raises(ConfigError, match="must hold tensors"):
        size(Batch([1, 2], None))
