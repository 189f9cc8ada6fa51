"""Small nets for single operators: what the graph says of them, growth that keeps their function, the oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.utils.flop_counter import FlopCounterMode

import auxin
from tests.cases import CASES, SEQUENCE, Case, Inputs, call, double, noise, randomise
from tests.graph import test_oracle
from tests.methods.losses import generic_loss


class Net(nn.Module):
    """Named layers and sizes, and a forward that is given."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | int | Tensor) -> None:
        super().__init__()
        self.function = function
        # An exported graph shows the source lines of functions of this name only.
        function.__code__ = function.__code__.replace(co_name="forward")
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def rows(*shape: int) -> Callable[[], Inputs]:
    """Return a maker of noise whose first dimension comes with a mask and an index of eight of its entries."""

    def make() -> Inputs:
        mask, index = torch.arange(shape[0]) % 3 > 0, torch.arange(8) * 3 % shape[0]
        return (*noise(shape)(), mask, index)

    return make


def axes_of(groups) -> set[tuple[str, int]]:
    return {(slot.parameter, slot.dim) for group in groups for slot in group.slots}


def w(*names: str) -> tuple[tuple[str, int], ...]:
    """Return axes from names such as ``a0``: the rows of the weight of layer a."""
    return tuple((f"{name[:-1]}.weight", int(name[-1])) for name in names)


# -------------------------------------------------------------------------------- masks, experts, sizes of the data


def masked(net: Net, x: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    h = F.silu(net.a(x))
    h = F.silu(net.b(h[mask]))
    return net.c(h)


def masked_tokens(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    chosen = x[..., 0] > 0
    out = h.clone()
    out[chosen] = net.c(F.silu(net.b(h[chosen]))).to(out.dtype)
    return net.d(torch.cat([out.flatten(0, 1), out.flatten(0, 1)[chosen.flatten()]]))


def masked_view(net: Net, x: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    return net.b(h[mask].view(-1, 2, h.shape[1]))


def experts(net: Net, x: Tensor) -> Tensor:
    """As Mixtral was written: rows of each expert by ``where``, put back by ``index_add_``."""
    x = net.a(x).flatten(0, 1)
    weight, choice = net.gate(x).softmax(-1).topk(2)
    out = torch.zeros_like(x)
    for k, expert in enumerate((net.one, net.two, net.three)):
        row, place = torch.where(choice == k)
        out.index_add_(0, row, expert(x[row]) * weight[row, place, None])
    return net.c(x + out)


def switch(net: Net, x: Tensor, *_: Tensor) -> Tensor:
    """One expert a row, added in place to zeros of a width that is an attribute."""
    choice = net.gate(x).argmax(-1)
    out = torch.zeros(x.shape[0], net.width, dtype=x.dtype)
    for k, expert in enumerate((net.one, net.two)):
        row = (choice == k).nonzero().squeeze(1)
        out[row] += expert(x[row])
    return net.c(out)


def copied(net: Net, x: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(x)).repeat_interleave(mask.long() + 1, dim=0))


def overwritten(net: Net, x: Tensor) -> Tensor:
    h = F.silu(net.a(x))
    h[:, 0] = 0
    h[x[..., 0] > 0] = 0.5
    h.clamp_(min=torch.tensor(-0.1, dtype=h.dtype))
    return net.b(h)


def one_overwritten(net: Net, x: Tensor) -> Tensor:
    h = net.a(x)
    h[..., 2] = 0
    return net.b(h)


def expert(hidden: int, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))


L = nn.Linear
DATA = (
    Case(
        "masked",
        lambda: Net(masked, a=L(5, 7), b=L(7, 6), c=L(6, 3)),
        rows(6, 5),
        w("a0", "b0"),
        w("c0", "a1"),
        (6, 7),
    ),
    Case(
        "masked_tokens",
        lambda: Net(masked_tokens, a=L(5, 7), b=L(7, 6), c=L(6, 7), d=L(7, 3)),
        SEQUENCE,
        w("a0", "b0", "c0", "d1"),
        w("d0"),
        (6, 7),
    ),
    Case(
        "experts",
        lambda: Net(experts, a=L(5, 6), gate=L(6, 3), one=expert(7), two=expert(8), three=expert(9), c=L(6, 4)),
        SEQUENCE,
        w("a0", "gate1", "one.00", "two.21", "three.00", "c1"),
        w("gate0", "c0"),
        (6, 7, 8, 9),
    ),
    Case(
        "switch",
        lambda: Net(
            switch,
            gate=L(5, 2),
            one=nn.Sequential(L(5, 6), nn.Tanh(), L(6, 7)),
            two=nn.Sequential(L(5, 8), nn.Tanh(), L(8, 7)),
            c=L(7, 3),
            width=7,
        ),
        rows(6, 5),
        w("one.00", "two.00", "one.20", "two.20", "c1"),
        w("gate0", "c0"),
        (6, 7, 8),
    ),
    Case("copied", lambda: Net(copied, a=L(5, 7), b=L(7, 3)), rows(6, 5), w("a0"), w("b0"), (7,)),
    Case("overwritten", lambda: Net(overwritten, a=L(5, 7), b=L(7, 3)), SEQUENCE, w("a0"), w("b0"), (7,)),
    Case("one_overwritten", lambda: Net(one_overwritten, a=L(5, 7), b=L(7, 3)), SEQUENCE, (), w("a0", "b0"), (7,)),
    Case("masked_view", lambda: Net(masked_view, a=L(5, 7), b=L(7, 3)), rows(12, 5), (), w("a0", "b0"), (7,)),
)

# ------------------------------------------------------------------------------------------------- created tensors


def elman(net: Net, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], net.hidden)
    for t in range(x.shape[1]):
        h = torch.tanh(net.a(x[:, t]) + net.b(h))
    return net.c(h)


