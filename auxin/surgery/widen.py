"""Resize every tensor and attribute that holds the units of one width group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auxin.errors import ConfigError, FrozenError, GrowthError
from auxin.graph import Graph
from auxin.graph.axes import Atom, Axis, gather_index, size_with, spread
from auxin.graph.capture import repeats
from auxin.graph.values import Attribute
from auxin.surgery.optimizer import laid_out_like, regather, resize_flat_state, resize_state
from auxin.surgery.transaction import Transaction
from auxin.types import Role, Slot, Widen

NEUTRAL: dict[Role, float] = {"scale": 1.0, "variance": 1.0, "mask": 1.0}
"""What a new entry starts with, by role, where nothing is copied or given (0 elsewhere; raw: the mean of the old)."""


@dataclass
class Lift:
    """How a tensor's dimensions have changed since the plan was made: for values given in the plan's coordinates."""

    index: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    scale: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def apply(self, values: Tensor, name: str, skip: int) -> Tensor:
        """Bring given values to the tensor's current sizes along every dimension but ``skip``."""
        for d in range(values.ndim):
            if d == skip or (name, d) not in self.index:
                continue
            values = regather(values, {d: self.index[name, d]})
            shape = [1] * values.ndim
            shape[d] = -1
            values = values * self.scale[name, d].to(values).view(shape)
        return values

    def copy(self) -> Lift:
        """Return a copy that can go on by itself."""
        return Lift(dict(self.index), dict(self.scale))

    def note(self, name: str, dim: int, copied: Tensor, scale: Tensor) -> None:
        """Record one more change of a dimension."""
        key = (name, dim)
        old = self.index.get(key)
        old_scale = self.scale.get(key)
        safe = copied.clamp(min=0)
        self.index[key] = copied if old is None else torch.where(copied < 0, -1, old[safe])
        self.scale[key] = scale if old_scale is None else scale * old_scale[safe]


def check_widen(graph: Graph, op: Widen, allow_inexact: bool) -> None:
    """Refuse a widening that cannot be done.

    Args:
        graph: The model's graph.
        op: The widening.
        allow_inexact: Whether growth that changes the function is accepted.

    Raises:
        ConfigError: If the number of new units or their parents make no sense.
        FrozenError: If the group may not grow.
    """
    group = graph[op.group]
    if type(op.by) is not int or op.by < 1:
        raise ConfigError(f"Group {op.group!r} can only grow by a whole number of at least 1, not {op.by!r}.")
    if group.frozen:
        raise FrozenError(f"Group {op.group!r} is frozen: {group.frozen}. Choose one of the growable groups instead.")
    if group.inexact and not allow_inexact:
        raise FrozenError(
            f"Growing group {op.group!r} would change the function: {group.inexact}. "
            "Pass allow_inexact=True to grow it all the same."
        )
    if op.parents and (len(op.parents) != op.by or not all(-1 <= p < group.size for p in op.parents)):
        raise ConfigError(f"Group {op.group!r} needs {op.by} parents, each -1 or a unit below {group.size}.")
    shared = graph.norms_fan_out(op.group)
    if shared and not allow_inexact and any(parent >= 0 for parent in op.parents):
        raise FrozenError(
            f"Copies in group {op.group!r} would share the weights that read it and change the function: {shared}. "
            "Grow it by fresh units, or pass allow_inexact=True."
        )
    if op.shares is not None and (not op.parents or len(op.shares) != op.by):
        raise ConfigError(f"Group {op.group!r} needs one share for each of its {op.by} copies.")


def unit_sources(leaf: Atom, op: Widen) -> tuple[Tensor, Tensor]:
    """Return the unit each unit is copied from (-1: none) with fresh units as parents say, and with all new ones -1."""
    old = torch.arange(leaf.size)
    parents = torch.tensor(op.parents or (-1,) * op.by)
    return torch.cat([old, parents]), torch.cat([old, torch.full((op.by,), -1)])


