"""Propagation rules: operators in which positions along an axis meet (windows, pooling, padding, grids, Fourier)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auxin.graph.axes import Axis, is_frozen
from auxin.graph.propagate import Propagator, grouped, rule
from auxin.graph.rules import dims_of
from auxin.graph.values import Value


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
    return _moved(p, x, dims_of(x, dims), "transforms it")


@rule("fft_fftshift", "fft_ifftshift")
def shift(p: Propagator, x: Value, dim: Any = None) -> Value:
    """Rotate some dimensions, by default all."""
    return _moved(p, x, dims_of(x, dim), "depends on the position along it")


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
