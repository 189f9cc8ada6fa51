"""Propagation rules: elementwise operators, reductions, norms, pooling, creation."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from auxin.graph.axes import Axis, is_frozen
from auxin.graph.propagate import DataSize, Propagator, Value, grouped, rule

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
        _random(p, x.axes)
    if isinstance(p.node.meta.get("val"), (tuple, list)):
        return (x, x)
    return x


@rule(*dict.fromkeys(BINARY.split()))
def binary(p: Propagator, *args: Any, **kwargs: Any) -> Any:
    """Align axes from the last dimension on; a dimension of size one that is stretched may not grow."""
    values = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value)]
    if isinstance(p.node.meta["val"], (tuple, list)):  # ``where`` of a condition alone
        return positions(p, *values)
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
    meta = p.node.meta["val"]
    pair = isinstance(meta, (tuple, list)) and name in {"max", "min", "median"}
    placed = name in {"argmax", "argmin"} or (pair and any(user.args[1:] == (1,) for user in p.node.users))
    for d in dims:
        if placed:
            p.freeze(x.axes[d], "finds a position along it")
        p.inexact(x.axes[d], "reduces over it")
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
    for d in _dims(x, dims):
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


@rule("diff")
def diff(p: Propagator, x: Value, n: int = 1, dim: int = -1, *joined: Any) -> Any:
    """Differences of neighbours along a dimension."""
    if any(isinstance(item, Value) for item in joined):
        return p._unknown((x, *joined), {})
    return _moved(p, x, [dim], "depends on the position along it")


@rule(
    "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "fft_fft2", "fft_ifft2", "fft_rfft2",
    "fft_irfft2", "fft_hfft2", "fft_ihfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfftn",
    "fft_ihfftn",
)  # fmt: skip
def fourier(p: Propagator, x: Value, size: Any = None, *args: Any, **kwargs: Any) -> Value:
    """Transform some dimensions (by default the last one, the last two, or all), each entry of the others alone."""
    kind = p.operator_name()[-1]
    dims = kwargs.get("dim", args[0] if args else None)
    if dims is None:
        rank = {"2": 2, "n": len(size) if isinstance(size, (list, tuple)) else len(x.axes)}.get(kind, 1)
        dims = list(range(-rank, 0))
    return _moved(p, x, _dims(x, dims), "transforms it")


@rule("fft_fftshift", "fft_ifftshift")
def shift(p: Propagator, x: Value, dim: Any = None) -> Value:
    """Rotate some dimensions, by default all."""
    return _moved(p, x, _dims(x, dim), "depends on the position along it")


def _moved(p: Propagator, x: Value, dims: Sequence[int], why: str) -> Value:
    """Freeze dimensions that an operator works along, and give the result others there."""
    moved = {d % len(x.axes) for d in dims}
    for d in moved:
        p.freeze(x.axes[d], why)
    sizes = p.output_shape()
    axes = [p.fresh(sizes[d], why) if d in moved else axis for d, axis in enumerate(x.axes)]
    return x.with_axes([None if d in moved else d for d in range(len(axes))], axes)


@rule("unfold")
def windows(p: Propagator, x: Value, dim: int, *args: Any) -> Value:
    """Windows along a dimension; what they hold lies in a new last one."""
    moved = _moved(p, x, [dim], "takes windows along it") if x.axes else x
    return moved.with_axes(
        [*range(len(moved.axes)), None], [*moved.axes, p.fresh(p.output_shape()[-1], "entries of a window")]
    )


@rule("im2col")
def im2col(p: Propagator, x: Value, *args: Any) -> Value:
    """(C, H, W) → (C·k·k, windows)."""
    for axis in x.axes[-2:]:
        p.freeze(axis, "is spatial there")
    rows, columns = p.output_shape()[-2:]
    inside = p.fresh(rows // x.axes[-3].size, "entries of a window")
    return Value((*x.axes[:-3], grouped(x.axes[-3], inside), p.fresh(columns, "a number of windows")))


@rule("col2im")
def col2im(p: Propagator, x: Value, *args: Any) -> Value:
    """(C·k·k, windows) → (C, H, W)."""
    p.freeze(x.axes[-1], "is spatial there")
    channels, *sizes = p.output_shape()[-3:]
    axis = p.fresh(channels)
    p.unify(x.axes[-2], grouped(axis, p.fresh(x.axes[-2].size // channels, "entries of a window")))
    return Value((*x.axes[:-2], axis, *(p.fresh(n, "a spatial size") for n in sizes)))


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def batch_norm(p: Propagator, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, *args: Any) -> Any:
    """One scale, shift, mean and variance per channel (dimension 1)."""
    _channel_norm(p, x, weight, bias, mean, variance)
    if args[:1] == (True,):  # by the statistics of x itself, as where a weight is standardised in each forward
        for axis in (x.axes[0], *x.axes[2:]):
            p.inexact(axis, "normalises over it")
    p.attribute(nn.modules.batchnorm._BatchNorm, num_features=x.axes[1])
    return x


@rule("instance_norm")
def instance_norm(p: Propagator, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, *args: Any) -> Value:
    """Like batch norm, with statistics per image."""
    _channel_norm(p, x, weight, bias, mean, variance)
    if args[:1] == (True,):
        for axis in x.axes[2:]:
            p.inexact(axis, "normalises over it")
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


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(p: Propagator, x: Value, grid: Value, *args: Any) -> Value:
    """Read (batch, channel, space) at the places of a grid (batch, new space, coordinate)."""
    p.unify(x.axes[0], grid.axes[0])
    for axis in (*x.axes[2:], *grid.axes[1:]):
        p.freeze(axis, "is spatial there")
    return Value((*x.axes[:2], *grid.axes[1:-1]), (), x.layout)


@rule("affine_grid_generator")
def affine_grid(p: Propagator, theta: Value, *args: Any) -> Value:
    """One grid for each matrix of a batch."""
    for axis in theta.axes[1:]:
        p.freeze(axis, "reads it as a matrix of coordinates")
    return Value((theta.axes[0], *(p.fresh(n, "a spatial size") for n in p.output_shape()[1:])))


@rule("view_as_complex")
def view_as_complex(p: Propagator, x: Value) -> Value:
    """Pairs of the last dimension as complex numbers."""
    p.freeze(x.axes[-1], "has it as real and imaginary parts")
    return x.with_axes(range(len(x.axes) - 1), x.axes[:-1])


@rule("view_as_real")
def view_as_real(p: Propagator, x: Value) -> Value:
    """Complex numbers as pairs in a new last dimension."""
    return x.with_axes([*range(len(x.axes)), None], [*x.axes, p.fresh(2, "real and imaginary parts")])


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn")
def create(p: Propagator, *args: Any, **kwargs: Any) -> Value:
    """A tensor of equal or of random entries: it has the units of what it meets, if its sizes can follow."""
    sizes = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, (list, tuple))), ())
    given = _expressions(p.arguments())
    given = given if len(given) == len(sizes) else [", ".join(given)] * len(sizes)
    axes = tuple(_created(p, n, code) for n, code in zip(sizes, given, strict=True))
    if p.operator_name() in {"rand", "randn"}:
        _random(p, axes)
    return Value(axes)


def _created(p: Propagator, size: int, code: str) -> Axis:
    """Return the axis of a size that the code passes as a number.

    It may grow if an attribute of the module holds the number, or as far as one can see a shape does.

    Args:
        p: The propagator.
        size: The size.
        code: The expression that gives it, as far as it is known.

    Returns:
        The axis.
    """
    if size < 2 or isinstance(size, DataSize):
        return p.fresh(size, None if size > 1 else "an inserted axis of size one")
    if type(p.owner()[1]).__module__.startswith("torch.nn."):  # their rules know their attributes
        return p.fresh(size)
    axis = p.fresh(size)
    p.freeze_written(size, axis)
    # Where the whole call is there to read, an attribute that it does not name is not meant.
    p.literal(size, axis, firm=bool(code))
    if code and not p.named(size):
        shaped = "shape" in code or "size(" in code
        if re.search(r"[\w)\]] *[-/]" if shaped else r"[\w)\]] *[-/+*]", code):
            p.freeze(axis, "computes its size")
        elif not shaped:
            p.unsure.append((axis, f"{p.where()} creates it, and nothing says what its size comes from"))
    return axis


def _expressions(arguments: str) -> list[str]:
    """Return the expressions that a call passes one by one, or in a first tuple or list."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
    except SyntaxError:
        return []
    given = call.args if isinstance(call, ast.Call) else []
    return [ast.unparse(x) for x in (given[0].elts if given and isinstance(given[0], (ast.Tuple, ast.List)) else given)]


def _random(p: Propagator, axes: Sequence[Axis]) -> None:
    for axis in axes:
        p.inexact(axis, "draws other random numbers when it grows")


@rule(
    "arange", "scalar_tensor", "linspace", "eye", "tril_indices", "triu_indices", "randint", "randperm", "tensor",
    "range",
)  # fmt: skip
def enumerate_(p: Propagator, *args: Any, **kwargs: Any) -> Any:
    """A tensor of a fixed size, whose entries depend on their position."""
    return p.frozen_like(p.node.meta["val"], f"{p.where()} creates a tensor of fixed size")


@rule("sym_size", "sym_numel", "sym_stride", "sym_storage_offset")
def sizes(p: Propagator, *args: Any) -> Any:
    """A size as a number."""
    return p.frozen_like(p.node.meta["val"], "")


@rule(
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size",
    "_set_grad_enabled",
)  # fmt: skip
def nothing(p: Propagator, *args: Any, **kwargs: Any) -> None:
    """Checks that touch no axis."""