def outgoing_scale(leaf: Atom, op: Widen) -> Tensor:
    """Return the factor on each unit's outgoing weights: copies share their parent's, so that the sum is unchanged."""
    scale = torch.ones(leaf.size + op.by, dtype=torch.float64)
    if op.shares is not None:
        for j, (parent, share) in enumerate(zip(op.parents, op.shares, strict=True)):
            if parent >= 0:
                scale[leaf.size + j] = share
                scale[parent] -= share
        return scale
    for parent, copies in Counter(p for p in op.parents if p >= 0).items():
        scale[parent] = 1 / (1 + copies)
    for j, parent in enumerate(op.parents):
        if parent >= 0:
            scale[leaf.size + j] = scale[parent]
    return scale


def resize_axis(tensor: Tensor, axis: Axis, leaf: Atom, slot: Slot, op: Widen, lift: Lift) -> tuple[Tensor, Tensor]:
    """Resize one axis of one tensor.

    Args:
        tensor: The tensor at its current shape.
        axis: The axis, the atom still at its old size.
        leaf: The atom that grows.
        slot: Which axis it is, and its role.
        op: The widening.
        lift: Earlier changes of the same plan.

    Returns:
        The resized tensor, and for each index of the axis the old one or -1, for the optimizer's state.

    Raises:
        ConfigError: If given values have another shape than the new entries.
        GrowthError: If a buffer's pattern is no longer the same for all units.
    """
    sources, fresh = unit_sources(leaf, op)
    copied, kept = gather_index(axis, {leaf: sources}), gather_index(axis, {leaf: fresh})
    dim = slot.dim
    fill: float | Tensor = NEUTRAL.get(slot.role, 0.0)
    if slot.role == "repeated":
        if not repeats(tensor, dim):
            raise GrowthError(f"the buffer {slot.parameter} no longer repeats one pattern for all units")
        copied = torch.where(copied < 0, 0, copied)
    if slot.role == "raw":
        fill = tensor.mean(dim, keepdim=True).expand(
            [len(copied) if d == dim else n for d, n in enumerate(tensor.shape)]
        )
    result = regather(tensor, {dim: copied}, fill)
    shape = [1] * tensor.ndim
    shape[dim] = -1
    scale = torch.ones(len(copied), dtype=torch.float64)
    if slot.role == "consumer" and op.parents:
        scale = spread(axis, {leaf: outgoing_scale(leaf, op)}, torch.mul)
        result = torch.where((scale != 1).to(result.device).view(shape), result * scale.to(result).view(shape), result)
    new = (kept < 0).nonzero().flatten()
    for entries, of_copies in ((op.values, False), (op.offsets, True)):
        given = entries.get(f"{slot.parameter}:{dim}")
        if given is None:
            continue
        given = lift.apply(given.to(result), slot.parameter, skip=dim)
        alive = slot.role == "producer" and not of_copies
        given = _own_entries(given, axis, leaf, slot, op, new, lift, alive)
        wanted = [len(new) if d == dim else n for d, n in enumerate(tensor.shape)]
        if list(given.shape) != wanted:
            raise ConfigError(
                f"The new entries of {slot.parameter} (dimension {dim}) have shape {tuple(given.shape)}, "
                f"but growing group {op.group!r} by {op.by} needs {tuple(wanted)}."
            )
        put = partial(_offset, result) if of_copies else partial(_fill, result, op)
        result = put(dim, given, copied, kept)
    lift.note(slot.parameter, dim, copied, scale)
    return result, kept


def _fill(result: Tensor, op: Widen, dim: int, given: Tensor, copied: Tensor, kept: Tensor) -> Tensor:
    """Put given values into new entries: all of them, or with offsets those that are not copies."""
    new = (kept < 0).nonzero().flatten()
    chosen = (copied[new] < 0) if op.offsets else torch.ones_like(new, dtype=torch.bool)
    rows = chosen.nonzero().flatten().to(given.device)
    return result.index_copy(dim, new[chosen].to(result.device), given.index_select(dim, rows))


