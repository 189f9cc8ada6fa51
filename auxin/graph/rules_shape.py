"""Propagation rules: the same elements in other shapes and orders, and copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auxin.graph.axes import Axis, MismatchError, factor_inner, product
from auxin.graph.propagate import Propagator, rule
from auxin.graph.rules import broadcast
from auxin.graph.values import Value


def reshape_axes(p: Propagator, axes: Sequence[Axis], sizes: Sequence[int], given: Sequence[Any]) -> list[Axis]:
    """Return the axes of a reshaped tensor.

    Runs of input and output dimensions with equal products are matched; within a run the output axes are atoms whose
    product is the product of the input axes.

    Args:
        p: The propagator.
        axes: Input axes.
        sizes: Output sizes.
        given: The sizes as the code passed them (-1 where it left one open), for linking attributes.

    Returns:
        One axis per output dimension.
    """
    result: list[Axis] = []
    i = j = 0
    while i < len(axes) or j < len(sizes):
        start_i, start_j = i, j
        left = right = 1
        if i < len(axes):
            left, i = axes[i].size, i + 1
        if j < len(sizes):
            right, j = sizes[j], j + 1
        while left != right:
            if left < right:
                left, i = left * axes[i].size, i + 1
            else:
                right, j = right * sizes[j], j + 1
        # A dimension of size one that only one side has joins this run.
        while i < len(axes) and axes[i].size == 1 and not (j < len(sizes) and sizes[j] == 1):
            p.freeze(axes[i], "drops it, a dimension of size one")
            i += 1
        while j < len(sizes) and sizes[j] == 1 and not (i < len(axes) and axes[i].size == 1):
            j += 1
        result.extend(_reshape_run(p, axes[start_i:i], sizes[start_j:j], given[start_j:j]))
    return result


def _reshape_run(p: Propagator, axes: Sequence[Axis], sizes: Sequence[int], given: Sequence[Any]) -> list[Axis]:
    if len(axes) == len(sizes) == 1:
        p.literal(given[0], axes[0])
        return [axes[0]]
    if len(sizes) == 1 and axes:
        joined = product(*axes)
        p.literal(given[0], joined)
        return [joined]
    new = [_new_axis(p, n) for n in sizes]
    if axes:
        p.unify(product(*axes), product(*new))
    # One factor follows from the others and the whole: the open one, else (as in ``c // groups``) usually the last.
    for i, (size, axis) in enumerate(zip(given, new, strict=True)):
        p.literal(size, axis, kind="derived" if -1 not in given and i == len(new) - 1 else "factor")
    return new


def _new_axis(p: Propagator, size: int) -> Axis:
    """Return a new axis; one of size one stays so, unless the module names it (a single attention head)."""
    if size > 1:
        return p.fresh(size)
    _, module = p.owner()
    named = module is not None and any(
        value == 1 and ("head" in name or "group" in name) and not isinstance(value, bool)
        for name, value in vars(module).items()
        if isinstance(value, int)
    )
    return p.fresh(1, None if named else "an inserted axis of size one")


@rule("view", "reshape", "_unsafe_view")
def reshape(p: Propagator, x: Value, sizes: Any, *args: Any) -> Any:
    """New sizes over the same elements in the same order."""
    if not isinstance(sizes, (list, tuple)):  # another dtype; its entries may be wider
        same = p.output_shape() == tuple(axis.size for axis in x.axes)
        return x if same else p._unknown((x,), {})
    axes = reshape_axes(p, x.axes, p.output_shape(), list(sizes))
    p.listed(sizes, axes)
    return _reshaped(x, axes)


def _reshaped(x: Value, axes: Sequence[Axis]) -> Value:
    layout = x.layout if x.layout == "linear" and axes and axes[-1] == x.axes[-1] else None
    if not x.pure:
        return Value(tuple(axes), (), layout)
    # A view of a parameter: each dimension comes from one that survives whole, else from all it shares units with.
    order: list[Sequence[int]] = []
    for axis in axes:
        same = [d for d, old in enumerate(x.axes) if old == axis]
        inside = [d for d, old in enumerate(x.axes) if set(axis.atoms()) <= set(old.atoms())]
        joined = [d for d, old in enumerate(x.axes) if set(axis.atoms()) & set(old.atoms())]
        order.append((same or inside)[:1] or joined)
    return x.with_axes(order, axes, layout)


@rule("view_as", "reshape_as")
def reshape_as(p: Propagator, x: Value, other: Value) -> Value:
    """Reshape to another tensor's sizes."""
    shape = p.output_shape()
    return _reshaped(x, reshape_axes(p, x.axes, shape, [-1] * len(shape)))


