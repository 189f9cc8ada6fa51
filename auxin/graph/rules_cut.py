"""Propagation rules: joining, cutting and selecting along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from auxin.graph.axes import Axis, MismatchError, concat, cut, is_frozen, product
from auxin.graph.propagate import Propagator, Value, rule
from auxin.graph.rules_shape import unsqueeze


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


@rule("index")
def index(p: Propagator, x: Value, indices: Sequence[Any], *args: Any) -> Value:
    """Look indices up along some dimensions, which may not grow."""
    used = [d for d, item in enumerate(indices) if item is not None]
    for d in used:
        p.freeze(x.axes[d], "looks indices of it up by number")
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


@rule("glu")
def glu(p: Propagator, x: Value, dim: int = -1) -> Value:
    """Values times gates, the two halves of one dimension."""
    values, _ = chunk(p, x, 2, dim)
    return Value(values.axes, (), values.layout)