def _offset(result: Tensor, dim: int, given: Tensor, copied: Tensor, kept: Tensor) -> Tensor:
    """Add offsets to the parents' entries and subtract them from their copies'."""
    new = (kept < 0).nonzero().flatten()
    new = new[copied[new] >= 0]
    rows = (copied[kept < 0] >= 0).nonzero().flatten().to(given.device)
    place = torch.empty_like(kept)
    place[kept[kept >= 0]] = (kept >= 0).nonzero().flatten()
    given = given.index_select(dim, rows)
    result = result.index_add(dim, place[copied[new]].to(result.device), given)
    return result.index_add(dim, new.to(result.device), given, alpha=-1)


def _own_entries(
    given: Tensor, axis: Axis, leaf: Atom, slot: Slot, op: Widen, new: Tensor, lift: Lift, alive: bool
) -> Tensor:
    """Bring new entries to an axis of which another factor has grown since the plan was made (groups times channels).

    New indices that meet a copied unit of the other factor copy its entry, at its scale; those that meet a fresh one
    are zero, or as for one of the old.

    Args:
        given: New entries along the axis as it was when the plan was made.
        axis: The axis now.
        leaf: The atom that grows.
        slot: Which axis it is.
        op: The widening.
        new: Indices of the new entries now.
        lift: Earlier changes of the same plan.
        alive: Whether those that meet a fresh unit are not zero: with nothing in and nothing out it would never learn.

    Returns:
        New entries along the axis as it is now.
    """
    before = lift.index.get((slot.parameter, slot.dim))
    if before is None or given.shape[slot.dim] == len(new):
        return given
    sources = torch.cat([torch.arange(leaf.size), torch.zeros(op.by, dtype=torch.int64)])
    twin = gather_index(axis, {leaf: sources})[new]
    unit = spread(axis, {leaf: torch.arange(leaf.size + op.by)}, torch.mul)[new].tolist()
    numbers: dict[tuple[float, int], int] = {}
    # New units follow old ones within their segment, so the first of several equal entries is the plan's own.
    pairs = zip(unit, before[twin].tolist(), strict=True)
    index = [-1 if old < 0 else numbers.setdefault((u, old), len(numbers)) for u, old in pairs]
    if len(numbers) != given.shape[slot.dim]:
        return given
    if alive:
        choices = {u: cycle([n for (of, _), n in numbers.items() if of == u]) for u in unit}
        index = [next(choices[u]) if n < 0 else n for u, n in zip(unit, index, strict=True)]
    shape = [1] * given.ndim
    shape[slot.dim] = -1
    factor = lift.scale[slot.parameter, slot.dim][twin]
    return regather(given, {slot.dim: torch.tensor(index)}) * factor.to(given).view(shape)


