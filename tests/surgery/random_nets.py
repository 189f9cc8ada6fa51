"""Random architectures as data: a strategy draws a list of operators, a plain module carries them out."""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

import auxin
from auxin.graph import Graph
from tests.cases import RMSNorm, randomise, shuffle

Operator = tuple[str, int, int]


@dataclass(frozen=True)
class Net:
    """An architecture: its kind, the width of its stem, its operators with two sizes each, how it ends."""

    kind: str
    width: int
    operators: tuple[Operator, ...]
    end: str
    seed: int

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return randomise({"image": ImageNet, "sequence": SequenceNet}[self.kind](self), self.seed)

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        shape = (3, 2, 4, 4) if self.kind == "image" else (3, 4, 5)
        return (torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64).to(dtype),)


class ImageNet(nn.Module):
    """Convolutions, residual and dense connections, groups, norms, gates; then flattened or averaged."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.stem = nn.Conv2d(2, net.width, 3, padding=1)
        self.layers = nn.ModuleList()
        width = net.width
        for name, a, b in net.operators:
            layer, width = _image_layer(name, a, b, width)
            self.layers.append(layer)
        self.last = nn.Linear(width * 16 if net.end == "flatten" else width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (name, _, _), layer in zip(self.net.operators, self.layers, strict=True):
            x = _run_image(name, layer, x)
        return self.last(x.flatten(1) if self.net.end == "flatten" else x.mean((2, 3)))


def _image_layer(name: str, a: int, b: int, width: int) -> tuple[nn.Module, int]:
    parts: dict[str, nn.Module]
    if name == "conv":
        return nn.Sequential(nn.Conv2d(width, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.SiLU()), a
    if name == "residual":
        branch = [nn.Conv2d(width, a, 1), nn.BatchNorm2d(a), nn.SiLU(), nn.Conv2d(a, width, 3, padding=1)]
        return Residual(*branch, activation=nn.ReLU() if b % 2 else nn.Identity()), width
    if name == "concat":
        return nn.Sequential(nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, a, 3, padding=1)), width + a
    if name == "depthwise":
        parts = {"space": nn.Conv2d(width, width, 3, padding=1, groups=width), "point": nn.Conv2d(width, a, 1)}
        return nn.ModuleDict(parts), a
    if name == "grouped":
        wide = 2 * a
        parts = {
            "up": nn.Conv2d(width, wide, 1),
            "mix": nn.Conv2d(wide, 2 * b, 3, padding=1, groups=2),
            "norm": nn.BatchNorm2d(2 * b),
        }
        return nn.ModuleDict(parts), 2 * b
    if name == "group_norm":
        return nn.Sequential(nn.Conv2d(width, a * b, 1), nn.GroupNorm(a, a * b), nn.GELU()), a * b
    if name == "instance_norm":
        return nn.Sequential(nn.Conv2d(width, a, 1), nn.InstanceNorm2d(a, affine=True), nn.GELU()), a
    if name == "gate":
        return nn.ModuleDict({"squeeze": nn.Conv2d(width, a, 1), "excite": nn.Conv2d(a, width, 1)}), width
    if name == "glu":
        return nn.Conv2d(width, 2 * a, 3, padding=1), a
    if name == "shuffle":
        return nn.Conv2d(width, 2 * a, 1), 2 * a
    return nn.Conv2d(width, width, 1), width  # "twice"


def _run_image(name: str, layer: Any, x: Tensor) -> Tensor:
    if name == "concat":
        return torch.cat([x, layer(x)], 1)
    if name == "depthwise":
        return layer["point"](F.silu(layer["space"](x)))
    if name == "grouped":
        return F.silu(layer["norm"](layer["mix"](F.silu(layer["up"](x)))))
    if name == "gate":
        return x * torch.sigmoid(layer["excite"](F.silu(layer["squeeze"](x.mean((2, 3), keepdim=True)))))
    if name == "glu":
        return F.glu(layer(x), dim=1)
    if name == "shuffle":
        return shuffle(F.silu(layer(x)), 2)
    if name == "twice":
        return F.silu(layer(F.silu(layer(x))))
    return layer(x)


class Residual(nn.Module):
    """A residual block: activation(x + branch(x))."""

    def __init__(self, *branch: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch, self.activation = nn.Sequential(*branch), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.branch(x))


class SequenceNet(nn.Module):
    """A residual stream with MLPs, gated MLPs and attention, under one of three norms or none."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        width = net.width
        self.embed = nn.Linear(5, width)
        self.position = nn.Parameter(torch.zeros(1, 4, width))
        self.layers = nn.ModuleList()
        for name, a, b in net.operators:
            norm = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}.get(net.end, lambda _: nn.Identity())
            self.layers.append(Residual(norm(width), _sequence_layer(name, a, b, width), activation=nn.Identity()))
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


