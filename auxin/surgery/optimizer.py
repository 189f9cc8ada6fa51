"""Carry an optimizer's state across a change of shape, entry by entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from auxin.surgery.transaction import Transaction


def regather(tensor: Tensor, indices: Mapping[int, Tensor], fill: float | Tensor = 0.0) -> Tensor:
    """Return a tensor whose dimensions are rearranged; entries without a source get ``fill``.

    Args:
        tensor: The old tensor.
        indices: For some dimensions, the old index of each new one, or -1.
        fill: Value of new entries: a number, or a tensor of the new shape.

    Returns:
        A new tensor; entries with a source are bit-equal to it.
    """
    result = tensor.to_dense() if tensor.is_sparse else tensor
    new = torch.zeros((), dtype=torch.bool, device=tensor.device)
    for dim, index in indices.items():
        index = index.to(tensor.device)
        result = result.index_select(dim, index.clamp(min=0))
        shape = [1] * tensor.ndim
        shape[dim] = -1
        new = new | (index < 0).view(shape)
    values = fill.to(result) if isinstance(fill, Tensor) else torch.full_like(result, fill)
    return torch.where(new, values, result)


def resize_state(
    optimizer: Optimizer, parameter: Tensor, shape: Sequence[int], indices: Mapping[int, Tensor], change: Transaction
) -> None:
    """Carry the state of one parameter to its new shape.

    Every state tensor of the parameter's shape, and every factored one (a dimension of size one where the parameter's
    is larger), keeps its old entries bit for bit; new entries start as the optimizer itself would start them.

    Args:
        optimizer: Any optimizer with per-parameter state.
        parameter: The parameter, already at its new shape.
        shape: Its old shape.
        indices: For each resized dimension, the old index of each new one, or -1.
        change: Where to record the changes.
    """
    state = optimizer.state.get(parameter)
    if not state:
        return
    group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), optimizer.defaults)
    for key, value in list(state.items()):
        if not isinstance(value, Tensor) or value.ndim != len(shape) or value.ndim == 0:
            continue
        if any(mine not in (1, full) for mine, full in zip(value.shape, shape, strict=True)):
            continue
        matching = {d: index for d, index in indices.items() if value.shape[d] == shape[d]}
        if matching:
            change.set_item(state, key, regather(value, matching, _start(key, group, parameter, value)))


def _start(key: str, group: Mapping[str, Any], parameter: Tensor, value: Tensor) -> float | Tensor:
    """Return what the optimizer starts a new entry of this state with."""
    if key == "step_size":  # Rprop: the first step of every entry
        return float(group.get("lr", 0.0))
    if key == "sum":  # Adagrad
        return float(group.get("initial_accumulator_value", 0.0))
    if key == "ax" and value.ndim == parameter.ndim:  # ASGD: the running average of the parameter itself
        return parameter.detach()
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
    sizes = [torch.Size(shape).numel() for shape in shapes]
    old_cache = optimizer._numel_cache
    change.on_rollback(lambda: setattr(optimizer, "_numel_cache", old_cache))
    optimizer._numel_cache = None

    def carry(value: Any) -> Any:
        if isinstance(value, list):
            return [carry(item) for item in value]
        if not isinstance(value, Tensor) or value.ndim != 1 or value.numel() != sum(sizes):
            return value
        parts = value.split(sizes)
        return torch.cat([
            regather(part.view(shape), indices.get(id(p), {})).reshape(-1) if id(p) in indices else part
            for part, shape, p in zip(parts, shapes, parameters, strict=True)
        ])  # fmt: skip

    state = optimizer.state.get(parameters[0], {})
    for key, value in list(state.items()):
        change.set_item(state, key, carry(value))


def add_parameters(
    optimizer: Optimizer, model: nn.Module, new: Mapping[str, Tensor], host: str, change: Transaction
) -> None:
    """Put new parameters into the groups that hold the parameters most like them.

    A new parameter joins the group of an existing one with the same last name in a module of the same type (else
    one with as many dimensions), the last such before the block if there is one: a group without weight decay for norms
    keeps doing its work.

    Args:
        optimizer: The optimizer.
        model: The model, the new block already in it.
        new: The new parameters by dotted name.
        host: Path of the module that the block follows.
        change: Where to record the changes.
    """
    place = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    paths = [path for path, _ in model.named_modules()]
    known = [(name, p) for name, p in model.named_parameters() if id(p) in place]
    earlier = [(n, p) for n, p in known if paths.index(n.rpartition(".")[0]) <= paths.index(host)]
    for name, parameter in new.items():
        same_kind = [[p for n, p in among if _kind(model, n) == _kind(model, name)] for among in (earlier, known)]
        same_rank = [[p for _, p in among if p.ndim == parameter.ndim] for among in (earlier, known)]
        like = next((found[-1] for found in (*same_kind, *same_rank) if found), None)
        group = optimizer.param_groups[0 if like is None else place[id(like)]]
        group["params"].append(parameter)
        change.on_rollback(lambda group=group: group["params"].pop())  # type: ignore[misc]
        if "param_names" in group:
            group["param_names"].append(name)
            change.on_rollback(lambda group=group: group["param_names"].pop())  # type: ignore[misc]


def _kind(model: nn.Module, name: str) -> tuple[type, str]:
    """Return the type of the module that owns a parameter, and the parameter's last name."""
    path, _, leaf = name.rpartition(".")
    return type(model.get_submodule(path)), leaf
