"""Propagation rules: everything that multiplies and sums (linear, convolution, matmul, einsum, attention)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.fx import Node

from auxin.graph.axes import Axis, product
from auxin.graph.propagate import Propagator, grouped, rule
from auxin.graph.rules import broadcast, dims_of, reduce
from auxin.graph.values import Value


def contract(
    p: Propagator, values: Sequence[Value], labels: Sequence[str], out: str, counted: bool = True
) -> Value:  # fmt: skip
    """Multiply tensors and sum over the labels that the result lacks, as einsum does.

    A summed label joins what it reads: with a parameter there, it is that parameter's consumer axis, so that new units
    can be added with zero weight; between two activations nothing can silence a new unit, and growth is inexact.

    Args:
        p: The propagator.
        values: The tensors.
        labels: One letter per dimension of each tensor.
        out: The letters of the result.
        counted: Whether it costs FLOPs.

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
    if counted:
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
    sources = [] if activations else _sources(values, labels, out)
    return Value(tuple(axes[label] for label in out), tuple(sources))


def _sources(values: Sequence[Value], labels: Sequence[str], out: str) -> list[tuple[str, tuple[tuple[int, ...], ...]]]:
    """Return the parameters behind a product, with their dimensions behind those of the result."""
    return [
        (name, tuple(dims[names.index(label)] if label in names else () for label in out))
        for value, names in zip(values, labels, strict=True)
        for name, dims in value.sources
    ]


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
    """Map x to x Wᵀ + b with W of shape (out, in); x may be a parameter too (queries, a generated weight)."""
    batch = batch_letters(len(x.axes) - 1)
    labels, out = (f"{batch}I", "OI"), f"{batch}O"
    y = contract(p, (Value(x.axes), weight), labels, out)
    add_bias(p, y.axes[-1], bias)
    p.attribute(nn.Linear, in_features=x.axes[-1], out_features=y.axes[-1])
    # Of a buffer, such as coordinates, it is no parameter but a tensor like any other.
    learnt = weight.pure and any(isinstance(p.tensors[name], nn.Parameter) for name, _ in x.sources)
    return Value(y.axes, tuple(_sources((x, weight), labels, out)) if learnt else (), "linear")


@rule("bilinear")
def bilinear(p: Propagator, x: Value, z: Value, weight: Value, bias: Any = None) -> Value:
    """Map x and z to Σ x_i W_oij z_j + b_o with W of shape (out, in1, in2)."""
    batch = batch_letters(len(x.axes) - 1)
    y = contract(p, (x, weight, z), (f"{batch}I", "OIJ", f"{batch}J"), f"{batch}O")
    add_bias(p, y.axes[-1], bias)
    p.attribute(nn.Bilinear, in1_features=x.axes[-1], in2_features=z.axes[-1], out_features=y.axes[-1])
    return y


def add_bias(p: Propagator, axis: Axis, bias: Any) -> None:
    """Join a bias, if there is one, to the axis of what it is added to."""
    if isinstance(bias, Value):
        p.unify(axis, bias.axes[-1])
        p.tag(bias, -1, "bias")


def batch_letters(n: int) -> str:
    """Return one letter for each of n leading dimensions."""
    return "abcdefghijklmnop"[:n]


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot")
def matmul(p: Propagator, a: Value, b: Value, *args: Any) -> Value:
    """Batched matrix product; leading dimensions are broadcast."""
    rank_a, rank_b = len(a.axes), len(b.axes)
    batch = batch_letters(max(rank_a, rank_b, 2) - 2)
    left = f"{batch[len(batch) - (rank_a - 2) :] if rank_a > 2 else ''}{'MK' if rank_a > 1 else 'K'}"
    right = f"{batch[len(batch) - (rank_b - 2) :] if rank_b > 2 else ''}{'KN' if rank_b > 1 else 'K'}"
    out = f"{batch}{'M' if rank_a > 1 else ''}{'N' if rank_b > 1 else ''}"
    y = contract(p, (a, b), (left, right), out)
    return Value(y.axes, y.sources, "linear" if b.pure and not a.pure else None)


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_mm(p: Propagator, x: Value, weight: Value, offs: Any = None, bias: Any = None, *args: Any) -> Any:
    """Multiply groups of rows by a matrix each, as experts do: x (rows, in) by W (groups, in, out) is (rows, out)."""
    if len(x.axes) != 2 or len(weight.axes) != 3 or bias is not None:
        return p._unknown((x, weight, bias), {})
    p.freeze(weight.axes[0], "has one matrix for each group of rows")
    one = Value(weight.axes[1:], tuple((name, dims[1:]) for name, dims in weight.sources))
    return Value(contract(p, (Value(x.axes), one), ("MK", "KN"), "MN").axes, (), "linear")


@rule("addmm", "baddbmm", "addbmm")
def addmm(p: Propagator, bias: Value, a: Value, b: Value, *args: Any, **kwargs: Any) -> Any:
    """Add a product of matrices to a bias."""
    y = matmul(p, a, b)
    if len(bias.axes) == 1:
        add_bias(p, y.axes[-1], bias)
        return y
    for mine, other in zip(y.axes[-len(bias.axes) :], bias.axes, strict=True):
        if mine.size == other.size:
            p.unify(mine, other)
        else:
            p.freeze(other, "stretches it from size one")
    return y


@rule("einsum")
def einsum(p: Propagator, equation: str, values: Sequence[Value], *args: Any, **kwargs: Any) -> Any:
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


