"""Carry an optimizer's state across a change of shape, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils import _pytree as pytree

from auxin.errors import ConfigError
from auxin.surgery.transaction import Transaction

AVERAGES = ("ax", "z", "lookahead_slow_buff")
"""States that start as a copy of the parameter and average it: of ASGD, schedule-free optimizers, timm's Lookahead."""


def parameter_order(model: nn.Module, optimizers: Iterable[Optimizer]) -> list[list[list[str]]]:
    """Return the names of the parameters in each group of each optimizer, in the order that its state goes by."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[[names.get(id(p), "") for p in group["params"]] for group in one.param_groups] for one in optimizers]


def regather(tensor: Tensor, indices: Mapping[int, Tensor], fill: float | Tensor = 0.0) -> Tensor:
    """Return a tensor whose dimensions are rearranged; entries without a source get ``fill``.

    Args:
        tensor: The old tensor.
        indices: For some dimensions, the old index of each new one, or -1.
        fill: Value of new entries: a number, or a tensor of the new shape.

    Returns:
        A new tensor; entries with a source are bit-equal to it. A sparse one stays sparse, with fills of zero.
    """
    if tensor.is_sparse:
        return _regather_sparse(tensor.coalesce(), indices)
    result = tensor
    new = torch.zeros((), dtype=torch.bool, device=tensor.device)
    for dim, index in indices.items():
        index = index.to(tensor.device)
        result = result.index_select(dim, index.clamp(min=0))
        shape = [1] * tensor.ndim
        shape[dim] = -1
        new = new | (index < 0).view(shape)
    values = fill.to(result) if isinstance(fill, Tensor) else torch.full_like(result, fill)
    return laid_out_like(torch.where(new, values, result), tensor)


def _regather_sparse(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """Return a sparse tensor rearranged; rows of an embedding's gradient that it lists stay listed, also zeros."""
    first = tensor.sparse_dim()
    if min(indices, default=first) < first:
        return regather(tensor.to_dense(), indices).to_sparse(first)
    values = regather(tensor.values(), {dim - first + 1: index for dim, index in indices.items()})
    shape = (*tensor.shape[:first], *values.shape[1:])
    return torch.sparse_coo_tensor(tensor.indices(), values, shape, is_coalesced=True, check_invariants=False)


def laid_out_like(new: Tensor, old: Tensor) -> Tensor:
    """Return a tensor in the memory format of another: fused optimizers pair entries by their place in memory.

    Args:
        new: The tensor.
        old: One of as many dimensions, contiguous or with its channels last.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(old.ndim)
    if last and old.layout == torch.strided and not old.is_contiguous() and old.is_contiguous(memory_format=last):
        return new.contiguous(memory_format=last)
    return new.contiguous()


def resize_state(
    optimizer: Optimizer, parameter: Tensor, shape: Sequence[int], indices: Mapping[int, Tensor],
    average: Callable[[Tensor], tuple[Tensor, Any]], change: Transaction,
) -> None:  # fmt: skip
    """Carry the state of one parameter to its new shape.

    A state tensor is understood if its entries run along some of the parameter's dimensions, the others being of size
    one or left out, or along all of them end to end. Then its old entries stay bit for bit and new ones start as the
    optimizer itself would start them; an average of the parameter is resized as the parameter was. Of the others, those
    that have no old size of a resized dimension, alone or multiplied with its neighbours', are left as they are.

    Adam counts one step for the whole tensor: moments that start at zero late are not corrected for it, and the first
    update of a new entry is (1 - β1)/sqrt(1 - β2), 3.2 by default, times the learning rate. Measured, that helps new
    units (experiments/methods/README.md).

    Args:
        optimizer: Any optimizer with per-parameter state.
        parameter: The parameter, already at its new shape.
        shape: Its old shape.
        indices: For each resized dimension, the old index of each new one, or -1.
        average: Resizes a tensor of the old shape as the parameter was.
        change: Where to record the changes.

    Raises:
        ConfigError: If a state depends on the old sizes in another way, or in one of several ways.
    """
    state = optimizer.state.get(parameter)
    if not state or isinstance(optimizer, LBFGS):
        return
    group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), optimizer.defaults)

    def carry(key: str, value: Tensor) -> Tensor:
        if key in AVERAGES and list(value.shape) == list(shape):
            return average(value)[0]
        new = _carried(key, value, shape, indices, _start(key, group))
        if new is None:
            raise ConfigError(
                f"{type(optimizer).__name__} keeps a state {key!r} of shape {tuple(value.shape)}, which depends on a "
                f"parameter's old shape {tuple(shape)} in a way that cannot be carried to its new one: pass "
                "carry_state=False to Grower, which starts the optimizer's state anew."
            )
        return new

    for key, value in list(state.items()):
        change.set_item(state, key, pytree.tree_map_only(Tensor, partial(carry, key), value))


def _carried(
    key: str, value: Tensor, shape: Sequence[int], indices: Mapping[int, Tensor], fill: float
) -> Tensor | None:
    """Return a state at the new sizes, or None if it depends on the old ones in no known or no single way."""
    readings = _readings(key, list(value.shape), list(shape))
    if not readings:
        return None if _depends(value.shape, shape, indices) else value
    first, *others = [_along(value, dims, shape, indices, fill) for dims in readings]
    return first if all(torch.equal(first, other) for other in others) else None


def _depends(size: Sequence[int], shape: Sequence[int], resized: Iterable[int]) -> bool:
    """Return whether a size of a state is a resized dimension's old one, alone or multiplied with its neighbours'."""
    products = {math.prod(shape[i : j + 1]) for d in resized for i in range(d + 1) for j in range(d, len(shape))}
    return any(n in products and n > 1 for n in size)


def _readings(key: str, size: list[int], shape: list[int]) -> list[tuple[int, ...]]:
    """Return which of the parameter's dimensions a state of this size may run along: each choice that fits.

    A factor of rows (its name says "row") lacks the last dimension, one of columns ("col") the second last.
    """
    every = tuple(range(len(shape)))
    choices = [dims for count in range(len(shape) + 1) for dims in combinations(every, count)]
    fitting = [
        dims for dims in choices
        if size in ([shape[d] for d in dims], [n if d in dims else 1 for d, n in enumerate(shape)])
        or (dims == every and size == [math.prod(shape)])
    ]  # fmt: skip
    for word, lacking in (("row", len(shape) - 1), ("col", len(shape) - 2)):
        factor = tuple(d for d in every if d != lacking)
        if word in key.split("_") and factor in fitting:
            return [factor]
    if size == shape:
        return [every]
    return [] if size == [1] else fitting  # a single number is the whole parameter's


def _along(
    value: Tensor, dims: Sequence[int], shape: Sequence[int], indices: Mapping[int, Tensor], fill: float
) -> Tensor:
    """Return a state that runs along some of the parameter's dimensions, resized."""
    resized = {d: indices[d] for d in dims if d in indices}
    if not resized:
        return value
    new = regather(value.reshape([n if d in dims else 1 for d, n in enumerate(shape)]), resized, fill)
    if value.ndim == len(shape):
        return new
    return new.reshape([-1] if value.ndim == 1 else [new.shape[d] for d in dims])


