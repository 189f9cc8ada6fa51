"""A grown copy of a model on which new units can be tried before anything is decided."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from auxin.graph import Graph
from auxin.graph.axes import gather_index, spread
from auxin.graph.capture import clone_tensors, normalise_inputs, unwrap
from auxin.statistics.batches import Batch, precision
from auxin.statistics.units import Units, dim_of
from auxin.surgery import apply
from auxin.surgery.optimizer import regather
from auxin.types import GrowthPlan, LossFn, Slot, Widen


class Shadow:
    """A copy of a model in full precision, grown by surgery itself, so that anything that can grow can be tried.

    Nothing of the user's model is touched. New entries are given in the plan's coordinates, as ``Widen.values`` are:
    the parameter's old shape with one dimension replaced by the new entries; where two groups grow at once, new rows
    read new columns with zero weight.

    Args:
        model: The model, only read.
        graph: Its graph, only read.
        operations: What to grow.

    Attributes:
        graph: The copy's graph, grown.
        parameters: The copy's parameters, detached.
    """

    def __init__(self, model: nn.Module, graph: Graph, operations: Sequence[Widen]) -> None:
        model = unwrap(model)
        self.old = graph
        self.by = {op.group: op.by for op in operations}
        self.model = copy.deepcopy(model)
        self.dtype = precision(next(model.parameters()).dtype)
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(self.dtype)
            tensor.grad = None
        self.graph = copy.deepcopy(graph)
        self.graph.example_inputs = _cast(self.graph.example_inputs, self.dtype)
        apply(GrowthPlan("shadow", tuple(operations), preserves=False), self.model, self.graph, allow_inexact=True)
        self.model.requires_grad_(False).eval()
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        self.device = next(self.model.parameters()).device

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch, loss_fn: LossFn) -> Tensor:
        """Return the loss of one batch with some of the copy's parameters replaced; buffers stay as they are."""
        args, kwargs = clone_tensors(normalise_inputs(batch.inputs))
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return loss_fn(
            functional_call(self.model, {**self.parameters, **parameters, **buffers}, args, kwargs), batch.target
        )

    def slots(self, group: str, *roles: str) -> list[Slot]:
        """Return the slots of a group that are parameters with one of these roles."""
        return [slot for slot in self.old[group].slots if slot.role in roles and slot.parameter in self.parameters]

    def positions(self, group: str, slot: Slot) -> Tensor:
        """Return the indices along a slot's dimension of the grown copy that hold the group's new units, in order."""
        axis = self.graph.axes[slot.parameter][slot.dim]
        others = {self.graph.atom(name): torch.arange(self.old[name].size) for name in self.by}
        kept = gather_index(axis, others)
        del others[self.graph.atom(group)]
        mine = gather_index(axis, others)
        return mine[~torch.isin(mine, kept)]

    def units(self, group: str, slots: Sequence[Slot], chosen: range | None = None) -> Units:
        """Return where the new units lie in tensors of new entries.

        Args:
            group: Name of the group.
            slots: Slots of the group.
            chosen: Which of the new units, by their number; all of them if None.

        Returns:
            Places in tensors of new entries, one row for each chosen unit.
        """
        chosen = range(self.by[group]) if chosen is None else chosen
        leaf = self.graph.atom(group)
        places, shapes = {}, {}
        for slot in slots:
            new = self.positions(group, slot)
            axis = self.graph.axes[slot.parameter][slot.dim]
            unit_of = spread(axis, {leaf: torch.arange(leaf.size, dtype=torch.float64)}, torch.mul)[new]
            rows = [(unit_of == self.old[group].size + j).nonzero().flatten() for j in chosen]
            shape = [axis.size for axis in self.old.axes[slot.parameter]]
            shape[slot.dim] = len(new)
            key = f"{slot.parameter}:{slot.dim}"
            places[key], shapes[key] = torch.stack(rows), tuple(shape)
        return Units(places, shapes)

    def place(self, group: str, key: str, entries: Tensor) -> Tensor:
        """Return a tensor of the grown parameter's shape with new entries in place and zeros elsewhere.

        Args:
            group: Name of the group.
            key: The slot, ``"parameter:dim"``.
            entries: New entries in the plan's coordinates; differentiable.

        Returns:
            The tensor.
        """
        name, dim = key.rpartition(":")[0], dim_of(key)
        new = self.positions(group, Slot(name, dim, "raw"))
        return regather(entries, self._maps(name, dim, new))

    def place_old(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the grown parameter's shape with old entries in place and zeros elsewhere."""
        return regather(tensor, self._maps(name, None, None))

    def _maps(self, name: str, dim: int | None, new: Tensor | None) -> dict[int, Tensor]:
        maps = {}
        for d, axis in enumerate(self.graph.axes[name]):
            if d == dim and new is not None:
                kept = new
            else:
                kept = gather_index(axis, {self.graph.atom(g): torch.arange(self.old[g].size) for g in self.by})
            if d == dim or len(kept) < axis.size:
                maps[d] = torch.full((axis.size,), -1).index_copy(0, kept, torch.arange(len(kept)))
        return maps


def _cast(inputs: object, dtype: torch.dtype) -> object:
    def convert(x: object) -> object:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return torch.utils._pytree.tree_map(convert, inputs)
