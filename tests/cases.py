"""The zoo: one tiny net for every construct auxin must understand, as data.

Every width of a net has its own small size, so that the brute-force oracle of ``tests/graph/test_oracle.py`` cannot
take one axis for another. Nothing here knows auxin: ``growable`` and ``frozen`` say, by parameter axis, what a person
reading the net would expect of any graph. The file is long because it is a table, read in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

try:
    import transformers
except ImportError:  # an optional extra: its five cases are skipped, with this as the reason
    transformers = None

Axis = tuple[str, int]
Inputs = tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A net, its example input, and what must be found in it.

    Attributes:
        name: Key in ``CASES``.
        build: Makes the net (generic weights come from ``randomise``).
        inputs: Makes example inputs: positional arguments, or keyword arguments as a dict.
        growable: Axes (parameter, dim) on which at least one growable group must lie.
        frozen: Axes on which no growable group may lie.
        atoms: Sizes of the units' index spaces, for the oracle's search: widths, numbers of heads, groups.
        shape_tied: Axes whose parts never meet in a computation, but which a reshape keeps at equal sizes.
        hard_coded: A substring of the source line that resists growth; widening must be rolled back.
        needs: Module that must be importable, or None.
        tolerance: Relative noise of the output in float64; larger where a model computes norms in float32.
        notes: What is special.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    growable: tuple[Axis, ...]
    frozen: tuple[Axis, ...]
    atoms: tuple[int, ...]
    shape_tied: tuple[Axis, ...] = ()
    hard_coded: str | None = None
    needs: str | None = None
    tolerance: float = 1e-10
    notes: str = ""


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and running statistic a generic value, and put the model in eval mode.

    Freshly built nets are special (zero biases, unit scales, zero means): a wrong axis could go unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * std

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            is_norm = "Norm" in type(owner).__name__
            if is_norm and name.endswith("weight"):
                parameter.copy_(1 + 0.25 * normal(parameter, 1).clamp(-2, 2))
            elif is_norm:  # shifted up, so that no unit is dead behind a ReLU
                parameter.copy_(0.5 + normal(parameter, 0.4))
            elif parameter.dim() < 2:
                parameter.copy_(normal(parameter, 0.4))
            elif isinstance(owner, nn.Embedding):
                parameter.copy_(normal(parameter, 1.0))
            else:
                parameter.copy_(normal(parameter, 1.2 * parameter[0].numel() ** -0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer, 0.3))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.25 * normal(buffer, 1).clamp(-2, 2))
    return model.eval()


def call(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model on positional or keyword inputs; return its floating-point outputs in a fixed order."""
    output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return flatten(output)


def flatten(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of a nested output (tuple, list, dict, dataclass)."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        return [leaf for key in output for leaf in flatten(output[key])]
    if isinstance(output, tuple | list):
        return [leaf for item in output for leaf in flatten(item)]
    return []


def double(inputs: Inputs) -> Inputs:
    """Return the inputs with floating-point tensors in float64."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    if isinstance(inputs, dict):
        return {key: convert(value) for key, value in inputs.items()}
    return tuple(convert(value) for value in inputs)


def noise(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """Return a maker of standard normal inputs of these shapes."""

    def make() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(11)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    return make


def tokens(vocabulary: int, shape: tuple[int, int], name: str | None = None) -> Callable[[], Inputs]:
    """Return a maker of random token ids, as the positional input or under a name."""

    def make() -> Inputs:
        ids = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(12))
        return (ids,) if name is None else {name: ids}

    return make


def conv_bn(c_in: int, c_out: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Return convolution, batch norm, SiLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(c_out), nn.SiLU()
    )


class Pooled(nn.Module):
    """A trunk, the mean over space, a linear head."""

    def __init__(self, trunk: nn.Module, width: int, classes: int = 4) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).flatten(2).mean(-1))


# --------------------------------------------------------------------------------------------- convolutional nets


def plain() -> nn.Module:
    return Pooled(
        nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            *conv_bn(5, 7),
            nn.Dropout(0.1),
        ),
        7,
    )


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(45, 11),
        nn.ReLU(),
        nn.Linear(11, 4),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 7)
        self.inner = conv_bn(7, 5)
        self.outer = nn.Sequential(nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7))
        self.loop = nn.Conv2d(7, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.silu(x + self.outer(self.inner(x)))
        return x + self.loop(x)


class Dense(nn.Module):
    """Two DenseNet layers: every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(5)
        self.conv1 = nn.Conv2d(5, 7, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 6, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.silu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.silu(self.norm2(x)))], 1)
        return F.silu(self.norm3(x))