@rule("flatten")
def flatten(p: Propagator, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """Join a run of dimensions."""
    shape = p.output_shape()
    return _reshaped(x, reshape_axes(p, x.axes, shape, [-1] * len(shape)))


@rule("unflatten")
def unflatten(p: Propagator, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    """Split one dimension."""
    dim %= len(x.axes)
    shape = p.output_shape()[dim : dim + len(sizes)]
    new = _reshape_run(p, [x.axes[dim]], shape, list(sizes))
    return _reshaped(x, [*x.axes[:dim], *new, *x.axes[dim + 1 :]])


def _permuted(x: Value, order: Sequence[int]) -> Value:
    order = [d % len(x.axes) for d in order]
    layout = x.layout if x.layout == "linear" and order[-1:] == [len(x.axes) - 1] else None
    return x.with_axes(order, [x.axes[d] for d in order], layout)


@rule("permute")
def permute(p: Propagator, x: Value, order: Sequence[int]) -> Value:
    """Reorder dimensions."""
    return _permuted(x, order)


@rule("transpose", "swapaxes", "swapdims")
def transpose(p: Propagator, x: Value, a: int, b: int) -> Value:
    """Swap two dimensions."""
    order = list(range(len(x.axes)))
    order[a], order[b] = order[b], order[a]
    return _permuted(x, order)


@rule("t", "numpy_T", "mT", "matrix_H", "mH", "adjoint")
def transposed(p: Propagator, x: Value) -> Value:
    """Swap the last two dimensions (of a matrix: all)."""
    rank = len(x.axes)
    return x if rank < 2 else transpose(p, x, rank - 2, rank - 1)


@rule("movedim", "moveaxis")
def movedim(p: Propagator, x: Value, source: Any, destination: Any) -> Value:
    """Move dimensions to new places."""
    rank = len(x.axes)
    sources = [s % rank for s in (source if isinstance(source, (list, tuple)) else [source])]
    targets = [d % rank for d in (destination if isinstance(destination, (list, tuple)) else [destination])]
    order = [d for d in range(rank) if d not in sources]
    for target, moved in sorted(zip(targets, sources, strict=True)):
        order.insert(target, moved)
    return _permuted(x, order)


@rule("unsqueeze")
def unsqueeze(p: Propagator, x: Value, dim: int) -> Value:
    """Insert a dimension of size one."""
    dim %= len(x.axes) + 1
    one = p.fresh(1, "an inserted axis of size one")
    order = [*range(dim), None, *range(dim, len(x.axes))]
    return x.with_axes(order, [one if d is None else x.axes[d] for d in order])


@rule("squeeze")
def squeeze(p: Propagator, x: Value, dims: Any = None) -> Value:
    """Drop dimensions of size one."""
    rank = len(x.axes)
    chosen = range(rank) if dims is None else [d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    gone = [d for d in chosen if x.axes[d].size == 1]
    for d in gone:
        p.freeze(x.axes[d], "drops it as an axis of size one")
    order = [d for d in range(rank) if d not in gone]
    return x.with_axes(order, [x.axes[d] for d in order], x.layout if x.layout == "linear" else None)


@rule("expand", "broadcast_to", "expand_as")
def expand(p: Propagator, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Repeat dimensions of size one without copying."""
    shape = p.output_shape()
    given = list(args[0]) if args and isinstance(args[0], (list, tuple)) else [-1] * len(shape)
    other = args[0] if args and isinstance(args[0], Value) else None
    missing = len(shape) - len(x.axes)
    axes: list[Axis] = []
    order: list[int | None] = []
    for d, size in enumerate(shape):
        old = x.axes[d - missing] if d >= missing else None
        if old is not None and old.size == size:
            if other is not None:
                p.unify(old, other.axes[d])
            elif given[d] != -1:
                p.literal(given[d], old)
            axes.append(old)
            order.append(d - missing)
            continue
        if old is not None:
            p.freeze(old, "stretches it from size one")
        if other is not None:  # as many copies as the other has units
            axes.append(other.axes[d])
            order.append(None)
            continue
        new = p.fresh(size)
        p.literal(size if given[d] == -1 else given[d], new, kind="copies")
        if size > 1:
            p.freeze_written(size, new)
        axes.append(new)
        order.append(None)
    return x.with_axes(order, axes, x.layout if not missing else None)


@rule("broadcast_tensors")
def broadcast_tensors(p: Propagator, values: Sequence[Value]) -> tuple[Value, ...]:
    """Stretch several tensors to one shape."""
    shape = p.output_shape()
    axes = broadcast(p, values, shape).axes
    found = []
    for value in values:
        missing = len(shape) - len(value.axes)
        kept = [d >= missing and value.axes[d - missing].size == size for d, size in enumerate(shape)]
        order = [d - missing if keep else None for d, keep in enumerate(kept)]
        found.append(value.with_axes(order, axes, value.layout if all(kept) else None))
    return tuple(found)


@rule("repeat", "tile")
def repeat(p: Propagator, x: Value, repeats: Sequence[int]) -> Value:
    """Lay copies of a dimension one after the other: (copies·units)."""
    missing = max(len(repeats) - len(x.axes), 0)
    repeats = [1] * (len(x.axes) - len(repeats)) + list(repeats)
    axes: list[Axis] = []
    for d, n in enumerate(repeats):
        old = x.axes[d - missing] if d >= missing else None
        if n == 1 and old is not None:
            axes.append(old)
            continue
        copies = p.fresh(n, None if n > 1 else "an inserted axis of size one")
        p.literal(n, copies, kind="copies")
        axes.append(copies if old is None or old.size == 1 else product(copies, old))
        if old is not None and old.size == 1:
            p.freeze(old, "repeats it from size one")
    return x.with_axes([d - missing if d >= missing else None for d in range(len(axes))], axes)


@rule("repeat_interleave")
def repeat_interleave(p: Propagator, x: Value, repeats: Any = None, dim: Any = None, **kwargs: Any) -> Any:
    """Lay copies of each unit side by side: (units·copies)."""
    axes = list(x.axes)
    if isinstance(repeats, Value) and dim is not None:
        for axis in (axes[dim], *repeats.axes):
            p.freeze(axis, "copies each entry of it as often as the data say")
        axes[dim] = p.fresh(p.output_shape()[dim], "copied as often as the data say")
        return x.with_axes([None if d == dim % len(axes) else d for d in range(len(axes))], axes)
    if not isinstance(repeats, int) or dim is None:
        return p._unknown((x, repeats), kwargs)
    copies = p.fresh(repeats, None if repeats > 1 else "an inserted axis of size one")
    p.literal(repeats, copies, kind="copies")
    axes[dim] = product(axes[dim], copies)
    return x.with_axes(range(len(axes)), axes)


@rule("pixel_shuffle")
def pixel_shuffle(p: Propagator, x: Value, factor: int) -> Value:
    """(C·r·r, H, W) → (C, H·r, W·r)."""
    shape = p.output_shape()
    channels = p.fresh(shape[-3])
    p.unify(x.axes[-3], product(channels, p.fresh(factor * factor, "the upscaling factor")))
    sizes = [p.fresh(n, "a spatial size") for n in shape[-2:]]
    return Value((*x.axes[:-3], channels, *sizes), (), "conv2d")


@rule("pixel_unshuffle")
def pixel_unshuffle(p: Propagator, x: Value, factor: int) -> Value:
    """(C, H·r, W·r) → (C·r·r, H, W)."""
    channels = product(x.axes[-3], p.fresh(factor * factor, "the downscaling factor"))
    sizes = [p.fresh(n, "a spatial size") for n in p.output_shape()[-2:]]
    return Value((*x.axes[:-3], channels, *sizes), (), "conv2d")


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(p: Propagator, x: Value, groups: int) -> Value:
    """(groups·members) → (members·groups) along dimension 1."""
    try:
        outer, members = factor_inner(x.axes[1], x.axes[1].size // groups)
    except MismatchError:
        p.freeze(x.axes[1], "shuffles it")
        return x
    p.freeze(outer, "shuffles a fixed number of groups")
    return Value((x.axes[0], product(members, outer), *x.axes[2:]), (), x.layout)
