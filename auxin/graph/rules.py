"""Propagation rules: elementwise operators, reductions, order, complex numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from auxin.graph.axes import Axis
from auxin.graph.propagate import Propagator, rule
from auxin.graph.values import Value

# One input, one output, every element on its own.
UNARY = """
relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu softplus mish softsign
log_sigmoid threshold softshrink hardshrink tanhshrink exp exp2 expm1 log log2 log10 log1p sqrt rsqrt neg abs sign
square reciprocal sin cos tan asin acos atan sinh cosh erf erfc erfinv floor ceil round trunc frac clamp clamp_min
clamp_max clip clone contiguous detach alias to _to_copy type_as float double half bool long int dropout
feature_dropout alpha_dropout feature_alpha_dropout native_dropout logical_not bitwise_not isnan isinf isfinite
nan_to_num zeros_like ones_like full_like rand_like randn_like empty_like bernoulli lift_fresh_copy lift_fresh
positive deg2rad rad2deg fill zero _unsafe_view_as requires_grad rrelu logit sinc digamma lgamma sgn signbit i0
special_erf special_erfc special_erfcx special_erfinv special_expit special_expm1 special_exp2 special_log1p
special_logit special_sinc special_digamma special_gammaln special_ndtr special_round angle real imag _conj
conj_physical resolve_conj resolve_neg
"""
# Several inputs, broadcast together.
BINARY = """
add sub mul div true_divide floor_divide pow rsub maximum minimum fmax fmin remainder fmod atan2 eq ne lt le gt ge
logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__ where masked_fill lerp
addcmul addcdiv copy hypot xlogy nextafter heaviside logaddexp logaddexp2 copysign ldexp float_power special_xlogy
special_xlog1py complex polar
"""
# Of these, those that are linear in a parameter: zero stays zero, and halves of it make a whole.
LINEAR = """
clone contiguous detach alias to _to_copy type_as float double half lift_fresh_copy lift_fresh neg positive dropout
requires_grad deg2rad rad2deg real imag complex _conj conj_physical resolve_conj resolve_neg add sub rsub mul div
true_divide masked_fill where copy
"""
ACTIVATIONS = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "gelu": "GELU",
    "silu": "SiLU",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "mish": "Mish",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "hardswish": "Hardswish",
    "softplus": "Softplus",
    "prelu": "PReLU",
    "hardtanh": "Hardtanh",
}
"""Activations after which a block can be inserted, with their class in torch.nn."""


@rule(*dict.fromkeys(UNARY.split()))
def unary(p: Propagator, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Pass every axis through."""
    name = p.operator_name()
    if any(isinstance(arg, Value) for arg in (*args, *kwargs.values())):
        if name in {"clamp", "clip", "type_as", "clamp_min", "clamp_max", "fill"}:
            return binary(p, x, *args, **kwargs) if name != "type_as" else x
        return p._unknown((x, *args), kwargs)
    if name in {"rand_like", "randn_like", "bernoulli"}:
        drawn(p, x.axes)
    if name not in LINEAR.split():
        p.bend(x)
    if isinstance(p.node.meta.get("val"), (tuple, list)):
        return (x, x)
    return x


def drawn(p: Propagator, axes: Sequence[Axis]) -> None:
    """Note that a tensor of random numbers along these axes is another one once they grow."""
    for axis in axes:
        p.inexact(axis, "draws other random numbers when it grows")


@rule(*dict.fromkeys(BINARY.split()))
def binary(p: Propagator, *args: Any, **kwargs: Any) -> Any:
    """Align axes from the last dimension on; a dimension of size one that is stretched may not grow."""
    values = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value)]
    if isinstance(p.node.meta["val"], (tuple, list)):  # ``where`` of a condition alone
        return positions(p, *values)
    name = p.operator_name()
    shifted = name in {"add", "sub", "rsub", "masked_fill", "where"} and any(
        type(arg) in (int, float) and arg for arg in args
    )
    held = [name for value in values if value.pure for name, _ in value.sources]
    if name not in LINEAR.split() or shifted or len(set(held)) < len(held):
        for value in values:
            p.bend(value)
    return broadcast(p, values, p.output_shape())


def broadcast(p: Propagator, values: Sequence[Value], shape: Sequence[int]) -> Value:
    """Unify the axes of values that are broadcast to one shape."""
    axes: list[Axis] = []
    for back in range(-len(shape), 0):
        size = shape[back]
        aligned = [value.axes[back] for value in values if len(value.axes) >= -back]
        full = [axis for axis in aligned if axis.size == size]
        for axis in aligned:
            if axis.size != size:
                p.freeze(axis, "stretches it from size one")
        for axis in full[1:]:
            p.unify(full[0], axis)
        axes.append(full[0] if full else p.fresh(size, "stretched from size one"))
    sources: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
    if all(value.pure for value in values):
        for value in values:
            missing = len(shape) - len(value.axes)
            sources.extend((name, (*((),) * missing, *dims)) for name, dims in value.sources)
    layout = next((value.layout for value in values if not value.pure and value.layout), None)
    return Value(tuple(axes), tuple(sources), layout)


