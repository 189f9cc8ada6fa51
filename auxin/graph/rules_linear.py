"""Propagation rules: everything that multiplies and sums (linear, convolution, matmul, einsum, attention)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from auxin.graph.axes import Axis, product
from auxin.graph.propagate import Propagator, Value, grouped, rule


def contract(p: Propagator, values: Sequence[Value], labels: Sequence[str], out: str) -> Value:
    """Multiply tensors and sum over the labels that the result lacks, as einsum does.

    A summed label joins what it reads: with a parameter there, it is that parameter's consumer axis, so that new units
    can be added with zero weight; between two activations nothing can silence a new unit, and growth is inexact.

    Args:
        p: The propagator.
        values: The tensors.
        labels: One letter per dimension of each tensor.
        out: The letters of the result.

    Returns:
        The result.
    """
    axes: dict[str, Axis] = {}
    for value, names in zip(values, labels, strict=True):
        for axis, label in zip(value.axes, names, strict=True):
            if label not in axes:
                axes[label] = axis
            elif axes[label].size == axis.size:
                p.unify(axes[label], axis)
            else:
                p.freeze(axis if axis.size == 1 else axes[label], "stretches it from size one")
                axes[label] = axes[label] if axis.size == 1 else axis
    _count(p, labels, out, axes)
    activations = [value for value in values if not value.pure]
    for i, (value, names) in enumerate(zip(values, labels, strict=True)):
        if not value.pure or (not activations and i == len(values) - 1 and len(values) > 1):
            continue
        for d, label in enumerate(names):
            p.tag(value, d, "producer" if label in out else "consumer")
    if not activations and len(values) > 1:
        # A product of two parameters (low-rank factors): the last one computes the summed units.
        for d, label in enumerate(labels[-1]):
            p.tag(values[-1], d, "consumer" if label in out and label not in labels[0] else "producer")
    for label, axis in axes.items():
        holders = [value for value, names in zip(values, labels, strict=True) if label in names]
        # Nothing silences a new unit: no parameter reads it, or it is summed where it stands alone.
        if label not in out and (len(holders) < 2 or not any(value.pure for value in holders)):
            p.inexact(axis, "sums over it")
    sources = []
    if not activations:
        for value, names in zip(values, labels, strict=True):
            for name, dims in value.sources:
                sources.append((name, tuple(dims[names.index(x)] if x in names else None for x in out)))
    return Value(tuple(axes[label] for label in out), tuple(sources))


def _count(p: Propagator, labels: Sequence[str], out: str, axes: dict[str, Axis]) -> None:
    """Count the products of a contraction, taken from left to right; those that sum nothing are free."""
    held = "".join(labels)
    # What a single tensor has and the result lacks is summed away before the product.
    labels = ["".join(x for x in names if x in out or held.count(x) > 1) for names in labels]
    done = labels[0]
    for i, names in enumerate(labels[1:], 2):
        later = set(out).union(*labels[i:]) if i < len(labels) else set(out)
        together = dict.fromkeys([*done, *names])
        done = "".join(label for label in together if label in later)
        if len(done) < len(together):
            p.cost(*(axes[label] for label in together))


@rule("linear")
def linear(p: Propagator, x: Value, weight: Value, bias: Any = None) -> Value:
    """Map x to x Wᵀ + b with W of shape (out, in)."""
    batch = _letters(len(x.axes) - 1)
    y = contract(p, (x, weight), (f"{batch}I", "OI"), f"{batch}O")
    _bias(p, y.axes[-1], bias)
    p.attribute(nn.Linear, in_features=x.axes[-1], out_features=y.axes[-1])
    return Value(y.axes, y.sources, "linear")


@rule("bilinear")
def bilinear(p: Propagator, x: Value, z: Value, weight: Value, bias: Any = None) -> Value:
    """Map x and z to Σ x_i W_oij z_j + b_o with W of shape (out, in1, in2)."""
    batch = _letters(len(x.axes) - 1)
    y = contract(p, (x, weight, z), (f"{batch}I", "OIJ", f"{batch}J"), f"{batch}O")
    _bias(p, y.axes[-1], bias)
    p.attribute(nn.Bilinear, in1_features=x.axes[-1], in2_features=z.axes[-1], out_features=y.axes[-1])
    return y


def _bias(p: Propagator, axis: Axis, bias: Any) -> None:
    if isinstance(bias, Value):
        p.unify(axis, bias.axes[-1])
        p.tag(bias, -1, "bias")


def _letters(n: int) -> str:
    return "abcdefghijklmnop"[:n]


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(p: Propagator, a: Value, b: Value, *args: Any) -> Value:
    """Batched matrix product; leading dimensions are broadcast."""
    rank_a, rank_b = len(a.axes), len(b.axes)
    batch = _letters(max(rank_a, rank_b, 2) - 2)
    left = f"{batch[len(batch) - (rank_a - 2) :] if rank_a > 2 else ''}{'MK' if rank_a > 1 else 'K'}"
    right = f"{batch[len(batch) - (rank_b - 2) :] if rank_b > 2 else ''}{'KN' if rank_b > 1 else 'K'}"
    out = f"{batch}{'M' if rank_a > 1 else ''}{'N' if rank_b > 1 else ''}"
    y = contract(p, (a, b), (left, right), out)
    return Value(y.axes, y.sources, "linear" if b.pure and not a.pure else None)


@rule("addmm", "baddbmm", "addbmm")
def addmm(p: Propagator, bias: Value, a: Value, b: Value, *args: Any, **kwargs: Any) -> Value:
    """Add a product of matrices to a bias."""
    y = matmul(p, a, b)
    if len(bias.axes) == 1:
        _bias(p, y.axes[-1], bias)
        return y
    for mine, other in zip(y.axes[-len(bias.axes) :], bias.axes, strict=True):
        if mine.size == other.size:
            p.unify(mine, other)
        else:
            p.freeze(other, "stretches it from size one")
    return y


@rule("einsum")
def einsum(p: Propagator, equation: str, values: Sequence[Value], *args: Any, **kwargs: Any) -> Value:
    """Any product of tensors, by its equation; an ellipsis stands for leading dimensions."""
    left, _, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if c not in equation]
    ranks = [len(v.axes) - len(t.replace("...", "")) if "..." in t else 0 for t, v in zip(terms, values, strict=True)]
    dots = "".join(free[: max(ranks, default=0)])
    terms = [t.replace("...", dots[len(dots) - r :]) for t, r in zip(terms, ranks, strict=True)]
    if "->" not in equation:
        counts = {c: sum(t.count(c) for t in terms) for c in "".join(terms)}
        out = dots + "".join(sorted(c for c, n in counts.items() if n == 1 and c not in dots))
    if any(len(set(t)) < len(t) for t in terms):
        return p._unknown(tuple(values), {})
    return contract(p, tuple(values), terms, out.replace("...", dots))


@rule("conv1d", "conv2d", "conv3d")
def conv(
    p: Propagator, x: Value, weight: Value, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Value:  # fmt: skip
    """Convolution with a weight of shape (C_out, C_in/groups, k...)."""
    return _conv(p, x, weight, bias, groups, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    p: Propagator, x: Value, weight: Value, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    """Transposed convolution with a weight of shape (C_in, C_out/groups, k...)."""
    return _conv(p, x, weight, bias, groups, transposed=True)


@rule("convolution")
def convolution(
    p: Propagator, x: Value, weight: Value, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    """The general form that the named convolutions lower to."""
    return _conv(p, x, weight, bias, groups, transposed)


def _conv(p: Propagator, x: Value, weight: Value, bias: Any, groups: int, transposed: bool) -> Value:
    rank = len(weight.axes) - 2
    channel = len(x.axes) - rank - 1
    for axis in weight.axes[2:]:
        p.freeze(axis, "has it as its kernel size")
    for axis in x.axes[channel + 1 :]:
        p.freeze(axis, "is spatial there")
    outer, inner = weight.axes[0], weight.axes[1]
    p.tag(weight, 0, "consumer" if transposed else "producer")
    p.tag(weight, 1, "producer" if transposed else "consumer")
    if not weight.pure:
        p.inexact(outer if transposed else inner, "sums over it")
    group_axis: Axis | None = None
    if groups > 1:
        group_axis = p.fresh(groups)
        p.unify(outer, grouped(group_axis, p.fresh(outer.size // groups)))
        if inner.size == 1 and outer.size == groups:
            p.freeze(inner, "is depthwise: each filter reads and writes one channel")
        whole = grouped(group_axis, inner)
        # A new group brings its own filters, also where the rows of the weight are the inputs.
        p.tag(weight, 0, "producer", group_axis)
    else:
        whole = inner
    entering, leaving = (outer, whole) if transposed else (whole, outer)
    p.unify(x.axes[channel], entering)
    _bias(p, leaving, bias)
    sizes = [p.fresh(n, "a spatial size") for n in p.output_shape()[channel + 1 :]]
    spatial = x.axes[channel + 1 :] if transposed else sizes
    p.cost(*x.axes[:channel], *spatial, *weight.axes)
    sized = {} if group_axis is None else {"groups": group_axis}
    p.attribute(nn.modules.conv._ConvNd, in_channels=x.axes[channel], out_channels=leaving, **sized)
    return Value((*x.axes[:channel], leaving, *sizes), (), f"conv{rank}d")


@rule("embedding")
def embedding(p: Propagator, weight: Value, index: Value, *args: Any) -> Value:
    """Rows of a table by index: the vocabulary may not grow, the width may."""
    p.freeze(weight.axes[0], "looks rows up by number")
    p.tag(weight, 1, "producer")
    p.attribute(nn.Embedding, embedding_dim=weight.axes[1])
    return Value((*index.axes, weight.axes[1]), (), "linear")


@rule("scaled_dot_product_attention")
def attention(p: Propagator, q: Value, k: Value, v: Value, mask: Any = None, *args: Any, **kwargs: Any) -> Value:
    """softmax(q kᵀ / √d) v with q of shape (..., heads, tokens, d): heads may grow, d may not."""
    rank = len(q.axes)
    for d in range(rank - 2):
        mine, other = q.axes[d], k.axes[d]
        if other.size != mine.size and mine.size % other.size == 0 and kwargs.get("enable_gqa"):
            p.unify(mine, product(other, p.fresh(mine.size // other.size)))
        elif other.size == mine.size:
            p.unify(mine, other)
        else:
            p.freeze(mine, "stretches one of its inputs")
            p.freeze(other, "stretches one of its inputs")
        p.unify(other, v.axes[d])
    p.unify(q.axes[-1], k.axes[-1])
    p.inexact(q.axes[-1], "divides by the square root of the head dimension")
    p.freeze(k.axes[-2], "attends over it")
    p.unify(k.axes[-2], v.axes[-2])
    if isinstance(mask, Value):
        for d, axis in enumerate(reversed(mask.axes)):
            target = (k.axes[-2], *reversed(q.axes[:-1]))[d]
            if axis.size == target.size:
                p.unify(axis, target)
            else:
                p.freeze(axis, "stretches it from size one")
    p.cost(*q.axes, k.axes[-2])
    p.cost(*q.axes[:-1], k.axes[-2], v.axes[-1])
    return Value((*q.axes[:-1], v.axes[-1]))