def widen_model(
    model: nn.Module, graph: Graph, op: Widen, optimizers: Sequence[Optimizer], copies: Sequence[nn.Module],
    lift: Lift, change: Transaction,
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:  # fmt: skip
    """Carry out one widening on a model, its optimizers and its averaged copies.

    Args:
        model: The model.
        graph: Its graph; the group's size is updated.
        op: The widening, already checked.
        optimizers: Optimizers whose state follows.
        copies: Modules of the same structure (averaged weights) that are resized alike.
        lift: Earlier changes of the same plan.
        change: Where to record the changes.

    Returns:
        New shapes by tensor name, and new attribute values by ``module:name``.
    """
    leaf, earlier, op = graph.atom(op.group), lift.copy(), _without_padding(model, op)
    slots: dict[str, list[Slot]] = {}
    for slot in graph[op.group].slots:
        slots.setdefault(slot.parameter, []).append(slot)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes: dict[str, tuple[int, ...]] = {}
    old_shapes: dict[int, Sequence[int]] = {}
    maps: dict[int, Mapping[int, Tensor]] = {}

    def alike(name: str, average: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        return _resize_tensor(average, graph.axes[name], leaf, slots[name], op, earlier.copy())

    with torch.no_grad():
        for name, mine in slots.items():
            tensor = tensors[name]
            old_shape = tuple(tensor.shape)
            new, indices = _resize_tensor(tensor, graph.axes[name], leaf, mine, op, lift)
            shapes[name] = tuple(new.shape)
            _replace(tensor, new, indices, change)
            for optimizer in optimizers:
                resize_state(optimizer, tensor, old_shape, indices, partial(alike, name), change)
            old_shapes[id(tensor)], maps[id(tensor)] = old_shape, indices
        for optimizer in optimizers:
            resize_flat_state(optimizer, old_shapes, maps, change)
        for copy in copies:
            theirs = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
            for name in slots:
                new, indices = alike(name, theirs[name])
                _replace(theirs[name], new, indices, change)
    old_size = leaf.size
    change.on_rollback(lambda: setattr(leaf, "size", old_size))
    leaf.size = old_size + op.by
    attributes = _update_attributes([model, *copies], graph, leaf, change)
    return shapes, attributes


def _without_padding(model: nn.Module, op: Widen) -> Widen:
    """Return a widening whose given entries leave the padding row of an embedding alone: no gradient corrects it."""

    def cleared(key: str, given: Tensor) -> Tensor:
        path, _, leaf = key.partition(":")[0].rpartition(".")
        owner = model.get_submodule(path)
        row = owner.padding_idx if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and leaf == "weight" else None
        if row is None:
            return given
        return given.index_fill(0, torch.tensor(row, device=given.device), 0)

    values, offsets = ({key: cleared(key, t) for key, t in entries.items()} for entries in (op.values, op.offsets))
    return replace(op, values=values, offsets=offsets)


def _resize_tensor(
    tensor: Tensor, axes: Sequence[Axis], leaf: Atom, slots: Sequence[Slot], op: Widen, lift: Lift
) -> tuple[Tensor, dict[int, Tensor]]:
    new, indices = tensor.detach(), dict[int, Tensor]()
    for slot in slots:
        new, indices[slot.dim] = resize_axis(new, axes[slot.dim], leaf, slot, op, lift)
    return laid_out_like(new, tensor), indices


def _replace(tensor: Tensor, new: Tensor, indices: Mapping[int, Tensor], change: Transaction) -> None:
    change.replace(tensor, new, None if tensor.grad is None else regather(tensor.grad, indices))


def _update_attributes(models: Sequence[nn.Module], graph: Graph, leaf: Atom, change: Transaction) -> dict[str, Any]:
    """Set every size attribute that the grown atom takes part in."""
    values: dict[str, Any] = {}
    for attribute in graph.attributes:
        if leaf in set(attribute.axis.atoms()):
            values |= set_size(models, attribute, change)
    return values


def set_size(models: Sequence[nn.Module], attribute: Attribute, change: Transaction) -> dict[str, Any]:
    """Give a size attribute the size that its axis has now.

    Args:
        models: The model and its averaged copies.
        attribute: The attribute.
        change: Where to record the change.

    Returns:
        Its new value by ``module:name``.
    """
    value: Any = size_with(attribute.axis, {})
    for model in models:
        module = model.get_submodule(attribute.module)
        if attribute.index is not None:
            value = _with_entry(getattr(module, attribute.name), attribute.index, size_with(attribute.axis, {}))
        change.set_attribute(module, attribute.name, value)
    return {f"{attribute.module}:{attribute.name}": value}


def _with_entry(sizes: Any, index: int | str, size: int) -> Any:
    """Return sizes, a dict, a list, a tuple, or a tuple of names and sizes, with one of them replaced."""
    if isinstance(sizes, dict):
        return {**sizes, index: size}
    entries = (
        entry if place != index else (entry[0], size) if isinstance(entry, tuple) else size
        for place, entry in enumerate(sizes)
    )
    return list(entries) if isinstance(sizes, list) else tuple(entries)