class Attention(nn.Module):
    """Heads by reshape; fused qkv or three layers."""

    def __init__(self, width: int, num_heads: int, head_dim: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = num_heads, head_dim, fused
        inner = num_heads * head_dim
        self.qkv = nn.Linear(width, 3 * inner) if fused else nn.ModuleList(nn.Linear(width, inner) for _ in range(3))
        self.proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (layer(x).view(batch, length, -1, self.head_dim).transpose(1, 2) for layer in self.qkv)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, length, -1))


class Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Scaled(nn.Module):
    """An MLP with LayerScale."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.down(F.gelu(self.up(x)))


class TokenMix(nn.Module):
    """An MLP over the four positions."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, hidden), nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)


def _sequence_layer(name: str, a: int, b: int, width: int) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Linear(width, a), nn.GELU(), nn.Linear(a, b), nn.GELU(), nn.Linear(b, width))
    if name == "gated":
        return Gated(width, a)
    if name == "scaled":
        return Scaled(width, a)
    if name == "tokens":
        return TokenMix(a)
    return Attention(width, a, b, fused=name == "fused")


IMAGE_OPERATORS = (
    "conv", "residual", "concat", "depthwise", "grouped", "group_norm",
    "instance_norm", "gate", "glu", "shuffle", "twice",
)  # fmt: skip
SEQUENCE_OPERATORS = ("mlp", "gated", "scaled", "tokens", "fused", "separate")


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """Draw an architecture of one to three operators."""
    kind = draw(st.sampled_from(["image", "sequence"]))
    names = IMAGE_OPERATORS if kind == "image" else SEQUENCE_OPERATORS
    ends = ("mean", "flatten") if kind == "image" else ("none", "layer_norm", "rms_norm")
    operator = st.tuples(st.sampled_from(names), st.integers(2, 5), st.integers(2, 4))
    return Net(
        kind,
        draw(st.integers(2, 6)),
        tuple(draw(st.lists(operator, min_size=1, max_size=3))),
        draw(st.sampled_from(ends)),
        draw(st.integers(0, 10_000)),
    )


def numbered(number: int) -> Net:
    """Make one of a fixed series of random architectures, so that tests can share its trace."""
    pick = random.Random(number)
    kind = pick.choice(["image", "sequence"])
    names = IMAGE_OPERATORS if kind == "image" else SEQUENCE_OPERATORS
    ends = ("mean", "flatten") if kind == "image" else ("none", "layer_norm", "rms_norm")
    operators = tuple((pick.choice(names), pick.randint(2, 5), pick.randint(2, 4)) for _ in range(pick.randint(1, 3)))
    return Net(kind, pick.randint(2, 6), operators, pick.choice(ends), number)


@functools.cache
def _trace(net: Net) -> Graph:
    return auxin.trace(net.build(), net.inputs())


def traced(net: Net) -> Graph:
    """Return a fresh copy of the graph of an architecture (float32), traced once."""
    return copy.deepcopy(_trace(net))


known_nets = st.integers(0, 69).map(numbered)


@dataclass(frozen=True)
class Step:
    """One growth: which of the growable groups (modulo their number), how many units, how."""

    which: int
    by: int
    method: str
    seed: int


steps = st.lists(
    st.builds(
        Step, st.integers(0, 99), st.integers(1, 4), st.sampled_from(["random", "net2net"]), st.integers(0, 10_000)
    ),
    min_size=1,
    max_size=4,
)