class Split(nn.Module):
    """Halves by ``split`` with a size taken from the shape: the halves stay equal, but are not otherwise related."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 10)
        self.left = nn.Conv2d(5, 7, 3, padding=1)
        self.right = nn.Conv2d(5, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left, right = x.split(x.shape[1] // 2, dim=1)
        return torch.cat([F.silu(self.right(right)), F.silu(self.left(left))], 1)


class Chunk(nn.Module):
    """``chunk`` in two, one half modulated by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 10)
        self.mix = conv_bn(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        shift, scale = self.stem(x).chunk(2, dim=1)
        return self.mix(shift * (1 + scale))


class Gated(nn.Module):
    """``F.glu`` after a linear layer and after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)
        self.up = nn.Linear(5, 14)
        self.down = nn.Linear(7, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.conv(x), dim=1).mean((2, 3))
        return self.out(F.gelu(self.down(F.glu(self.up(x)))))


def shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 unit: half the channels pass, half are transformed, then all are shuffled, and it is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 10)
        self.branch = nn.Sequential(
            *conv_bn(5, 7, 1), nn.Conv2d(7, 7, 3, padding=1, groups=7), nn.BatchNorm2d(7), *conv_bn(7, 5, 1)
        )
        self.last = conv_bn(10, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        return self.last(shuffle(torch.cat([left, self.branch(right)], 1), 2))


def channel_shuffle() -> nn.Module:
    trunk = nn.Sequential(*conv_bn(3, 12), nn.ChannelShuffle(2), *conv_bn(12, 14, groups=2), *conv_bn(14, 6, 1))
    return Pooled(trunk, 6)


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(5, 28, 3, padding=1),
        nn.PixelShuffle(2),
        nn.SiLU(),
        nn.Conv2d(7, 3, 3, padding=1),
    )


def separable() -> nn.Module:
    trunk = nn.Sequential(
        *conv_bn(3, 5), *conv_bn(5, 5, groups=5), *conv_bn(5, 7, 1), *conv_bn(7, 7, groups=7), *conv_bn(7, 6, 1)
    )
    return Pooled(trunk, 6)


class ResNeXt(nn.Module):
    """Four groups of three channels inside a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 7)
        self.block = nn.Sequential(*conv_bn(7, 12, 1), *conv_bn(12, 20, groups=4), nn.Conv2d(20, 7, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.block(x)


def group_norm() -> nn.Module:
    trunk = nn.Sequential(
        nn.Conv2d(3, 15, 3, padding=1),
        nn.GroupNorm(5, 15),
        nn.SiLU(),
        nn.Conv2d(15, 7, 3, padding=1),
        nn.GroupNorm(7, 7),
        nn.SiLU(),
        nn.Conv2d(7, 6, 1),
        nn.GroupNorm(1, 6),
    )
    return Pooled(trunk, 6)


def instance_norm() -> nn.Module:
    trunk = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.InstanceNorm2d(5, affine=True),
        nn.SiLU(),
        nn.Conv2d(5, 7, 3, padding=1),
        nn.InstanceNorm2d(7, affine=True, track_running_stats=True),
        nn.SiLU(),
    )
    return Pooled(trunk, 7)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 7)
        self.squeeze = nn.Conv2d(7, 5, 1)
        self.excite = nn.Conv2d(5, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.excite(gate))


class UNet(nn.Module):
    """Down, up by a transposed convolution, concatenated with the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_bn(3, 5)
        self.down = conv_bn(5, 7, stride=2)
        self.up = nn.ConvTranspose2d(7, 6, 2, stride=2)
        self.fuse = conv_bn(11, 8)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        return self.out(self.fuse(torch.cat([self.up(self.down(skip)), skip], 1)))


def conv1d() -> nn.Module:
    trunk = nn.Sequential(
        nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.ELU(), nn.Conv1d(5, 7, 3, dilation=2), nn.MaxPool1d(2)
    )
    return Pooled(trunk, 7)


def conv3d() -> nn.Module:
    trunk = nn.Sequential(nn.Conv3d(2, 5, 3), nn.BatchNorm3d(5), nn.SiLU(), nn.Conv3d(5, 7, 2))
    return Pooled(trunk, 7)


# ------------------------------------------------------------------------------------------ MLPs and transformers


class TokenNorm(nn.Module):
    """LeViT's: a linear layer over tokens and a batch norm over all of them."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(entering, leaving, bias=False), nn.BatchNorm1d(leaving)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


def token_batch_norm() -> nn.Module:
    return nn.Sequential(TokenNorm(4, 7), nn.ReLU(), TokenNorm(7, 5), nn.Hardswish(), nn.Linear(5, 3))


def pruned() -> nn.Module:
    norm = nn.BatchNorm2d(5)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), norm, nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 1))
    prune.random_unstructured(net[0], "bias", 0.4)
    prune.random_unstructured(net[3], "weight", 0.3)
    prune.l1_unstructured(net[3], "weight", 0.2)  # the second one, in a container of both
    return net


class Spline(nn.Module):
    """A layer of a Kolmogorov-Arnold network: bumps on a grid of each input, and their weights in one matrix."""

    def __init__(self, entering: int, leaving: int, bumps: int = 4) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.empty(leaving, entering))
        self.weight = nn.Parameter(torch.empty(leaving, entering, bumps))
        self.register_buffer("grid", torch.linspace(-1, 1, bumps).repeat(entering, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2))
        return F.linear(F.silu(x), self.base) + F.linear(bumps.flatten(1), self.weight.flatten(1))


