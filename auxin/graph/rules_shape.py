"""Propagation rules: reshaping, permuting, joining, cutting and selecting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from auxin.graph.axes import Axis, MismatchError, concat, cut, factor_inner, is_frozen, product
from auxin.graph.propagate import Propagator, Value, rule


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
    for size, axis in zip(given, new, strict=True):
        p.literal(size, axis)
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
def reshape(p: Propagator, x: Value, sizes: Any, *args: Any) -> Value:
    """New sizes over the same elements in the same order."""
    if not isinstance(sizes, (list, tuple)):
        return x
    return _reshaped(p, x, reshape_axes(p, x.axes, p.output_shape(), list(sizes)))


def _reshaped(p: Propagator, x: Value, axes: Sequence[Axis]) -> Value:
    layout = x.layout if x.layout == "linear" and axes and axes[-1] == x.axes[-1] else None
    if not x.pure:
        return Value(tuple(axes), (), layout)
    # A view of a parameter: its dimensions are those that survive whole; others keep no role.
    order: list[int | None] = []
    for axis in axes:
        same = [d for d, old in enumerate(x.axes) if old == axis]
        inside = [d for d, old in enumerate(x.axes) if set(axis.atoms()) <= set(old.atoms())]
        order.append(next(iter(same or inside), None))
    return x.with_axes(order, axes, layout)


@rule("view_as", "reshape_as")
def reshape_as(p: Propagator, x: Value, other: Value) -> Value:
    """Reshape to another tensor's sizes."""
    shape = p.output_shape()
    return _reshaped(p, x, reshape_axes(p, x.axes, shape, [-1] * len(shape)))