@rule("nonzero", "argwhere", "nonzero_numpy", "masked_select")
def positions(p: Propagator, *values: Value) -> Any:
    """Where something holds, as numbers or as a list of entries: positions matter."""
    for axis in (axis for value in values for axis in value.axes):
        p.freeze(axis, "finds positions along it")
    return p.frozen_like(p.node.meta["val"], f"{p.where()} has a size that depends on the data")


@rule("prelu")
def prelu(p: Propagator, x: Value, weight: Value) -> Value:
    """One slope for all channels, or one per channel (dimension 1)."""
    if weight.axes[0].size > 1:
        p.unify(x.axes[1], weight.axes[0])
        p.tag(weight, 0, "raw")
        p.attribute(nn.PReLU, num_parameters=weight.axes[0])
    else:
        p.freeze(weight.axes[0], "shares one slope among all channels")
    return x


def dims_of(value: Value, dims: Any) -> list[int]:
    """Return dimensions as non-negative numbers; None or [] means all."""
    rank = len(value.axes)
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(rank))
    return [d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])]


@rule(
    "mean", "amax", "amin", "var", "std", "logsumexp", "all", "any", "prod", "median", "nanmean", "nansum",
    "max", "min", "argmax", "argmin", "var_mean", "std_mean", "linalg_vector_norm", "norm", "count_nonzero", "aminmax",
)  # fmt: skip
def reduce(p: Propagator, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Drop the reduced dimensions; new units would take part in the reduction, so their growth is inexact."""
    name = p.operator_name()
    if args and isinstance(args[0], Value):
        return binary(p, x, args[0])
    rest = list(args)
    if name in {"linalg_vector_norm", "norm"} and rest and not isinstance(rest[0], (list, tuple)):
        rest.pop(0)
    dims = dims_of(x, kwargs.get("dim", rest[0] if rest else None))
    meta = p.node.meta["val"]
    pair = isinstance(meta, (tuple, list)) and name in {"max", "min", "median"}
    placed = name in {"argmax", "argmin"} or (pair and any(user.args[1:] == (1,) for user in p.node.users))
    for d in dims:
        if placed:
            p.freeze(x.axes[d], "finds a position along it")
        if name in {"linalg_vector_norm", "norm"}:
            p.norm_over(x, d, "reduces over it")
        else:
            p.inexact(x.axes[d], "reduces over it")
    out = meta[0] if isinstance(meta, (tuple, list)) else meta
    if out.ndim == len(x.axes):
        order: list[int | None] = [None if d in dims else d for d in range(out.ndim)]
    else:
        order = [d for d in range(len(x.axes)) if d not in dims]
    axes = [x.axes[d] if d is not None else p.fresh(1, "a reduced axis") for d in order]
    if name in {"linalg_vector_norm", "norm"}:
        for d in set(range(len(x.axes))) - set(dims):
            p.normed(x, d)
    value = x.with_axes(order, axes)
    return tuple(value for _ in meta) if isinstance(meta, (tuple, list)) else value


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin")
def softmax(p: Propagator, x: Value, dim: int, *args: Any, **kwargs: Any) -> Value:
    """Normalise over one dimension: a new unit there takes part of everyone's share."""
    p.inexact(x.axes[dim], "normalises over it")
    return x


@rule(
    "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "flip", "roll", "sort", "argsort", "topk", "renorm",
    "unique_consecutive", "tril", "triu",
)  # fmt: skip
def ordered(p: Propagator, x: Value, *args: Any, **kwargs: Any) -> Any:
    """The position along a dimension matters, so it may not grow (tril and triu: the last two)."""
    name = p.operator_name()
    dims: Any = kwargs.get("dim", kwargs.get("dims"))
    if name in {"tril", "triu"}:
        dims = [-2, -1]
    elif dims is None:
        position = 1 if name in {"roll", "topk"} else 0
        dims = args[position] if len(args) > position else (-1 if name in {"sort", "argsort", "topk"} else None)
    for d in dims_of(x, dims):
        p.freeze(x.axes[d], "depends on the position along it")
    meta = p.node.meta["val"]
    if isinstance(meta, (tuple, list)):
        return tuple(_keep_equal(p, x, item) for item in meta)
    return _keep_equal(p, x, meta)


def _keep_equal(p: Propagator, x: Value, meta: Tensor) -> Value:
    """Keep the axes whose size did not change."""
    sizes = [p.size(n) for n in meta.shape]
    axes = [axis if axis.size == n else p.fresh(n, "a selection") for axis, n in zip(x.axes, sizes, strict=True)]
    return x.with_axes(range(len(axes)), axes)


@rule("view_as_complex")
def view_as_complex(p: Propagator, x: Value) -> Value:
    """Pairs of the last dimension as complex numbers."""
    p.freeze(x.axes[-1], "has it as real and imaginary parts")
    return x.with_axes(range(len(x.axes) - 1), x.axes[:-1])


@rule("view_as_real")
def view_as_real(p: Propagator, x: Value) -> Value:
    """Complex numbers as pairs in a new last dimension."""
    return x.with_axes([*range(len(x.axes)), None], [*x.axes, p.fresh(2, "real and imaginary parts")])