def splines() -> nn.Module:
    return nn.Sequential(Spline(3, 5), Spline(5, 7), nn.Linear(7, 2))


class Causal(nn.Conv2d):
    """A convolution that sees only what is above and to the left, by a mask that is the same for all channels."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, padding=1)
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 2], mask[:, :, 2] = 0, 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class Blur(nn.Module):
    """One fixed filter for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])


def repeated_buffers() -> nn.Module:
    return nn.Sequential(Causal(3, 5, 3), nn.SiLU(), Blur(5), Causal(5, 7, 3), nn.SiLU(), nn.Conv2d(7, 2, 1))


class Generated(nn.Module):
    """A layer whose weight another layer computes from a learnt vector (a hypernetwork)."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.empty(1, 3))
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 28)
        self.last = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second(torch.sigmoid(self.first(self.code)))
        return self.last(F.linear(x, weight.view(-1, x.shape[1])).relu())


def weight_normed() -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Linear(4, 7)), nn.ReLU(), weight_norm(nn.Linear(7, 5)), nn.Tanh(), nn.Linear(5, 3)
    )


def mlp_layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 10),
        nn.GELU(),
        nn.LayerNorm(10),
        nn.Linear(10, 7),
        nn.Tanh(),
        nn.Linear(7, 5),
        nn.GELU(),
        nn.Linear(5, 4),
    )


class StandardisedConv(nn.Conv2d):
    """Weights of mean zero and variance one per filter, by a batch norm over them, as norm-free networks have it."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, (self.gain * 0.7).view(-1), training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


def standardised_conv() -> nn.Module:
    return nn.Sequential(
        StandardisedConv(3, 5, 2), nn.ReLU(), StandardisedConv(5, 7, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(7, 4),
    )  # fmt: skip


class OpenHeads(nn.Module):
    """The number of heads is left open, and happens to be the head dimension that the line names."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 6
        self.up, self.down = nn.Linear(5, 6 * 6), nn.Linear(6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.up(x).reshape(x.shape[0], x.shape[1], -1, 1 * self.dim)
        return self.down((heads * heads.softmax(-1)).flatten(2))


class RMSNorm(nn.Module):
    """Root mean square norm, written by hand as language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class HandRMS(nn.Module):
    """A stream of six under a hand-written RMS norm, and a SwiGLU of ten."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.norm = RMSNorm(6)
        self.gate = nn.Linear(6, 10, bias=False)
        self.up = nn.Linear(6, 10, bias=False)
        self.down = nn.Linear(10, 6, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class Encoder(nn.Module):
    """``nn.TransformerEncoderLayer``: multi-head attention on a stream under LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.layer = nn.TransformerEncoderLayer(12, 3, 10, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)))


class BareAttention(nn.Module):
    """``nn.MultiheadAttention`` with no norm around it: three heads of four."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.hidden = nn.Linear(12, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(F.gelu(self.hidden(x + self.attention(x, x, x, need_weights=False)[0])))


class ScoredHeads(nn.Module):
    """Scores by a product and a sum, as graph attention writes them: three heads of four, one score vector each."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.lift = nn.Linear(5, 12)
        self.score = nn.Parameter(torch.ones(1, 1, 3, 4))
        self.gate = nn.Linear(12, 7)
        self.weigh = nn.Parameter(torch.ones(7))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x).view(x.shape[0], -1, self.num_heads, self.head_dim)
        shares = (h * self.score).sum(-1, keepdim=True).softmax(1)
        y = (shares * h).flatten(2)
        return self.head(y) * (self.weigh * self.gate(y).tanh()).sum(2)[..., None]


class Experts(nn.Module):
    """Two of three experts for each token, by Python's own branches: those that no token chose are passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.gate = nn.Linear(5, 7), nn.Linear(7, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 7)) for _ in range(3))
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x).flatten(0, 1)
        assert torch.isfinite(h).all()
        shares, chosen = self.gate(h).softmax(-1).topk(2)
        y = h.clone()
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(chosen == number)
            if rows.numel() == 0:
                continue
            y[rows] += expert(h[rows]) * shares[rows, rank, None]
        positive = x.flatten(0, 1).sum(-1) > 0
        y[positive] = 2 * y[positive]
        return self.head(y).view(*x.shape[:-1], -1)


class FusedAttention(nn.Module):
    """Fused qkv as timm writes it, on a stream of ten: three heads of four, so 36 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.embed = nn.Linear(5, 10)
        self.norm = nn.LayerNorm(10)
        self.qkv = nn.Linear(10, 36)
        self.proj = nn.Linear(12, 10)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.proj(y.transpose(1, 2).reshape(batch, length, -1)))


class GroupedQuery(nn.Module):
    """Three key-value heads of four, each read by two query heads."""

    def __init__(self, repeat: bool) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim, self.repeat = 6, 3, 4, repeat
        self.q_proj = nn.Linear(5, 24)
        self.k_proj = nn.Linear(5, 12)
        self.v_proj = nn.Linear(5, 12)
        self.o_proj = nn.Linear(24, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        if self.repeat:
            k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=not self.repeat)
        return self.head(F.gelu(self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))))


