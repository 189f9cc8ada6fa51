"""A grown copy of a model on which new units can be tried before anything is decided."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from auxin.graph import Graph
from auxin.graph.axes import gather_index, spread
from auxin.graph.capture import clone_tensors, normalise_inputs, unwrap
from auxin.statistics.batches import Batch, in_precision, precise_copy, precision
from auxin.statistics.units import Units, dim_of, new_units
from auxin.surgery import apply
from auxin.surgery.optimizer import regather
from auxin.surgery.widen import outgoing_scale
from auxin.types import GrowthPlan, LossFn, Slot, Widen


class Shadow:
    """A copy of a model in full precision, grown by surgery itself, so that anything that can grow can be tried.

    Nothing of the user's model is touched. New entries are given in the plan's coordinates, as ``Widen.values`` are:
    the parameter's old shape with one dimension replaced by the new entries.

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
        self.operations = {op.group: op for op in operations}
        self.by = {op.group: op.by for op in operations}
        self.model, self.dtype = precise_copy(model), precision(model)
        self.graph = copy.deepcopy(graph)
        self.graph.example_inputs = _cast(self.graph.example_inputs, self.dtype)
        if operations:
            apply(GrowthPlan("shadow", tuple(operations), preserves=False), self.model, self.graph, allow_inexact=True)
        self.model.requires_grad_(False).eval()
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        self.device = next(self.model.parameters()).device
        self._maps: dict[tuple[str, str, bool], tuple[dict[int, Tensor], list[Tensor]]] = {}

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch, loss_fn: LossFn) -> Tensor:
        """Return the loss of one batch with some of the copy's parameters replaced; buffers stay as they are."""
        return loss_fn(self.output(parameters, batch.inputs), batch.target)

    def output(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """Return the output with some of the copy's parameters replaced; buffers stay as they are."""
        args, kwargs = clone_tensors(normalise_inputs(inputs))
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return functional_call(self.model, {**self.parameters, **parameters, **buffers}, args, kwargs)

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

    def units(self, group: str, slots: Sequence[Slot], chosen: Sequence[int] | None = None) -> Units:
        """Return where the new units lie in tensors of new entries.

        Args:
            group: Name of the group.
            slots: Slots of the group.
            chosen: Which of the new units, by their number; all of them if None.

        Returns:
            Places in tensors of new entries, one row for each chosen unit.
        """
        return new_units(self.old, group, slots, self.by[group], chosen)

    def place(self, group: str, key: str, entries: Tensor) -> Tensor:
        """Return a tensor of the grown parameter's shape with a group's new entries in place and zeros elsewhere.

        Along the other dimensions, and the other factors of their own (groups times channels), the entries follow what
        grew there, as surgery makes them: a copied unit has its parent's entries (a consumer's are shared out), a fresh
        one none.

        Args:
            group: Name of the group.
            key: The slot, ``"parameter:dim"``.
            entries: New entries in the plan's coordinates; differentiable.

        Returns:
            The tensor.
        """
        return self._placed(group, key, entries, new=True)

    def place_old(self, group: str, key: str, tensor: Tensor) -> Tensor:
        """Return the same for changes of a group's old entries, given as a tensor of the parameter's old shape."""
        return self._placed(group, key, tensor, new=False)

    def _placed(self, group: str, key: str, entries: Tensor, new: bool) -> Tensor:
        if (group, key, new) not in self._maps:
            self._maps[group, key, new] = self._index_maps(group, key, new)
        maps, scales = self._maps[group, key, new]
        result = regather(entries, maps)
        for scale in scales:
            result = result * scale
        return result

    def _index_maps(self, group: str, key: str, new: bool) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Return, for each dimension that grew, the entry each index takes (-1: none), and factors on consumers."""
        name, dim = key.rpartition(":")[0], dim_of(key)
        maps, scales = dict[int, Tensor](), list[Tensor]()
        axes = zip(self.graph.axes[name], self.old.axes[name], strict=True)
        for d, (axis, before) in enumerate(axes):
            grown = {g: op for g, op in self.operations.items() if d != dim or g != group}
            parents = {
                g: torch.cat([torch.arange(self.old[g].size), torch.tensor(op.parents or (-1,) * op.by)])
                for g, op in grown.items()
            }
            if d == dim:
                kept = gather_index(axis, {self.graph.atom(g): torch.arange(self.old[g].size) for g in self.by})
                kept = self.positions(group, Slot(name, dim, "raw")) if new else kept
                own = torch.full((axis.size,), -1).index_copy(0, kept, torch.arange(len(kept)))
                source = gather_index(axis, {self.graph.atom(g): units for g, units in parents.items()})
                maps[d] = torch.where(source < 0, -1, own[source])
            else:
                index = gather_index(before, {self.old.atom(g): units for g, units in parents.items()})
                if len(index) > before.size:
                    maps[d] = index
            shared = {
                self.graph.atom(g): outgoing_scale(self.old.atom(g), op)
                for g, op in grown.items()
                if op.parents
                and any(s.parameter == name and s.dim == d and s.role == "consumer" for s in self.old[g].slots)
            }
            if shared:
                shape = [-1 if i == d else 1 for i in range(len(self.graph.axes[name]))]
                scales.append(spread(axis, shared, torch.mul).to(self.device, self.dtype).view(shape))
        return maps, scales


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map(lambda x: in_precision(x, dtype) if isinstance(x, Tensor) else x, inputs)