@rule("tensordot")
def tensordot(p: Propagator, a: Value, b: Value, dims_a: Sequence[int], dims_b: Sequence[int], *args: Any) -> Value:
    """Sum over pairs of dimensions; the others of a, then the others of b remain."""
    letters = batch_letters(len(a.axes) + len(b.axes))
    left, right = list(letters[: len(a.axes)]), list(letters[len(a.axes) :])
    for i, j in zip(dims_a, dims_b, strict=True):
        right[j] = left[i]
    out = [x for x in left if x not in right] + [x for x in right if x not in left]
    return contract(p, (a, b), ("".join(left), "".join(right)), "".join(out))


@rule("sum")
def summed(p: Propagator, x: Value, *args: Any, **kwargs: Any) -> Any:
    """A sum over dimensions; of a product with a parameter, as in ``(x * w).sum(-1)``, it is what einsum does."""
    dims = dims_of(x, kwargs.get("dim", args[0] if args else None))
    factors = _factors(p, dims, len(x.axes))
    if factors is None:
        return reduce(p, x, *args, **kwargs)
    letters = batch_letters(len(x.axes))
    labels = [letters[len(letters) - len(value.axes) :] for value in factors]
    left = "".join(letter for d, letter in enumerate(letters) if d not in dims)
    y = contract(p, factors, labels, left, counted=False)
    if len(p.output_shape()) < len(x.axes):
        return y
    rest = iter(y.axes)
    return Value(tuple(p.fresh(1, "a reduced axis") if d in dims else next(rest) for d in range(len(x.axes))))


def _factors(p: Propagator, dims: Sequence[int], rank: int) -> tuple[Value, Value] | None:
    """Return the factors of the product that is summed over some dimension of both, if one of them is a parameter."""
    node = p.node.args[0]
    if not isinstance(node, Node) or getattr(node.target, "_opname", None) != "mul":
        return None
    a, b = (p.trace.values[n] if isinstance(n, Node) else n for n in node.args)
    if not isinstance(a, Value) or not isinstance(b, Value) or a.pure == b.pure:
        return None
    backs = [d - rank for d in dims if min(len(a.axes), len(b.axes)) >= rank - d]
    return (a, b) if any(a.axes[back].size == b.axes[back].size > 1 for back in backs) else None


@rule("inner")
def inner(p: Propagator, a: Value, b: Value) -> Any:
    """Sum over the last dimensions of both."""
    if not a.axes or not b.axes:
        return broadcast(p, (a, b), p.output_shape())
    return tensordot(p, a, b, [-1], [-1])


@rule("outer", "ger")
def outer(p: Propagator, a: Value, b: Value) -> Value:
    """Every entry of one vector times every entry of another."""
    both = (a.with_axes([0, None], a.axes), b.with_axes([None, 0], b.axes))
    sources = [source for value in both for source in value.sources] if a.pure and b.pure else []
    return Value((a.axes[0], b.axes[0]), tuple(sources))


@rule("cosine_similarity", "pairwise_distance")
def similarity(p: Propagator, a: Value, b: Value, *args: Any, **kwargs: Any) -> Value:
    """Compare along one dimension: nothing silences a new unit there."""
    cosine = p.operator_name() == "cosine_similarity"
    dim = kwargs.get("dim", args[0] if args else 1) if cosine else -1
    backs = range(-max(len(a.axes), len(b.axes)), 0)
    shape = [max(value.axes[back].size for value in (a, b) if len(value.axes) >= -back) for back in backs]
    axes = list(broadcast(p, (a, b), shape).axes)
    p.inexact(axes[dim], "sums over it")
    kept = [p.fresh(1, "a reduced axis")] if len(p.output_shape()) == len(axes) else []
    axes[dim : dim % len(axes) + 1] = kept
    return Value(tuple(axes))


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def cdist(p: Propagator, a: Value, b: Value, *args: Any) -> Value:
    """Distances between all rows of a and all rows of b: nothing silences a new unit there."""
    p.unify(a.axes[-1], b.axes[-1])
    p.inexact(a.axes[-1], "sums over it")
    batch = broadcast(p, [Value(value.axes[:-2]) for value in (a, b)], p.output_shape()[:-2])
    return Value((*batch.axes, a.axes[-2], b.axes[-2]))


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
        if inner.size == 1:
            p.freeze(inner, "is depthwise: each filter reads or writes one channel")
        whole = grouped(group_axis, inner)
        # A new group brings its own filters, also where the rows of the weight are the inputs.
        p.tag(weight, 0, "producer", group_axis)
    else:
        whole = inner
    entering, leaving = (outer, whole) if transposed else (whole, outer)
    p.unify(x.axes[channel], entering)
    add_bias(p, leaving, bias)
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


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(p: Propagator, weight: Value, index: Value, *args: Any) -> tuple[Any, ...]:
    """Rows of a table by index, those of a bag taken together."""
    for value in (Value(weight.axes[:1]), index, *args):
        for axis in value.axes if isinstance(value, Value) else ():
            p.freeze(axis, "looks rows up by number")
    p.tag(weight, 1, "producer")
    p.attribute(nn.EmbeddingBag, embedding_dim=weight.axes[1])
    _, *rest = p.frozen_like(p.node.meta["val"], "describes bags of rows that are looked up by number")
    return Value((p.fresh(p.output_shape()[0], "a number of bags"), weight.axes[1]), (), "linear"), *rest


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