class Mixer(nn.Module):
    """MLP-Mixer: an MLP over the five tokens through a transpose, then one over the seven channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 7)
        self.norm1, self.norm2 = nn.LayerNorm(7), nn.LayerNorm(7)
        self.token_up, self.token_down = nn.Linear(5, 11), nn.Linear(11, 5)
        self.channel_up, self.channel_down = nn.Linear(7, 6), nn.Linear(6, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.token_down(F.gelu(self.token_up(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.channel_down(F.gelu(self.channel_up(self.norm2(x))))
        return self.head(x.mean(1))


class Tied(nn.Module):
    """The output head is the embedding: one parameter, both the producer and the consumer of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(F.gelu(self.up(x))))


class Twice(nn.Module):
    """One layer called twice: its rows and its columns are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 7)
        self.again = nn.Linear(7, 7)
        self.side = nn.Linear(7, 5)
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        x = F.gelu(self.again(F.gelu(self.again(x))))
        return self.last(F.gelu(self.side(x)))


class TwoInTwoOut(nn.Module):
    """An image and a vector in, a map and a score out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = conv_bn(3, 7)
        self.vector = nn.Linear(5, 7)
        self.map = nn.Conv2d(7, 2, 1)
        self.hidden, self.score = nn.Linear(7, 6), nn.Linear(6, 4)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        x = F.silu(self.image(image) + self.vector(vector)[:, :, None, None])
        return self.map(x), self.score(F.gelu(self.hidden(x.mean((2, 3)))))


class Raw(nn.Module):
    """Raw parameters: class token, position embedding, LayerScale; no norm, so the stream of six may grow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.position = nn.Parameter(torch.zeros(1, 5, 6))
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.scale = nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.position
        x = x + self.scale * self.down(F.gelu(self.up(x)))
        return self.head(x[:, 0] * x[:, 1:].mean(1))


class Einsum(nn.Module):
    """Contractions with raw parameters: a per-position map and a low-rank product."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 7)
        self.local = nn.Parameter(torch.zeros(5, 7, 6))
        self.left = nn.Parameter(torch.zeros(6, 8))
        self.right = nn.Parameter(torch.zeros(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bnd,ndk->bnk", F.gelu(self.embed(x)), self.local)
        x = torch.einsum("bnk,kr->brn", F.gelu(x), self.left)
        return torch.einsum("brn,rc->bc", torch.tanh(x), self.right)


class TwoInputs(nn.Module):
    """A bilinear layer: one weight that two groups read, along a dimension each."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(3, 6)
        self.both, self.head = nn.Bilinear(5, 6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.both(F.gelu(self.left(x)), torch.tanh(self.right(x)))))


class Recurrent(nn.Module):
    """An LSTM between two linear layers: its hidden units are in all four gates, and feed back."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(3, 5)
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lstm(F.gelu(self.before(x)))[0]
        return self.head(F.gelu(self.hidden(y)))


class Packed(nn.Module):
    """Sequences of two lengths, packed for a recurrent layer that runs both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(3, 5)
        self.gru = nn.GRU(5, 6, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        kept = lengths.clamp(min=1).cpu()
        packed = pack_padded_sequence(F.gelu(self.before(x)), kept, batch_first=True, enforce_sorted=False)
        y = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        return self.head(F.gelu(self.hidden(y)))


class Thrown(nn.Module):
    """Gated convolutions whose skips are the output: the last residual path is computed and thrown away (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(3, 5, 1)
        self.gates = nn.ModuleList(nn.Conv1d(5, 14, 3, padding=1) for _ in range(2))
        self.paths = nn.ModuleList(nn.Conv1d(7, 5, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(7, 6, 1) for _ in range(2))
        self.unread = nn.Linear(6, 8)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, out = self.start(x), 0
        for gate, path, skip in zip(self.gates, self.paths, self.skips, strict=True):
            signal, opening = gate(x).chunk(2, 1)
            inner = torch.tanh(signal) * torch.sigmoid(opening)
            out = out + skip(inner)
            x = x + path(inner)
        pooled = F.relu(out).mean(-1)
        self.unread(pooled)
        return self.head(pooled)


class NoRule(nn.Module):
    """A Fourier transform over the channels mixes them; an elementwise guess would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(5, 7)
        self.hidden = nn.Linear(7, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.fft(F.gelu(self.before(x)), dim=-1).real
        return self.head(F.gelu(self.hidden(x)))


class Cumulative(nn.Module):
    """A cumulative sum over the channels: same shape in and out, yet the order of the channels matters."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(5, 7)
        self.hidden = nn.Linear(7, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(F.gelu(self.before(x)), dim=-1)
        return self.head(F.gelu(self.hidden(x)))


class HardCoded(nn.Module):
    """A forward with the size of its flattened map written out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.hidden = nn.Linear(5 * 36, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        x = x.view(x.shape[0], 5 * 36)
        return self.head(F.silu(self.hidden(x)))


# ------------------------------------------------------------------------------------- Hugging Face, from configs


class Logits(nn.Module):
    """A Hugging Face model with its output reduced to one tensor."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, **inputs: Tensor) -> Tensor:
        return getattr(self.model(**inputs), self.field)


def hf_resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=5, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=2
    )
    return Logits(transformers.ResNetForImageClassification(config), "logits")


def hf_vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        image_size=8,
        patch_size=4,
        num_labels=2,
    )
    return Logits(transformers.ViTForImageClassification(config), "logits")


def hf_bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=17,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        max_position_embeddings=9,
    )
    return Logits(transformers.BertModel(config, add_pooling_layer=False), "last_hidden_state")


def hf_gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=9, n_embd=12, n_layer=2, n_head=3, n_inner=10, use_cache=False
    )
    return Logits(transformers.GPT2LMHeadModel(config), "logits")


def hf_llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=17,
        hidden_size=18,
        intermediate_size=10,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=4,
        max_position_embeddings=16,
        use_cache=False,
    )
    return Logits(transformers.LlamaForCausalLM(config), "logits")


