"""Propagation rules: elementwise operators, reductions, norms, pooling, creation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from auxin.graph.axes import Axis, is_frozen
from auxin.graph.propagate import Propagator, Value, frozen_like, grouped, rule

# One input, one output, every element on its own.
UNARY = """
relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu softplus mish softsign
log_sigmoid threshold softshrink hardshrink tanhshrink exp exp2 expm1 log log2 log10 log1p sqrt rsqrt neg abs sign
square reciprocal sin cos tan asin acos atan sinh cosh erf erfc erfinv floor ceil round trunc frac clamp clamp_min
clamp_max clip clone contiguous detach alias to _to_copy type_as float double half bool long int dropout
feature_dropout alpha_dropout feature_alpha_dropout native_dropout logical_not bitwise_not isnan isinf isfinite
nan_to_num zeros_like ones_like full_like rand_like randn_like empty_like bernoulli lift_fresh_copy lift_fresh
positive deg2rad rad2deg fill zero _unsafe_view_as requires_grad_ rrelu logit sinc digamma lgamma sgn
"""
# Several inputs, broadcast together.
BINARY = """
add sub mul div true_divide floor_divide pow rsub maximum minimum fmax fmin remainder fmod atan2 eq ne lt le gt ge
logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__ where masked_fill lerp
addcmul addcdiv copy hypot xlogy nextafter heaviside
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
    if any(isinstance(arg, Value) for arg in args):
        if p.operator_name() in {"clamp", "clip", "type_as", "clamp_min", "clamp_max", "fill"}:
            return binary(p, x, *args) if p.operator_name() != "type_as" else x
        return p._unknown((x, *args), kwargs)
    if isinstance(p.node.meta.get("val"), (tuple, list)):
        return (x, x)
    return x


@rule(*dict.fromkeys(BINARY.split()))
def binary(p: Propagator, *args: Any, **kwargs: Any) -> Value:
    """Align axes from the last dimension on; a dimension of size one that is stretched may not grow."""
    values = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value)]
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
    sources: list[tuple[str, tuple[int | None, ...]]] = []
    if all(value.pure for value in values):
        for value in values:
            missing = len(shape) - len(value.axes)
            sources.extend((name, (*(None,) * missing, *dims)) for name, dims in value.sources)
    layout = next((value.layout for value in values if not value.pure and value.layout), None)
    return Value(tuple(axes), tuple(sources), layout)


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


def _dims(value: Value, dims: Any) -> list[int]:
    """Return dimensions as non-negative numbers; None or [] means all."""
    rank = len(value.axes)
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(rank))
    return [d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])]