def _start(key: str, group: Mapping[str, Any]) -> float:
    """Return what the optimizer starts a new entry of this state with."""
    if key == "step_size":  # Rprop: the first step of every entry
        return float(group.get("lr", 0.0))
    if key == "sum":  # Adagrad
        return float(group.get("initial_accumulator_value", 0.0))
    return 0.0


def resize_flat_state(
    optimizer: Optimizer, old_shapes: Mapping[int, Sequence[int]], indices: Mapping[int, Mapping[int, Tensor]],
    change: Transaction,
) -> None:  # fmt: skip
    """Carry L-BFGS's curvature pairs, which are vectors over all parameters laid end to end.

    Args:
        optimizer: The optimizer; anything but L-BFGS is left alone.
        old_shapes: For each resized parameter's ``id``, its old shape.
        indices: For each resized parameter's ``id``, the index maps of its dimensions.
        change: Where to record the changes.
    """
    if not isinstance(optimizer, LBFGS):
        return
    parameters: list[Tensor] = optimizer._params
    shapes = [tuple(old_shapes.get(id(p), p.shape)) for p in parameters]
    sizes = [math.prod(shape) for shape in shapes]

    def resized(flat: Tensor) -> Tensor:
        parts = torch.split(flat, sizes)
        return torch.cat([
            regather(part.view(shape), indices.get(id(p), {})).reshape(-1) if id(p) in indices else part
            for part, shape, p in zip(parts, shapes, parameters, strict=True)
        ])  # fmt: skip

    replace_flat_state(optimizer, sum(sizes), resized, change)


def replace_flat_state(
    optimizer: LBFGS, entries: int, resized: Callable[[Tensor], Tensor], change: Transaction
) -> None:
    """Resize the vectors in L-BFGS's state that have as many entries as all parameters had until now.

    Args:
        optimizer: The optimizer.
        entries: That number.
        resized: Returns such a vector at its new length.
        change: Where to record the changes.
    """
    old_cache = optimizer._numel_cache
    change.on_rollback(lambda: setattr(optimizer, "_numel_cache", old_cache))
    optimizer._numel_cache = None

    def carry(value: Tensor) -> Tensor:
        return resized(value) if value.shape == (entries,) else value

    state = optimizer.state.get(optimizer._params[0], {})
    for key, value in list(state.items()):
        change.set_item(state, key, pytree.tree_map_only(Tensor, carry, value))