def pixels(size: int) -> Callable[[], Inputs]:
    """Return a maker of square images by name."""
    return lambda: {"pixel_values": torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(11))}


IMAGE = noise((2, 3, 6, 6))
VECTOR = noise((3, 5))
SEQUENCE = noise((2, 4, 5))

_ALL = (
    Case("plain", plain, IMAGE, (("trunk.0.weight", 0), ("trunk.4.weight", 0)), (("head.weight", 0),), (5, 7)),
    Case("flatten", flattened, IMAGE, (("0.weight", 0), ("4.weight", 1), ("4.weight", 0)), (("6.weight", 0),), (5, 11)),
    Case(
        "residual",
        lambda: Pooled(Residual(), 7),
        IMAGE,
        (("trunk.stem.0.weight", 0), ("trunk.inner.0.weight", 0), ("trunk.loop.weight", 1)),
        (("head.weight", 0), ("trunk.stem.0.weight", 1)),
        (5, 7),
    ),
    Case(
        "dense_concat",
        lambda: Pooled(Dense(), 18),
        IMAGE,
        (("trunk.stem.weight", 0), ("trunk.conv1.weight", 0), ("trunk.conv2.weight", 0), ("head.weight", 1)),
        (("head.weight", 0),),
        (5, 6, 7),
    ),
    Case(
        "split",
        lambda: Pooled(Split(), 13),
        IMAGE,
        (("trunk.left.weight", 0), ("trunk.right.weight", 0)),
        (("head.weight", 0),),
        (5, 6, 7),
        shape_tied=(("trunk.stem.0.weight", 0),),
        notes="the stem's halves are read by different layers, and only the split keeps them equal",
    ),
    Case(
        "chunk",
        lambda: Pooled(Chunk(), 7),
        IMAGE,
        (("trunk.stem.0.weight", 0), ("trunk.mix.0.weight", 0)),
        (("head.weight", 0),),
        (5, 7),
    ),
    Case(
        "glu", Gated, IMAGE, (("conv.weight", 0), ("up.weight", 0), ("down.weight", 0)), (("out.weight", 0),), (5, 6, 7)
    ),
    Case(
        "shuffle_unit",
        lambda: Pooled(ShuffleUnit(), 6),
        IMAGE,
        (("trunk.branch.0.weight", 0), ("trunk.last.0.weight", 0)),
        (("head.weight", 0),),
        (5, 6, 7),
        shape_tied=(("trunk.stem.0.weight", 0),),
        notes="the halves are tied by chunk and by the view of the shuffle",
    ),
    Case(
        "channel_shuffle",
        channel_shuffle,
        IMAGE,
        (("trunk.0.weight", 0), ("trunk.4.weight", 0), ("trunk.7.weight", 0)),
        (("head.weight", 0),),
        (3, 6, 7),
        shape_tied=(("trunk.0.weight", 0), ("trunk.4.weight", 0)),
        notes="two groups of equal size; the shuffle deals the twelve channels out in runs of three",
    ),
    Case("pixel_shuffle", pixel_shuffle, IMAGE, (("0.weight", 0), ("2.weight", 0)), (("5.weight", 0),), (5, 7)),
    Case(
        "depthwise",
        separable,
        IMAGE,
        (("trunk.0.weight", 0), ("trunk.3.weight", 0), ("trunk.6.weight", 0), ("trunk.12.weight", 0)),
        (("head.weight", 0),),
        (5, 6, 7),
    ),
    Case(
        "grouped",
        lambda: Pooled(ResNeXt(), 7),
        IMAGE,
        (("trunk.stem.0.weight", 0), ("trunk.block.0.weight", 0), ("trunk.block.3.weight", 0)),
        (("head.weight", 0),),
        (3, 4, 5, 7),
        shape_tied=(("trunk.block.0.weight", 0), ("trunk.block.3.weight", 0)),
        notes="may grow by whole groups, or by one channel in every group",
    ),
    Case(
        "group_norm",
        group_norm,
        IMAGE,
        (("trunk.0.weight", 0), ("trunk.3.weight", 0)),
        (("head.weight", 0),),
        (3, 5, 6, 7),
        shape_tied=(("trunk.0.weight", 0),),
        notes="whole groups only; the last norm has one group, so its channels are under a norm that mixes them",
    ),
    Case(
        "instance_norm",
        instance_norm,
        IMAGE,
        (("trunk.0.weight", 0), ("trunk.3.weight", 0)),
        (("head.weight", 0),),
        (5, 7),
    ),
    Case(
        "squeeze_excite",
        lambda: Pooled(SqueezeExcite(), 7),
        IMAGE,
        (("trunk.stem.0.weight", 0), ("trunk.squeeze.weight", 0), ("trunk.excite.weight", 0)),
        (("head.weight", 0),),
        (5, 7),
    ),
    Case(
        "unet",
        UNet,
        IMAGE,
        (("first.0.weight", 0), ("down.0.weight", 0), ("up.weight", 1), ("up.weight", 0), ("fuse.0.weight", 0)),
        (("out.weight", 0),),
        (5, 6, 7, 8),
    ),
    Case(
        "conv1d",
        conv1d,
        noise((2, 3, 12)),
        (("trunk.0.weight", 0), ("trunk.3.weight", 0)),
        (("head.weight", 0),),
        (5, 7),
    ),
    Case(
        "conv3d",
        conv3d,
        noise((2, 2, 5, 5, 5)),
        (("trunk.0.weight", 0), ("trunk.3.weight", 0)),
        (("head.weight", 0),),
        (5, 7),
    ),
    Case(
        "token_batch_norm",
        token_batch_norm,
        noise((2, 6, 4)),
        (("0.linear.weight", 0), ("2.linear.weight", 1), ("2.norm.weight", 0), ("4.weight", 1)),
        (("4.weight", 0), ("0.linear.weight", 1)),
        (5, 7),
    ),
    Case(
        "pruned",
        pruned,
        noise((2, 3, 6, 6)),
        (
            ("0.weight", 0),
            ("0.bias_orig", 0),
            ("0.bias_mask", 0),
            ("1.weight", 0),
            ("3.weight_orig", 1),
            ("3.weight_mask", 1),
            ("3.weight_orig", 0),
            ("3.weight_mask", 0),
            ("5.weight", 1),
        ),
        (("5.weight", 0), ("0.weight", 1)),
        (5, 7),
        notes="masks of zeros and ones, as torch.nn.utils.prune makes them",
    ),
    Case(
        "splines",
        splines,
        noise((3, 3)),
        (
            ("0.base", 0),
            ("0.weight", 0),
            ("1.base", 1),
            ("1.weight", 1),
            ("1.grid", 0),
            ("1.weight", 0),
            ("2.weight", 1),
        ),
        (("2.weight", 0), ("0.weight", 1), ("1.weight", 2), ("1.grid", 1)),
        (5, 7),
        notes="a view joins dimensions of a weight; the grid is the same for every input and in no file",
    ),
    Case(
        "repeated_buffers",
        repeated_buffers,
        noise((2, 3, 6, 6)),
        (
            ("0.weight", 0),
            ("0.mask", 0),
            ("2.kernel", 0),
            ("3.weight", 1),
            ("3.mask", 1),
            ("3.weight", 0),
            ("3.mask", 0),
            ("5.weight", 1),
        ),
        (("5.weight", 0), ("0.weight", 1), ("0.mask", 1), ("0.mask", 2)),
        (5, 7),
        notes="what a buffer holds for one channel it holds for all",
    ),
    Case(
        "generated_weight",
        Generated,
        noise((3, 4)),
        (("first.weight", 0), ("second.weight", 1), ("second.weight", 0), ("last.weight", 1)),
        (("last.weight", 0),),
        (3, 4, 5, 7),
        notes="a linear layer that reads parameters only",
    ),
    Case(
        "weight_normed",
        weight_normed,
        noise((3, 4)),
        (
            ("0.parametrizations.weight.original0", 0),
            ("0.parametrizations.weight.original1", 0),
            ("2.parametrizations.weight.original1", 1),
            ("2.parametrizations.weight.original0", 0),
            ("4.weight", 1),
        ),
        (("4.weight", 0), ("0.parametrizations.weight.original0", 1), ("0.parametrizations.weight.original1", 1)),
        (5, 7),
        notes="zeros keep the norm of what reads a unit, shares do not: copies are refused there",
    ),
    Case(
        "mlp_layer_norm",
        mlp_layer_norm,
        noise((3, 6)),
        (("3.weight", 0), ("5.weight", 0)),
        (("7.weight", 0), ("0.weight", 1)),
        (5, 7, 10),
    ),
    Case(
        "standardised_conv",
        standardised_conv,
        noise((2, 3, 6, 6)),
        (("2.weight", 0), ("6.weight", 1)),
        (("6.weight", 0), ("0.weight", 0), ("2.weight", 1), ("2.gain", 1)),
        (5, 7),
        notes="new inputs of a standardised filter change its mean",
    ),
    Case(
        "open_heads",
        OpenHeads,
        noise((2, 3, 5)),
        (("up.weight", 0),),
        (("down.weight", 0),),
        (6,),
        notes="self.dim does not follow the heads",
    ),
    Case(
        "rms_norm",
        HandRMS,
        SEQUENCE,
        (("gate.weight", 0), ("up.weight", 0), ("down.weight", 1)),
        (("head.weight", 0), ("embed.weight", 1)),
        (6, 10),
        notes="the stream is under a norm that mixes it",
    ),
    Case(
        "encoder_layer",
        Encoder,
        SEQUENCE,
        (("layer.linear1.weight", 0), ("layer.linear2.weight", 1)),
        (("head.weight", 0), ("embed.weight", 1)),
        (3, 4, 10, 12),
        shape_tied=(("layer.self_attn.in_proj_weight", 0),),
        notes="nn.MultiheadAttention ties heads times head size to the width of the stream",
    ),
    Case(
        "bare_attention",
        BareAttention,
        SEQUENCE,
        (("hidden.weight", 0),),
        (("head.weight", 0), ("embed.weight", 1)),
        (3, 4, 7),
        shape_tied=(("attention.in_proj_weight", 0),),
        notes="the stream may grow by whole heads, since no norm is around it",
    ),
    Case(
        "scored_heads",
        ScoredHeads,
        SEQUENCE,
        (("lift.weight", 0), ("score", 2), ("score", 3), ("gate.weight", 0), ("weigh", 0)),
        (("head.weight", 0), ("lift.weight", 1), ("score", 0), ("score", 1)),
        (3, 4, 7),
        notes="a product and a sum are what einsum is: the parameter reads the units",
    ),
    Case(
        "experts",
        Experts,
        noise((4, 4, 5)),
        (("lift.weight", 0), ("gate.weight", 1), ("experts.0.0.weight", 0), ("experts.1.2.weight", 0)),
        (("head.weight", 0), ("gate.weight", 0)),
        (7, 9),
        notes="branches and indices that depend on the values of tensors",
    ),
    Case(
        "fused_attention",
        FusedAttention,
        SEQUENCE,
        (("qkv.weight", 0), ("proj.weight", 1)),
        (("head.weight", 0), ("embed.weight", 1)),
        (3, 4, 10),
    ),
    Case(
        "grouped_query_repeat",
        lambda: GroupedQuery(repeat=True),
        SEQUENCE,
        (("k_proj.weight", 0), ("o_proj.weight", 0)),
        (("head.weight", 0), ("q_proj.weight", 1)),
        (2, 3, 4, 7),
        shape_tied=(("k_proj.weight", 0),),
        notes="one head_dim for queries and values, by the attribute",
    ),
    Case(
        "grouped_query_sdpa",
        lambda: GroupedQuery(repeat=False),
        SEQUENCE,
        (("k_proj.weight", 0), ("o_proj.weight", 0)),
        (("head.weight", 0), ("q_proj.weight", 1)),
        (2, 3, 4, 7),
        shape_tied=(("k_proj.weight", 0),),
        notes="one head_dim for queries and values, by the attribute",
    ),
    Case(
        "mixer",
        Mixer,
        noise((2, 5, 3)),
        (("token_up.weight", 0), ("channel_up.weight", 0)),
        (("token_up.weight", 1), ("token_down.weight", 0), ("head.weight", 0)),
        (6, 7, 11),
    ),
    Case("tied", Tied, tokens(13, (2, 5)), (("up.weight", 0), ("down.weight", 1)), (("embed.weight", 0),), (6, 9)),
    Case(
        "called_twice",
        Twice,
        noise((3, 6)),
        (("first.weight", 0), ("again.weight", 0), ("again.weight", 1), ("side.weight", 0)),
        (("last.weight", 0), ("first.weight", 1)),
        (5, 7),
    ),
    Case(
        "two_in_two_out",
        TwoInTwoOut,
        noise((2, 3, 6, 6), (2, 5)),
        (("image.0.weight", 0), ("vector.weight", 0), ("map.weight", 1), ("hidden.weight", 0)),
        (("map.weight", 0), ("score.weight", 0), ("vector.weight", 1)),
        (6, 7),
    ),
    Case(
        "raw_parameters",
        Raw,
        noise((2, 4, 3)),
        (("embed.weight", 0), ("token", 2), ("position", 2), ("scale", 0), ("up.weight", 0), ("head.weight", 1)),
        (("position", 1), ("head.weight", 0)),
        (6, 10),
    ),
    Case(
        "einsum",
        Einsum,
        noise((2, 5, 3)),
        (("embed.weight", 0), ("local", 1), ("local", 2), ("left", 1), ("right", 0)),
        (("local", 0), ("right", 1)),
        (6, 7, 8),
    ),
    Case(
        "bilinear",
        TwoInputs,
        noise((2, 4, 3)),
        (("both.weight", 0), ("both.weight", 1), ("both.weight", 2), ("left.bias", 0), ("right.weight", 0)),
        (("head.weight", 0), ("left.weight", 1)),
        (5, 6, 7),
    ),
    Case(
        "lstm",
        Recurrent,
        noise((2, 4, 3)),
        (("hidden.weight", 0), ("lstm.weight_ih_l0", 0), ("lstm.weight_hh_l0", 1), ("before.weight", 0)),
        (("before.weight", 1), ("head.weight", 0)),
        (5, 6, 10),
    ),
    Case(
        "packed",
        Packed,
        lambda: (*noise((2, 4, 3))(), torch.tensor([2, 4])),
        (("hidden.weight", 0), ("gru.weight_ih_l0", 0), ("gru.weight_hh_l0_reverse", 1), ("before.weight", 0)),
        (("before.weight", 1), ("head.weight", 0)),
        (5, 6, 10),
        notes="how many samples each step has depends on the data",
    ),
    Case(
        "thrown_away",
        Thrown,
        noise((2, 3, 9)),
        (
            ("start.weight", 0),
            ("paths.1.weight", 0),
            ("paths.1.weight", 1),
            ("gates.1.weight", 1),
            ("unread.weight", 1),
        ),
        (("head.weight", 0), ("start.weight", 1), ("unread.weight", 0)),
        (5, 6, 7),
        shape_tied=(("gates.0.weight", 0),),
        notes="what reads a layer whose result nobody reads has to fit all the same",
    ),
    Case(
        "no_rule",
        NoRule,
        VECTOR,
        (("hidden.weight", 0),),
        (("before.weight", 0), ("hidden.weight", 1), ("head.weight", 0)),
        (6, 7),
    ),
    Case(
        "cumulative_sum",
        Cumulative,
        VECTOR,
        (("hidden.weight", 0),),
        (("before.weight", 0), ("hidden.weight", 1), ("head.weight", 0)),
        (6, 7),
    ),
    Case(
        "hard_coded_view",
        HardCoded,
        IMAGE,
        (("hidden.weight", 0),),
        (("head.weight", 0), ("conv.weight", 1)),
        (5, 7),
        hard_coded="x.view(x.shape[0], 5 * 36)",
    ),
    Case(
        "hf_resnet",
        hf_resnet,
        pixels(24),
        (
            ("model.resnet.embedder.embedder.convolution.weight", 0),
            ("model.resnet.encoder.stages.0.layers.0.layer.0.convolution.weight", 0),
            ("model.resnet.encoder.stages.1.layers.0.layer.1.convolution.weight", 0),
            ("model.classifier.1.weight", 1),
        ),
        (("model.classifier.1.weight", 0), ("model.resnet.embedder.embedder.convolution.weight", 1)),
        (5, 8, 12),
        needs="transformers",
    ),
    Case(
        "hf_vit",
        hf_vit,
        pixels(8),
        (
            ("model.vit.layers.0.mlp.fc1.weight", 0),
            ("model.vit.layers.1.mlp.fc2.weight", 1),
            ("model.vit.layers.0.attention.q_proj.weight", 0),
            ("model.vit.layers.1.attention.o_proj.weight", 1),
        ),
        (("model.classifier.weight", 0),),
        (3, 10),
        shape_tied=tuple((f"model.vit.layers.{k}.attention.k_proj.weight", 0) for k in range(2)),
        needs="transformers",
    ),
    Case(
        "hf_bert",
        hf_bert,
        tokens(17, (2, 5), "input_ids"),
        (
            ("model.encoder.layer.0.intermediate.dense.weight", 0),
            ("model.encoder.layer.1.output.dense.weight", 1),
            ("model.encoder.layer.0.attention.self.query.weight", 0),
            ("model.encoder.layer.1.attention.output.dense.weight", 1),
        ),
        (("model.encoder.layer.1.output.dense.weight", 0),),
        (3, 10),
        shape_tied=tuple((f"model.encoder.layer.{k}.attention.self.key.weight", 0) for k in range(2)),
        needs="transformers",
    ),
    Case(
        "hf_gpt2",
        hf_gpt2,
        tokens(17, (2, 5), "input_ids"),
        (
            ("model.transformer.h.0.mlp.c_fc.weight", 1),
            ("model.transformer.h.1.mlp.c_proj.weight", 0),
            ("model.transformer.h.0.attn.c_attn.weight", 1),
            ("model.transformer.h.1.attn.c_proj.weight", 0),
        ),
        (("model.transformer.wte.weight", 0),),
        (3, 10),
        needs="transformers",
    ),
    Case(
        "hf_llama",
        hf_llama,
        tokens(17, (2, 5), "input_ids"),
        (
            ("model.model.layers.0.mlp.gate_proj.weight", 0),
            ("model.model.layers.0.mlp.down_proj.weight", 1),
            ("model.model.layers.0.self_attn.k_proj.weight", 0),
            ("model.model.layers.0.self_attn.o_proj.weight", 1),
        ),
        (("model.lm_head.weight", 0), ("model.model.embed_tokens.weight", 0)),
        (3, 10),
        needs="transformers",
        tolerance=2e-6,
        notes="its RMS norm computes in float32 whatever the model's type",
    ),
)

CASES: dict[str, Case] = {case.name: case for case in _ALL if case.needs is None or transformers is not None}
SKIPPED: dict[str, str] = {case.name: f"{case.needs} is not installed" for case in _ALL if case.name not in CASES}