def elman_of_shapes(net: Net, x: Tensor) -> Tensor:
    steps = net.a(x)
    h = torch.ones(x.shape[0], steps.shape[-1], dtype=x.dtype)
    for t in range(x.shape[1]):
        h = torch.tanh(steps[:, t] + net.b(h))
    return net.c(h)


def elman_of_numbers(net: Net, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], 7)
    for t in range(x.shape[1]):
        h = torch.tanh(net.a(x[:, t]) + net.b(h))
    return net.c(h)


def conv_lstm(net: Net, x: Tensor) -> Tensor:
    """Two steps; the state of the first is zeros that are joined to the input."""
    batch, _, height, width = x.shape
    h = torch.zeros(batch, net.hidden_dim, height, width, dtype=x.dtype)
    c = torch.zeros(batch, net.hidden_dim, height, width, dtype=x.dtype)
    for frame in (x, x.flip(-1)):
        i, f, o, g = net.a(torch.cat([net.stem(frame), h], 1)).split(net.hidden_dim, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return net.c(h)


def causal(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    h = torch.cat([h.new_zeros(h.shape[0], h.shape[1], 2), h], 2)
    return net.c(torch.tanh(net.b(h)))


def filled(net: Net, x: Tensor) -> Tensor:
    """A buffer that is filled step by step, a full tensor, and ones in an elementwise product."""
    h = torch.tanh(net.a(x))
    out = torch.empty(x.shape[0], x.shape[1], net.width, dtype=x.dtype)
    for t in range(x.shape[1]):
        out[:, t] = h[:, t] * torch.full((net.width,), 0.5, dtype=x.dtype)
    return net.b(out + h.new_ones(net.width))


def padded_channels(net: Net, x: Tensor) -> Tensor:
    """A shortcut with channels of zeros: the number of these is a difference, which nothing can follow."""
    batch, channels, height, width = x.shape
    zeros = x.new_zeros(batch, net.b.out_channels - channels, height, width)
    return net.c(torch.tanh(torch.cat([x, zeros], 1) + net.b(torch.tanh(net.a(x)))))


def stretched(net: Net, x: Tensor) -> Tensor:
    h, scale, half = torch.broadcast_tensors(net.a(x).tanh(), net.scale, torch.full((1, 1), 0.5))
    return net.b(h * scale + half * scale)


def expanded(net: Net, x: Tensor) -> Tensor:
    token = net.token.expand(x.shape[0], 1, net.width)
    return net.b(torch.tanh(torch.cat([token, net.a(x)], 1)))


CREATED = (
    Case(
        "elman", lambda: Net(elman, a=L(5, 7), b=L(7, 7), c=L(7, 3), hidden=7), SEQUENCE, w("a0", "b0", "b1"),
        w("c0"), (7,),
    ),
    Case(
        "elman_of_shapes", lambda: Net(elman_of_shapes, a=L(5, 7), b=L(7, 7), c=L(7, 3)), SEQUENCE,
        w("a0", "b0", "b1"), w("c0"), (7,),
    ),
    Case(
        "elman_of_numbers", lambda: Net(elman_of_numbers, a=L(5, 7), b=L(7, 7), c=L(7, 3)), SEQUENCE, (),
        w("a0", "b0", "b1"), (7,),
    ),
    Case(
        "conv_lstm",
        lambda: Net(
            conv_lstm, stem=nn.Conv2d(3, 5, 1), a=nn.Conv2d(12, 28, 3, padding=1), c=nn.Conv2d(7, 2, 1), hidden_dim=7
        ),
        noise((2, 3, 4, 4)),
        w("stem0", "a0", "a1", "c1"),
        w("c0"),
        (5, 7),
    ),
    Case(
        "causal", lambda: Net(causal, a=nn.Conv1d(3, 5, 1), b=nn.Conv1d(5, 7, 3), c=nn.Conv1d(7, 2, 1)),
        noise((2, 3, 6)), w("a0", "b0"), w("c0"), (5, 7),
    ),
    Case("filled", lambda: Net(filled, a=L(5, 7), b=L(7, 3), width=7), SEQUENCE, w("a0"), w("b0"), (7,)),
    Case(
        "padded_channels",
        lambda: Net(
            padded_channels, a=nn.Conv2d(3, 5, 3, padding=1), b=nn.Conv2d(5, 7, 1), c=nn.Conv2d(7, 2, 1)
        ),
        noise((2, 3, 4, 4)),
        w("a0"),
        w("b0", "c0"),
        (5, 7),
    ),
    Case(
        "stretched", lambda: Net(stretched, a=L(5, 7), b=L(7, 3), scale=torch.ones(7)), SEQUENCE,
        (*w("a0"), ("scale", 0)), w("b0"), (7,),
    ),
    Case(
        "expanded", lambda: Net(expanded, a=L(5, 7), b=L(7, 3), token=torch.zeros(1, 1, 7), width=7), SEQUENCE,
        (*w("a0"), ("token", 2)), w("b0"), (7,),
    ),
)  # fmt: skip

# --------------------------------------------------------------------------------------------- places by number


def messages(net: Net, x: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    """Message passing: eight edges, sums and means over the edges of each node, by four operators."""
    h = torch.tanh(net.a(x))
    edges = h[index.flip(0)]
    total = torch.zeros_like(h).scatter_add(0, index[:, None].expand(-1, h.shape[1]), edges)
    total = total + h.new_zeros(h.shape).index_add(0, index, edges)
    total = total + torch.zeros_like(h).scatter_reduce(0, index[:, None].expand_as(edges), edges, "mean")
    total = total.index_put((index,), edges, accumulate=True).index_fill(0, index[:1], 0.5)
    return net.b(torch.tanh(total))


def message_heads(net: Net, x: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    """Graph attention: three heads of four; an index expanded to (edges, heads, four)."""
    h = net.a(x).view(-1, net.heads, 4)
    score = (h * net.query).sum(-1).exp()
    edges = h[index] * score[index][..., None]
    total = torch.zeros_like(h).scatter_add(0, index[:, None, None].expand_as(edges), edges)
    norm = torch.zeros_like(score).index_add(0, index, score[index])
    return net.b(torch.tanh((total / (1 + norm[..., None])).flatten(1)))


def gathered(net: Net, x: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    h = h.gather(0, index[:, None].expand(-1, net.width)) + torch.take_along_dim(h, index[:, None], 0)
    return net.b(h.index_select(0, index[:4]))


def part_gathered(net: Net, x: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    """An index of three columns reads only three of the seven."""
    return net.b(net.a(x).gather(0, index[:6, None].expand(-1, 3)))


def bags(net: Net, index: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(index)))


PLACES = (
    Case("messages", lambda: Net(messages, a=L(5, 7), b=L(7, 3)), rows(6, 5), w("a0"), w("b0"), (7,)),
    Case(
        "message_heads",
        lambda: Net(message_heads, a=L(5, 12), b=L(12, 2), query=torch.zeros(3, 4), heads=3),
        rows(6, 5),
        w("a0"),
        w("b0"),
        (3, 4),
    ),
    Case("gathered", lambda: Net(gathered, a=L(5, 7), b=L(7, 3), width=7), rows(6, 5), w("a0"), w("b0"), (7,)),
    Case("part_gathered", lambda: Net(part_gathered, a=L(5, 7), b=L(3, 2)), rows(6, 5), (), w("a0", "b0"), (7,)),
    Case(
        "bags",
        lambda: Net(bags, a=nn.EmbeddingBag(11, 7), b=L(7, 3)),
        lambda: (torch.arange(12).reshape(4, 3) * 5 % 11,),
        w("a1"),
        w("a0", "b0"),
        (7,),
    ),
)

# ----------------------------------------------------------------------------------------------- recurrent layers


def recurrent(net: Net, x: Tensor) -> Tensor:
    h = net.r(torch.tanh(net.a(x)))[0]
    return net.c(torch.tanh(net.b(h)))


def stepwise(net: Net, x: Tensor) -> Tensor:
    state = None
    for t in range(x.shape[1]):
        state = net.r(net.a(x[:, t]), state)
    return net.b(state[0] if isinstance(state, tuple) else state)


def learned_state(net: Net, x: Tensor) -> Tensor:
    y, h = net.r(x, net.state.expand(-1, x.shape[0], -1).contiguous())
    return net.b(y[:, -1] + h[-1])


def around(layer: Callable[..., nn.Module], width: int, **options: int | bool) -> Callable[[], nn.Module]:
    return lambda: Net(recurrent, a=L(5, 6), r=layer(6, 7, batch_first=True, **options), b=L(width, 8), c=L(8, 3))


def r(*names: str) -> tuple[tuple[str, int], ...]:
    return tuple((f"r.weight_{name[:-1]}", int(name[-1])) for name in names)


RECURRENT = (
    Case(
        "lstm_stack",
        around(nn.LSTM, 14, num_layers=2, bidirectional=True),
        SEQUENCE,
        (*w("a0", "b0", "b1"), *r("ih_l00", "hh_l01", "ih_l1_reverse1")),
        w("c0"),
        (6, 7, 8),
        shape_tied=tuple(
            (f"r.weight_{kind}_l{layer}{side}", dim)
            for kind in ("ih", "hh") for layer in (0, 1) for side in ("", "_reverse") for dim in (0, 1)
        ),
    ),
    Case(
        "lstm_projected",
        around(nn.LSTM, 4, proj_size=4),
        SEQUENCE,
        (*w("a0", "b0"), *r("ih_l00", "hh_l01", "hr_l00", "hr_l01")),
        w("c0"),
        (4, 6, 7, 8),
    ),
    Case(
        "gru", around(nn.GRU, 7), SEQUENCE, (*w("a0", "b0"), *r("ih_l00", "hh_l01")), w("c0"),
        (6, 7, 8),
    ),
    Case(
        "rnn", around(nn.RNN, 7, bias=False), SEQUENCE,
        (*w("a0", "b0"), *r("ih_l00", "hh_l01")), w("c0"), (6, 7, 8),
    ),
    Case(
        "lstm_cell", lambda: Net(stepwise, a=L(5, 6), r=nn.LSTMCell(6, 7), b=L(7, 3)), SEQUENCE,
        (*w("a0", "b1"), *r("ih0", "hh1")), w("b0"), (6, 7),
    ),
    Case(
        "gru_cell", lambda: Net(stepwise, a=L(5, 6), r=nn.GRUCell(6, 7), b=L(7, 3)), SEQUENCE,
        (*w("a0", "b1"), *r("ih0", "hh1")), w("b0"), (6, 7),
    ),
    Case(
        "rnn_cell", lambda: Net(stepwise, a=L(5, 6), r=nn.RNNCell(6, 7), b=L(7, 3)), SEQUENCE,
        (*w("a0", "b1"), *r("ih0", "hh1")), w("b0"), (6, 7),
    ),
    Case(
        "learned_state",
        lambda: Net(learned_state, r=nn.GRU(5, 7, batch_first=True), b=L(7, 3), state=torch.zeros(1, 1, 7)), SEQUENCE,
        (*w("b1"), *r("ih_l00", "hh_l01"), ("state", 2)), w("b0"), (7,),
    ),
)  # fmt: skip

# -------------------------------------------------------------------------------------------- single operators


def elementwise(net: Net, x: Tensor) -> Tensor:
    h = net.a(x)
    h = torch.special.erf(h) + torch.special.expit(h) + torch.logaddexp(h, net.b(x))
    return net.c(h.cummax(1).values + h.cummin(dim=1).values)


def compared(net: Net, x: Tensor) -> Tensor:
    h = net.a(x)
    near = F.cosine_similarity(h[:, :, None], h[:, None], dim=-1) + torch.cdist(h, net.codes.expand(x.shape[0], -1, -1))
    return near.softmax(-1) @ torch.tanh(net.b(x)) @ net.c


def along_time(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    return net.b(h.diff(dim=1)).sum(1) + net.b(h.unfold(1, 2, 1).mean(-1)).sum(1)


def along_features(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x).diff().cummax(-1).values.unfold(-1, 2, 2).flatten(-2))


def patches(net: Net, x: Tensor) -> Tensor:
    columns = F.unfold(torch.tanh(net.a(x)), 2, stride=2)
    y = torch.tanh(net.b(columns.transpose(1, 2))).transpose(1, 2)
    return net.c(F.fold(y, (4, 4), 2, stride=2))


def sampled(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    theta = net.b(h.mean((2, 3))).view(-1, 2, 3)
    return net.c(F.grid_sample(h, F.affine_grid(theta, [*h.shape[:2], 3, 3], align_corners=False), align_corners=False))


def contracted(net: Net, x: Tensor) -> Tensor:
    h = torch.tensordot(torch.tanh(net.a(x)), net.inner, dims=([2], [1]))
    return torch.inner(torch.tanh(h), net.outer)


def rotated(net: Net, x: Tensor) -> Tensor:
    """Rotary attention with complex numbers, as LLaMA's own code does it: three heads of two pairs."""
    batch, length, _ = x.shape

    def turn(h: Tensor) -> Tensor:
        pairs = torch.view_as_complex(h.reshape(*h.shape[:-1], -1, 2))
        angle = torch.outer(torch.arange(length), 0.5 ** torch.arange(2)).to(h.dtype)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[None, :, None]).flatten(3)

    q, k, v = (layer(x).view(batch, length, net.heads, -1) for layer in (net.q, net.k, net.v))
    y = F.scaled_dot_product_attention(turn(q).transpose(1, 2), turn(k).transpose(1, 2), v.transpose(1, 2))
    return net.c(y.transpose(1, 2).reshape(batch, length, -1))


def spectral(net: Net, x: Tensor) -> Tensor:
    """A Fourier layer over five places: three frequencies, each with a complex map of channels of its own."""
    h = net.a(x)
    modes = torch.fft.rfft(h, dim=-1)
    out = torch.zeros(x.shape[0], net.width, modes.shape[-1], dtype=modes.dtype)
    out[..., :3] = torch.einsum("bim,iom->bom", modes[..., :3], torch.complex(net.real, net.imag))
    return net.c(torch.tanh(torch.fft.irfft(out, n=5, dim=-1)) + torch.fft.fft(net.b(h), dim=-1).real)


SINGLE = (
    Case(
        "elementwise", lambda: Net(elementwise, a=L(5, 7), b=L(5, 7), c=L(7, 3)), SEQUENCE, w("a0", "b0"), w("c0"), (7,)
    ),
    Case(
        "compared", lambda: Net(compared, a=L(5, 7), b=L(5, 6), c=torch.zeros(6, 3), codes=torch.zeros(4, 7)), SEQUENCE,
        (*w("b0"), ("c", 0)), (*w("a0"), ("codes", 0), ("c", 1)), (6, 7),
    ),
    Case("along_time", lambda: Net(along_time, a=L(5, 7), b=L(7, 3)), SEQUENCE, w("a0"), w("b0"), (7,)),
    Case("along_features", lambda: Net(along_features, a=L(5, 7), b=L(6, 3)), SEQUENCE, (), w("a0", "b1"), (7,)),
    Case(
        "patches", lambda: Net(patches, a=nn.Conv2d(3, 5, 1), b=L(20, 28), c=nn.Conv2d(7, 2, 1)), noise((2, 3, 4, 4)),
        w("a0", "b0", "b1", "c1"), w("c0"), (5, 7),
    ),
    Case(
        "sampled", lambda: Net(sampled, a=nn.Conv2d(3, 5, 1), b=L(5, 6), c=nn.Conv2d(5, 2, 1)), noise((2, 3, 4, 4)),
        w("a0", "b1"), w("b0", "c0"), (5,),
    ),
    Case(
        "contracted", lambda: Net(contracted, a=L(5, 7), inner=torch.zeros(6, 7), outer=torch.zeros(3, 6)), SEQUENCE,
        (*w("a0"), ("inner", 0), ("inner", 1), ("outer", 1)), (("outer", 0),), (6, 7),
    ),
    Case(
        "rotated",
        lambda: Net(rotated, q=L(5, 12), k=L(5, 12), v=L(5, 12), c=L(12, 7), heads=3), SEQUENCE,
        w("q0", "k0", "v0", "c1"), w("c0"), (3, 4),
        shape_tied=(("k.weight", 0),),
    ),
    Case(
        "spectral",
        lambda: Net(
            spectral, a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 7, 1), c=nn.Conv1d(7, 2, 1), real=torch.zeros(6, 7, 3),
            imag=torch.zeros(6, 7, 3), width=7,
        ),
        noise((2, 3, 5)),
        (*w("a0", "b0", "c1"), ("real", 0), ("imag", 1)),
        (*w("c0"), ("real", 2)),
        (6, 7),
    ),
)  # fmt: skip

NETS = {case.name: case for case in (*DATA, *CREATED, *PLACES, *RECURRENT, *SINGLE)}
everywhere = pytest.mark.parametrize("name", NETS)


def build(name: str) -> tuple[nn.Module, Inputs]:
    return randomise(NETS[name].build()).double(), double(NETS[name].inputs())


@everywhere
def test_the_graph_says_what_a_person_would(name: str) -> None:
    model, inputs = build(name)
    graph = auxin.trace(model, inputs)
    growing = axes_of(graph.growable())
    assert set(NETS[name].growable) <= growing
    assert not set(NETS[name].frozen) & growing
    assert graph.flops() > 0


@everywhere
@pytest.mark.parametrize("method", ["net2net", "random"])
def test_growth_keeps_the_function_and_training_goes_on(name: str, method: str) -> None:
    model, inputs = build(name)
    graph = auxin.trace(model, inputs)
    before = [out.detach() for out in call(model, inputs)]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for group in graph.growable():
        auxin.widen(model, group.name, 2, graph=graph, method=method, optimizer=optimizer, seed=1)
        assert graph[group.name].size == group.size + 2
    for now, then in zip(call(model, inputs), before, strict=True):
        assert (now - then).abs().max() < 1e-10
    model.train()
    start = {key: value.clone() for key, value in model.named_parameters()}
    generic_loss(call(model, inputs)).backward()
    optimizer.step()
    assert any(not torch.equal(value, start[key]) for key, value in model.named_parameters())
    assert all(out.isfinite().all() for out in call(model, inputs))


ORACLE = [
    test_oracle.test_exchanging_two_units_everywhere_is_a_symmetry_and_nowhere_less,
    test_oracle.test_groups_are_what_trial_finds,
    test_oracle.test_what_trial_finds_can_grow_or_is_refused_with_a_reason,
    test_oracle.test_every_entry_of_every_axis_is_in_a_group_and_refusals_have_reasons,
]


@everywhere
@pytest.mark.parametrize("check", ORACLE, ids=["symmetry", "groups", "refusals", "covered"])
def test_the_oracle_agrees(name: str, check: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, name, NETS[name])
    check(name)


def reasons(model: nn.Module, inputs: Inputs, axis: tuple[str, int]) -> list[str]:
    """Return why the groups on an axis cannot grow."""
    graph = auxin.trace(randomise(model).double(), double(inputs))
    groups = [group for group in graph.groups if axis in axes_of([group])]
    assert groups
    return [group.frozen or group.inexact or "" for group in groups]


def sliced(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    return net.b(h[..., :3]) + net.b(h[..., -3:])


def narrowed(net: Net, x: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(x)).narrow(-1, 1, 3))


def copied_by_number(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).flatten(0, 1)
    index = torch.arange(8)
    return net.b(torch.zeros_like(h).scatter_add(0, index[:, None].expand(-1, 7), h))


def half(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    return net.b(h[..., : net.width] + 1)


def noisy(net: Net, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.b(h + torch.randn_like(h) + torch.rand(h.shape[-1], dtype=x.dtype))


def extended(net: Net, x: Tensor) -> Tensor:
    count = 6 - 2
    return net.b(torch.cat([net.a(x), x.new_zeros(x.shape[0], x.shape[1], count)], -1))


def chosen(net: Net, x: Tensor) -> Tensor:
    return net.b(torch.tanh(x)) * net.a(x).argmax(-1, keepdim=True)


def selected(net: Net, x: Tensor) -> Tensor:
    return torch.masked_select(net.a(x), net.a(x) > 0).sum() + net.b(torch.tanh(x))


def ranged(net: Net, x: Tensor) -> Tensor:
    count = (x > 0).sum().item()
    torch._check(count >= 0)
    torch._check(count <= 7)
    return net.b(torch.tanh(x)) + net.a(x)[..., :count].sum()


@pytest.mark.parametrize(
    ("function", "rows", "columns", "axis", "reason"),
    [
        (one_overwritten, 7, 7, ("a.weight", 0), "takes one fixed index of it"),
        (elman_of_numbers, 7, 7, ("a.weight", 0), "passes a size, 7, as a number that no attribute"),
        (sliced, 7, 3, ("a.weight", 0), "passes a size, 3, as a number that no attribute"),
        (narrowed, 7, 3, ("a.weight", 0), "passes a size, 3, as a number that no attribute"),
        (copied_by_number, 7, 7, ("a.weight", 0), "passes a size, 7, as a number that no attribute"),
        (extended, 7, 11, ("b.weight", 1), "nothing says what its size comes from"),
        (noisy, 7, 7, ("a.weight", 0), "draws other random numbers"),
        (chosen, 7, 5, ("a.weight", 0), "finds a position along it"),
        (selected, 7, 5, ("a.weight", 0), "finds positions along it"),
        (ranged, 7, 5, ("a.weight", 0), "takes a range of it that depends on the data"),
    ],
)
def test_what_cannot_grow_has_the_reason(
    function: Callable[..., Tensor], rows: int, columns: int, axis: tuple[str, int], reason: str
) -> None:
    model = Net(function, a=L(5, rows), b=nn.Linear(columns, 7 if function is elman_of_numbers else 3), c=L(7, 3))
    assert any(reason in text for text in reasons(model, SEQUENCE(), axis))


def test_a_slice_whose_size_is_an_attribute_grows_with_it() -> None:
    model = randomise(Net(half, a=L(5, 7), b=L(4, 3), width=4)).double()
    (inputs,) = double(SEQUENCE())
    graph = auxin.trace(model, inputs)
    before = model(inputs)
    auxin.widen(model, next(g for g in graph.growable() if ("b.weight", 1) in axes_of([g])), 2, graph=graph)
    assert model.width == 6
    assert (model(inputs) - before).abs().max() < 1e-10


def test_spectral_norm_is_traced_and_its_buffers_forbid_growth_of_their_layer_only() -> None:
    normed = nn.utils.parametrizations.spectral_norm(L(5, 7))
    model = nn.Sequential(normed, nn.Tanh(), L(7, 6), nn.Tanh(), L(6, 3)).double().eval()
    graph = auxin.trace(model, double(noise((2, 5))()))
    assert axes_of(graph.growable()) == {("2.weight", 0), ("2.bias", 0), ("4.weight", 1)}
    assert any("buffer" in (group.frozen or "") for group in graph.groups)


@pytest.mark.parametrize("name", [case.name for case in RECURRENT])
def test_recurrent_layers_are_counted_as_torch_counts_them(name: str) -> None:
    model, inputs = build(name)
    with FlopCounterMode(display=False) as counter:
        call(model, inputs)
    assert auxin.trace(model, inputs).flops() == counter.get_total_flops()


class Translator(nn.Module):
    """An encoder and a decoder with a causal mask, as the tutorial calls them."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.both = nn.Transformer(12, 3, 1, 1, 10, dropout=0.0, batch_first=True) if whole else None
        layer = nn.TransformerDecoderLayer(12, 3, 10, dropout=0.0, batch_first=True)
        self.decoder = None if whole else nn.TransformerDecoder(layer, 2)
        self.source, self.target, self.head = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=source.dtype)
        source, target = self.source(source), self.target(target)
        if self.both is not None:
            return self.head(self.both(source, target, tgt_mask=mask))
        return self.head(self.decoder(target, source, tgt_mask=mask))


@pytest.mark.parametrize("whole", [True, False])
def test_decoders_with_a_mask_are_traced_and_grow(whole: bool) -> None:
    detect = transformer._detect_is_causal_mask
    model = randomise(Translator(whole)).double()
    inputs = double(noise((2, 4, 5), (2, 6, 5))())
    graph = auxin.trace(model, inputs)
    assert transformer._detect_is_causal_mask is detect
    before = model(*inputs)
    inner = [group for group in graph.growable() if any("linear1" in slot.parameter for slot in group.slots)]
    assert len(inner) == 2
    for group in graph.growable():
        for method in ("net2net", "random"):
            auxin.widen(model, group.name, 2, graph=graph, method=method)
    assert (model(*inputs) - before).abs().max() < 1e-10


def test_a_depthwise_convolution_of_several_filters_a_channel_grows_by_channels_and_by_filters() -> None:
    layers = nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 2, 1)
    model, x = randomise(nn.Sequential(*layers)).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    graph, before = auxin.trace(model, x), model(x)
    assert [(group.name, group.size) for group in graph.growable(allow_inexact=True)] == [("0", 6), ("2", 2)]
    for name in ("0", "2"):
        auxin.widen(model, name, 1, graph=graph)
    assert model[2].weight.shape == (21, 1, 3, 3)
    assert torch.allclose(model(x), before, atol=1e-12)
