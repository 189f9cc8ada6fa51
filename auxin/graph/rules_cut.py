"""Propagation rules: joining, cutting and selecting along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from auxin.graph.axes import Axis, MismatchError, concat, cut, freeze, is_frozen, product
from auxin.graph.propagate import Propagator, rule
from auxin.graph.rules_shape import unsqueeze
from auxin.graph.values import DataSize, Value


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
    for axis, why in p.unsure:
        if any(value.axes[dim] == axis for value in values):  # it may well be what the others lack
            freeze(axis, why)
    axes[dim] = concat(*(value.axes[dim] for value in values))
    sources = [s for value in values for s in value.sources] if all(value.pure for value in values) else []
    layouts = {value.layout for value in values}
    return Value(tuple(axes), tuple(sources), layouts.pop() if len(layouts) == 1 else None)


@rule("stack")
def stack(p: Propagator, values: Sequence[Value], dim: int = 0) -> Any:
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
        return _parts(x, dim, [p.fresh(v.shape[dim], "an unequal part") for v in p.node.meta["val"]])
    part = p.fresh(size // chunks)
    p.unify(x.axes[dim], product(p.fresh(chunks, "a fixed number of parts"), part))
    return _parts(x, dim, [part] * chunks)


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
            return _parts(x, dim, [part] * len(sizes))
    if any(isinstance(n, DataSize) for n in sizes):
        p.freeze(x.axes[dim], "cuts it where the data say")
        return _parts(x, dim, [p.fresh(n, "a part of a frozen axis") for n in sizes])
    rest, parts = x.axes[dim], []
    for n in sizes[:-1]:
        head, rest = _cut(p, rest, n)
        parts.append(head)
    parts.append(rest)
    for n, part in zip(sizes, parts, strict=True):
        p.literal(n, part)
    p.listed(sizes, parts)
    return _parts(x, dim, parts)


def _cut(p: Propagator, axis: Axis, offset: int) -> tuple[Axis, Axis]:
    try:
        return cut(axis, offset)
    except MismatchError:
        p.freeze(axis, "cuts it where its units do not end")
        return p.fresh(offset, "a part of a frozen axis"), p.fresh(axis.size - offset, "a part of a frozen axis")


def _parts(x: Value, dim: int, parts: Sequence[Axis]) -> tuple[Value, ...]:
    dim %= len(x.axes)
    return tuple(x.with_axes(range(len(x.axes)), [*x.axes[:dim], part, *x.axes[dim + 1 :]], x.layout) for part in parts)


@rule("slice", "narrow")
def slice_(p: Propagator, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    """Take a range of one dimension."""
    dim %= len(x.axes)
    axis = x.axes[dim]
    size = axis.size
    taken = p.output_shape()[dim]
    if any(isinstance(n, DataSize) for n in (start, end, taken)):
        p.freeze(axis, "takes a range of it that depends on the data")
        return _parts(x, dim, [p.fresh(taken, "a part of a frozen axis")])[0]
    length = None
    if p.operator_name() == "narrow":
        length, end = end, start + end
    given = start or 0, size if end is None else end
    start, end, _ = slice(start, end, step).indices(size)
    if (start, end, step) == (0, size, 1):
        return x
    if is_frozen(axis):
        part = p.fresh(taken, "a part of a frozen axis")
    elif step > 1 and size % step == 0 and start < step and taken == size // step:
        part = p.fresh(taken)
        p.unify(axis, product(part, p.fresh(step, "a fixed stride")))
    elif step > 1 or taken == 0:
        p.freeze(axis, "takes every n-th index of it")
        part = p.fresh(taken, "a part of a frozen axis")
    else:
        part, rest = axis, []
        if end < size:
            part, tail = _cut(p, part, end)
            rest = [tail]
            p.literal(end, part, firm=True)
            p.freeze_written(abs(given[1]), tail if given[1] < 0 else part)
        if start > 0:
            head, part = _cut(p, part, start)
            p.literal(start, head, firm=True)
            p.literal(end - start, part, firm=True)
            p.freeze_written(abs(given[0]), *([part, *rest] if given[0] < 0 else [head]))
        if length is not None:
            p.freeze_written(length, part)
    return _parts(x, dim, [part])[0]


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


@rule("index", "_unsafe_index")
def index(p: Propagator, x: Value, indices: Sequence[Any], *args: Any) -> Value:
    """Look entries up along some dimensions by number or by a mask; those may not grow."""
    places = _looked_up(p, x, indices)
    axes = [
        p.fresh(n, "looked up by number") if d is None else x.axes[d]
        for d, n in zip(places, p.output_shape(), strict=True)
    ]
    return x.with_axes(places, axes)


def _looked_up(p: Propagator, x: Value, indices: Sequence[Any]) -> list[int | None]:
    """Freeze the dimensions that are looked up, and the indices themselves.

    Args:
        p: The propagator.
        x: The tensor.
        indices: One item for each leading dimension, or None; a mask stands for as many as it has itself.

    Returns:
        For each dimension of what is found, the one of ``x`` that it is, or None for what is looked up.
    """
    used: list[int] = []
    d = rank = 0
    nodes: Any = p.node.args[1]
    for item, node in zip(indices, nodes, strict=True):
        if item is None:
            d += 1
            continue
        mask = node.meta["val"].dtype in (torch.bool, torch.uint8)
        width = len(item.axes) if mask else 1
        rank = max(rank, 1 if mask else len(item.axes))
        for axis in (*x.axes[d : d + width], *item.axes):
            p.freeze(axis, "selects entries of it by a mask" if mask else "looks indices of it up by number")
        used += range(d, d + width)
        d += width
    kept = [d for d in range(len(x.axes)) if d not in used]
    # Indices with a gap between them put what they find first.
    place = used[0] if used and used == list(range(used[0], used[-1] + 1)) else 0
    return [*(d for d in kept if d < place), *(None for _ in range(rank)), *(d for d in kept if d >= place)]


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(p: Propagator, x: Value, indices: Sequence[Any], values: Value, *args: Any) -> Value:
    """Write entries along some dimensions by number or by a mask; the others hold the same units in both."""
    places = _looked_up(p, x, indices)
    for back, axis in enumerate(reversed(values.axes), 1):
        d = places[-back]
        if d is None:
            p.freeze(axis, "writes it to places given by number")
        elif axis.size == x.axes[d].size:
            p.unify(x.axes[d], axis)
        else:
            p.freeze(axis, "stretches it from size one")
    return x


@rule("index_select")
def index_select(p: Propagator, x: Value, dim: int, places: Value) -> Value:
    """Look indices up along one dimension."""
    axes = list(x.axes)
    for axis in (axes[dim], *places.axes):
        p.freeze(axis, "looks indices of it up by number")
    axes[dim] = p.fresh(p.output_shape()[dim], "looked up by number")
    return x.with_axes([None if d == dim % len(axes) else d for d in range(len(axes))], axes)


@rule("gather", "take_along_dim")
def gather(p: Propagator, x: Value, dim: Any, index: Any = None, **kwargs: Any) -> Any:
    """Look indices up along one dimension, in each entry of the others alone."""
    stretched = p.operator_name() == "take_along_dim"  # it takes the index first, and broadcasts
    if stretched:
        dim, index = index, dim
    if dim is None:
        return p._unknown((x, index), kwargs)
    axes: list[Axis] = []
    order: list[int | None] = []
    for d, (mine, other) in enumerate(zip(x.axes, index.axes, strict=True)):
        looked_up = d == dim % len(x.axes)
        if looked_up:
            p.freeze(mine, "looks indices of it up by number")
            p.freeze(other, "has the places to look up along it")
        elif mine.size == other.size:
            p.unify(mine, other)
        elif stretched:
            p.freeze(mine if mine.size == 1 else other, "stretches it from size one")
        else:
            p.freeze(mine, "reads a part of it")
            p.freeze(other, "reads a part of another axis")
        whole = not looked_up and (mine.size == other.size or (stretched and other.size == 1))
        axes.append(mine if whole else other)
        order.append(d if whole else None)
    return x.with_axes(order, axes)


@rule("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "index_reduce")
def scatter(p: Propagator, x: Value, dim: int, *args: Any, **kwargs: Any) -> Value:
    """Write to places along one dimension given by number; the others hold the same units in all tensors."""
    for d, axis in enumerate(x.axes):
        if d == dim % len(x.axes):
            p.freeze(axis, "writes to places of it given by number")
    for value in (*args, *kwargs.values()):
        for d, axis in enumerate(value.axes if isinstance(value, Value) else ()):
            if d == dim % len(x.axes) or len(value.axes) < len(x.axes):  # the index of index_add is a vector
                p.freeze(axis, "writes along it to places given by number")
            elif axis.size == x.axes[d].size:
                p.unify(x.axes[d], axis)
            else:
                p.freeze(x.axes[d], "writes a part of it")
                p.freeze(axis, "writes to a part of another axis")
    return x


@rule("glu")
def glu(p: Propagator, x: Value, dim: int = -1) -> Value:
    """Values times gates, the two halves of one dimension."""
    values, _ = chunk(p, x, 2, dim)
    return Value(values.axes, (), values.layout)