@rule(
    "sum", "mean", "amax", "amin", "var", "std", "logsumexp", "all", "any", "prod", "median", "nanmean", "nansum",
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
    dims = _dims(x, kwargs.get("dim", rest[0] if rest else None))
    for d in dims:
        p.inexact(x.axes[d], "reduces over it")
    meta = p.node.meta["val"]
    out = meta[0] if isinstance(meta, (tuple, list)) else meta
    if out.ndim == len(x.axes):
        order: list[int | None] = [None if d in dims else d for d in range(out.ndim)]
    else:
        order = [d for d in range(len(x.axes)) if d not in dims]
    axes = [x.axes[d] if d is not None else p.fresh(1, "a reduced axis") for d in order]
    value = x.with_axes(order, axes)
    return tuple(value for _ in meta) if isinstance(meta, (tuple, list)) else value


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin")
def softmax(p: Propagator, x: Value, dim: int, *args: Any, **kwargs: Any) -> Value:
    """Normalise over one dimension: a new unit there takes part of everyone's share."""
    p.inexact(x.axes[dim], "normalises over it")
    return x


@rule("cumsum", "cumprod", "flip", "roll", "sort", "argsort", "topk", "renorm", "unique_consecutive", "tril", "triu")
def ordered(p: Propagator, x: Value, *args: Any, **kwargs: Any) -> Any:
    """The position along a dimension matters, so it may not grow (tril and triu: the last two)."""
    name = p.operator_name()
    dims: Any = kwargs.get("dim", kwargs.get("dims"))
    if name in {"tril", "triu"}:
        dims = [-2, -1]
    elif dims is None:
        position = 1 if name in {"roll", "topk"} else 0
        dims = args[position] if len(args) > position else (-1 if name in {"sort", "argsort", "topk"} else None)
    for d in _dims(x, dims):
        p.freeze(x.axes[d], "depends on the position along it")
    meta = p.node.meta["val"]
    if isinstance(meta, (tuple, list)):
        return tuple(_keep_equal(p, x, item) for item in meta)
    return _keep_equal(p, x, meta)


def _keep_equal(p: Propagator, x: Value, meta: Tensor) -> Value:
    """Keep the axes whose size did not change."""
    sizes = [int(n) for n in meta.shape]
    axes = [axis if axis.size == n else p.fresh(n, "a selection") for axis, n in zip(x.axes, sizes, strict=True)]
    return x.with_axes(range(len(axes)), axes)


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def batch_norm(p: Propagator, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, *args: Any) -> Any:
    """One scale, shift, mean and variance per channel (dimension 1)."""
    _channel_norm(p, x, weight, bias, mean, variance)
    p.attribute(nn.modules.batchnorm._BatchNorm, num_features=x.axes[1])
    return x


@rule("instance_norm")
def instance_norm(p: Propagator, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, *args: Any) -> Value:
    """Like batch norm, with statistics per image."""
    _channel_norm(p, x, weight, bias, mean, variance)
    p.attribute(nn.modules.instancenorm._InstanceNorm, num_features=x.axes[1])
    return x


def _channel_norm(p: Propagator, x: Value, weight: Any, bias: Any, mean: Any, variance: Any) -> None:
    for value, role in ((weight, "scale"), (bias, "shift"), (mean, "mean"), (variance, "variance")):
        if isinstance(value, Value):
            p.unify(x.axes[1], value.axes[0])
            p.tag(value, 0, role)  # type: ignore[arg-type]


@rule("layer_norm", "rms_norm", "native_layer_norm")
def layer_norm(p: Propagator, x: Value, shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any) -> Value:
    """Normalise over the last dimensions together: new units change everyone's mean and scale."""
    last = range(-len(shape), 0)
    for d in last:
        p.inexact(x.axes[d], "normalises over it")
        for value, role in ((weight, "scale"), (bias, "shift")):
            if isinstance(value, Value):
                p.unify(x.axes[d], value.axes[d])
                p.tag(value, d, role)  # type: ignore[arg-type]
    p.attribute((nn.LayerNorm, nn.RMSNorm), normalized_shape=[x.axes[d] for d in last])
    return x


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(p: Propagator, v: Value, g: Value, dim: int = 0) -> Any:
    """Compute g·v/‖v‖ with one norm per index of ``dim``: new columns of zeros keep it, shared ones do not."""
    for d, axis in enumerate(v.axes):
        if d == dim % len(v.axes):
            p.unify(axis, g.axes[d])
            p.tag(g, d, "scale")
        else:
            p.inexact(axis, "normalises over it")
            p.freeze(g.axes[d], "keeps it at one")
    weight = Value(v.axes, v.sources)
    return (weight, weight) if isinstance(p.node.meta["val"], (tuple, list)) else weight


@rule("group_norm")
def group_norm(p: Propagator, x: Value, groups: int, weight: Any = None, bias: Any = None, *_: Any) -> Value:
    """Channels are groups·members: whole groups are added, members would change their group's statistics."""
    group_axis, members = p.fresh(groups), p.fresh(x.axes[1].size // groups)
    p.inexact(members, "normalises over it")
    p.unify(x.axes[1], grouped(group_axis, members))
    for value, role in ((weight, "scale"), (bias, "shift")):
        if isinstance(value, Value):
            p.unify(x.axes[1], value.axes[0])
            p.tag(value, 0, role)  # type: ignore[arg-type]
    p.attribute(nn.GroupNorm, num_groups=group_axis, num_channels=x.axes[1])
    return x


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "_adaptive_avg_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "lp_pool2d",
)  # fmt: skip
def spatial(p: Propagator, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Change the spatial sizes, channel by channel."""
    name = p.operator_name()
    rank = next(int(c) for c in name.replace("_2d_aa", "2d") if c.isdigit())
    for axis in x.axes[-rank:]:
        p.freeze(axis, "is spatial there")
    kept = len(x.axes) - rank
    axes = [*x.axes[:kept], *(p.fresh(n, "a spatial size") for n in p.output_shape()[kept:])]
    value = Value(tuple(axes), (), x.layout)
    meta = p.node.meta["val"]
    return tuple(value for _ in meta) if isinstance(meta, (tuple, list)) else value


@rule("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def pad(p: Propagator, x: Value, padding: Sequence[int], *args: Any, **kwargs: Any) -> Value:
    """Padded dimensions get frozen entries before and after their own units; the others pass through."""
    from_axes = list(x.axes)
    for i in range(len(padding) // 2):
        before, after = padding[2 * i], padding[2 * i + 1]
        d = len(from_axes) - 1 - i
        if not (before or after):
            continue
        size = from_axes[d].size + before + after
        if is_frozen(from_axes[d]) or min(before, after) < 0 or args[:1] not in ((), ("constant",), (0,), (0.0,)):
            p.freeze(from_axes[d], "pads it")
            from_axes[d] = p.fresh(size, "a padded axis")
            continue
        ends = [p.fresh(n, "padding") for n in (before, after)]
        parts = [part for part in (ends[0], from_axes[d], ends[1]) if part.size]
        from_axes[d] = Axis(tuple(term for part in parts for term in part.terms))
    return Value(tuple(from_axes), (), x.layout)


@rule(
    "arange", "zeros", "ones", "full", "empty", "rand", "randn", "scalar_tensor", "linspace", "eye", "tril_indices",
    "triu_indices", "new_zeros", "new_ones", "new_full", "new_empty", "randint", "randperm", "tensor", "range",
)  # fmt: skip
def create(p: Propagator, *args: Any, **kwargs: Any) -> Any:
    """A tensor whose size is a number in the code."""
    return frozen_like(p.node.meta["val"], f"{p.where()} creates a tensor of fixed size")


@rule(
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size",
    "_set_grad_enabled",
)  # fmt: skip
def nothing(p: Propagator, *args: Any, **kwargs: Any) -> None:
    """Checks that touch no axis."""