@rule("flatten")
def flatten(p: Propagator, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """Join a run of dimensions."""
    shape = p.output_shape()
    return _reshaped(p, x, reshape_axes(p, x.axes, shape, [-1] * len(shape)))


@rule("unflatten")
def unflatten(p: Propagator, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    """Split one dimension."""
    dim %= len(x.axes)
    shape = p.output_shape()[dim : dim + len(sizes)]
    new = _reshape_run(p, [x.axes[dim]], shape, list(sizes))
    return _reshaped(p, x, [*x.axes[:dim], *new, *x.axes[dim + 1 :]])


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
    missing = len(shape) - len(x.axes)
    axes: list[Axis] = []
    order: list[int | None] = []
    for d, size in enumerate(shape):
        old = x.axes[d - missing] if d >= missing else None
        if old is not None and old.size == size:
            axes.append(old)
            order.append(d - missing)
            continue
        if old is not None:
            p.freeze(old, "stretches it from size one")
        new = p.fresh(size)
        p.literal(size if given[d] == -1 else given[d], new, copies=True)
        axes.append(new)
        order.append(None)
    return x.with_axes(order, axes, x.layout if not missing else None)


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
        p.literal(n, copies, copies=True)
        axes.append(copies if old is None or old.size == 1 else product(copies, old))
        if old is not None and old.size == 1:
            p.freeze(old, "repeats it from size one")
    return x.with_axes([d - missing if d >= missing else None for d in range(len(axes))], axes)


@rule("repeat_interleave")
def repeat_interleave(p: Propagator, x: Value, repeats: Any, dim: Any = None, **kwargs: Any) -> Any:
    """Lay copies of each unit side by side: (units·copies)."""
    if not isinstance(repeats, int) or dim is None:
        return p._unknown((x, repeats), kwargs)
    copies = p.fresh(repeats, None if repeats > 1 else "an inserted axis of size one")
    p.literal(repeats, copies, copies=True)
    axes = list(x.axes)
    axes[dim] = product(axes[dim], copies)
    return x.with_axes(range(len(axes)), axes)


@rule("cat", "concat", "concatenate")
def cat(p: Propagator, values: Sequence[Value], dim: int = 0) -> Value:
    """Join along one dimension; the others are shared."""
    values = [value for value in values if value.axes[0].size or len(value.axes) > 1]
    rank = len(values[0].axes)
    dim %= rank
    for value in values[1:]:
        for d in range(rank):
            if d != dim:
                p.unify(values[0].axes[d], value.axes[d])
    axes = list(values[0].axes)
    axes[dim] = concat(*(value.axes[dim] for value in values))
    sources = [s for value in values for s in value.sources] if all(value.pure for value in values) else []
    layouts = {value.layout for value in values}
    return Value(tuple(axes), tuple(sources), layouts.pop() if len(layouts) == 1 else None)


@rule("stack")
def stack(p: Propagator, values: Sequence[Value], dim: int = 0) -> Value:
    """Join along a new dimension, whose size is the number of tensors in the code."""
    return cat(p, [unsqueeze(p, value, dim) for value in values], dim)


@rule("chunk", "tensor_split")
def chunk(p: Propagator, x: Value, chunks: Any, dim: int = 0) -> Any:
    """Cut into equal parts: (parts·units), so that every part grows alike."""
    size = x.axes[dim].size
    if not isinstance(chunks, int):
        bounds = [0, *chunks, size]
        return split(p, x, [b - a for a, b in pairwise(bounds)], dim)
    if size % chunks:
        p.freeze(x.axes[dim], "cuts it into unequal parts")
        return _parts(p, x, dim, [p.fresh(int(v.shape[dim]), "an unequal part") for v in p.node.meta["val"]])
    part = p.fresh(size // chunks)
    p.unify(x.axes[dim], product(p.fresh(chunks, "a fixed number of parts"), part))
    return _parts(p, x, dim, [part] * chunks)


@rule("split", "split_with_sizes", "unsafe_split")
def split(p: Propagator, x: Value, sizes: Any, dim: int = 0) -> Any:
    """Cut at given offsets: each part has units of its own."""
    size = x.axes[dim].size
    if isinstance(sizes, int):
        given = sizes
        sizes = [min(given, size - start) for start in range(0, size, given)]
        if len(sizes) > 1 and size % given == 0:
            # One number cuts all parts, so they grow alike.
            part = p.fresh(given)
            p.unify(x.axes[dim], product(p.fresh(len(sizes), "a fixed number of parts"), part))
            p.literal(given, part)
            return _parts(p, x, dim, [part] * len(sizes))
    rest, parts = x.axes[dim], []
    for n in sizes[:-1]:
        head, rest = _cut(p, rest, n)
        parts.append(head)
    parts.append(rest)
    for n, part in zip(sizes, parts, strict=True):
        p.literal(n, part)
    return _parts(p, x, dim, parts)


def _cut(p: Propagator, axis: Axis, offset: int) -> tuple[Axis, Axis]:
    try:
        return cut(axis, offset)
    except MismatchError:
        p.freeze(axis, "cuts it where its units do not end")
        return p.fresh(offset, "a part of a frozen axis"), p.fresh(axis.size - offset, "a part of a frozen axis")


def _parts(p: Propagator, x: Value, dim: int, parts: Sequence[Axis]) -> tuple[Value, ...]:
    dim %= len(x.axes)
    return tuple(x.with_axes(range(len(x.axes)), [*x.axes[:dim], part, *x.axes[dim + 1 :]], x.layout) for part in parts)


@rule("slice", "narrow")
def slice_(p: Propagator, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    """Take a range of one dimension."""
    dim %= len(x.axes)
    axis = x.axes[dim]
    size = axis.size
    if p.operator_name() == "narrow":
        end = start + end
    start, end, _ = slice(start, end, step).indices(size)
    if (start, end, step) == (0, size, 1):
        return x
    taken = p.output_shape()[dim]
    if is_frozen(axis):
        part = p.fresh(taken, "a part of a frozen axis")
    elif step > 1 and size % step == 0 and start < step and taken == size // step:
        part = p.fresh(taken)
        p.unify(axis, product(part, p.fresh(step, "a fixed stride")))
    elif step > 1 or taken == 0:
        p.freeze(axis, "takes every n-th index of it")
        part = p.fresh(taken, "a part of a frozen axis")
    else:
        part = axis
        if end < size:
            part, _ = _cut(p, part, end)
            p.literal(end, part, firm=True)
        if start > 0:
            head, part = _cut(p, part, start)
            p.literal(start, head, firm=True)
            p.literal(end - start, part, firm=True)
    return _parts(p, x, dim, [part])[0]


@rule("select")
def select(p: Propagator, x: Value, dim: int, index: Any) -> Value:
    """Take one index of a dimension."""
    dim %= len(x.axes)
    p.freeze(x.axes[dim], "takes one fixed index of it")
    order = [d for d in range(len(x.axes)) if d != dim]
    return x.with_axes(order, [x.axes[d] for d in order], x.layout if dim != len(x.axes) - 1 else None)


@rule("unbind")
def unbind(p: Propagator, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """Take every index of a dimension apart."""
    return tuple(select(p, x, dim, i) for i in range(x.axes[dim].size))


@rule("index", "index_put")
def index(p: Propagator, x: Value, indices: Sequence[Any], *args: Any) -> Value:
    """Look indices up along some dimensions, which may not grow."""
    used = [d for d, item in enumerate(indices) if item is not None]
    for d in used:
        p.freeze(x.axes[d], "looks indices of it up by number")
    if p.operator_name().startswith("index_put"):
        return x
    shape = p.output_shape()
    kept = [d for d in range(len(x.axes)) if d not in used]
    width = len(shape) - len(kept)
    place = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    before, after = [d for d in kept if d < place], [d for d in kept if d >= place]
    looked_up = [p.fresh(n, "looked up by number") for n in shape[len(before) : len(before) + width]]
    order = [*before, *(None for _ in looked_up), *after]
    axes = [*(x.axes[d] for d in before), *looked_up, *(x.axes[d] for d in after)]
    return x.with_axes(order, axes)


@rule("index_select", "gather", "take_along_dim")
def index_select(p: Propagator, x: Value, dim: Any, places: Any, *args: Any, **kwargs: Any) -> Value:
    """Look indices up along one dimension (gather: every dimension must match the index tensor)."""
    name = p.operator_name()
    frozen = [int(dim) % len(x.axes)] if name == "index_select" else range(len(x.axes))
    axes = list(x.axes)
    for d in frozen:
        p.freeze(axes[d], "looks indices of it up by number")
        axes[d] = p.fresh(p.output_shape()[d], "looked up by number")
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


@rule("glu")
def glu(p: Propagator, x: Value, dim: int = -1) -> Value:
    """Values times gates, the two halves of one dimension."""
    values, _ = chunk(p, x, 2, dim)
    return Value(values.axes, (), values.layout)


@rule("unfold", "im2col", "col2im")
def unfold(p: Propagator, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Sliding windows: too many layouts to follow, so frozen with this reason."""
    return p._unknown((x, args), kwargs)
