"""Vectors per unit: the entries of several parameters that belong to one neuron, laid end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auxin.graph import Graph
from auxin.graph.axes import gather_index, spread
from auxin.types import Slot


@dataclass(frozen=True)
class Units:
    """Where the entries of each unit lie in a few parameters.

    Attributes:
        places: For each slot key ``"parameter:dim"``, indices along ``dim``, int64 of shape (units, r).
        shapes: For each slot key, the tensor's shape.

    Example:
        >>> import torch
        >>> units = Units({"weight:0": torch.tensor([[2], [0]])}, {"weight:0": (3, 2)})
        >>> units.gather({"weight:0": torch.arange(6.0).view(3, 2)}).tolist()
        [[4.0, 5.0], [0.0, 1.0]]
    """

    places: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def number(self) -> int:
        """Number of units."""
        return len(next(iter(self.places.values())))

    @property
    def length(self) -> int:
        """Number of entries of one unit."""
        return sum(self.widths)

    @property
    def widths(self) -> list[int]:
        """Number of entries of one unit in each slot."""
        return [
            index.shape[1] * (torch.Size(self.shapes[key]).numel() // max(self.shapes[key][dim_of(key)], 1))
            for key, index in self.places.items()
        ]

    def gather(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the units' entries.

        Args:
            tensors: One tensor for each slot key.

        Returns:
            Tensor of shape (units, entries of one unit).
        """
        parts = []
        for key, index in self.places.items():
            rows = tensors[key].movedim(dim_of(key), 0)
            parts.append(rows[index.to(rows.device)].reshape(len(index), -1))
        return torch.cat(parts, dim=1)

    def scatter(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return, for each slot key, a tensor of its shape with the units' entries in place and zeros elsewhere."""
        result = {}
        for (key, index), part in zip(self.places.items(), vectors.split(self.widths, dim=1), strict=True):
            dim, shape = dim_of(key), self.shapes[key]
            rest = [n for d, n in enumerate(shape) if d != dim]
            flat = part.reshape(index.numel(), *rest)
            zeros = flat.new_zeros(shape[dim], *rest)
            result[key] = zeros.index_add(0, index.reshape(-1).to(flat.device), flat).movedim(0, dim)
        return result


def new_units(graph: Graph, group: str, slots: Sequence[Slot], by: int, chosen: Sequence[int] | None = None) -> Units:
    """Return where new units would lie in tensors of new entries, as ``Widen.values`` holds them.

    Args:
        graph: The graph before growth.
        group: Name of the group.
        slots: Slots of the group.
        by: Number of new units.
        chosen: Which of them, by their number; all if None.

    Returns:
        Places, one row for each chosen unit.
    """
    leaf = graph.atom(group)
    sources = torch.cat([torch.arange(leaf.size), torch.full((by,), -1)])
    places, shapes = {}, {}
    for slot in slots:
        axis = graph.axes[slot.parameter][slot.dim]
        new = gather_index(axis, {leaf: sources}) < 0
        unit_of = spread(axis, {leaf: torch.arange(leaf.size + by)}, torch.mul)[new] - leaf.size
        shape = [axis.size for axis in graph.axes[slot.parameter]]
        shape[slot.dim] = len(unit_of)
        key = f"{slot.parameter}:{slot.dim}"
        rows = [(unit_of == j).nonzero().flatten() for j in (range(by) if chosen is None else chosen)]
        places[key] = torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.int64)
        shapes[key] = tuple(shape)
    return Units(places, shapes)


def old_units(graph: Graph, group: str, slots: Sequence[Slot]) -> Units:
    """Return where the units of a group lie in its parameters."""
    places, shapes = {}, {}
    for slot in slots:
        key = f"{slot.parameter}:{slot.dim}"
        positions = [graph.positions(group, slot, unit) for unit in range(graph[group].size)]
        places[key] = torch.tensor(positions, dtype=torch.int64).view(len(positions), -1)
        shapes[key] = tuple(axis.size for axis in graph.axes[slot.parameter])
    return Units(places, shapes)


def dim_of(key: str) -> int:
    """Return the dimension of a slot key ``"parameter:dim"``."""
    return int(key.rpartition(":")[2])


def normalised(vectors: Tensor) -> Tensor:
    """Return rows of length one; a row of zeros stays."""
    norm = vectors.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, vectors / norm.clamp(min=torch.finfo(vectors.dtype).tiny), vectors)


def columns_orthonormal(vectors: Tensor, spare: Tensor) -> Tensor:
    """Return rows of length one that are orthogonal to each other, each as near to the given one as those before allow.

    Args:
        vectors: Rows, shape (units, entries).
        spare: Rows of the same shape that replace rows of zeros.

    Returns:
        Rows of length one; beyond as many as there are entries, rows can no longer be orthogonal and are only scaled.
    """
    dead = vectors.norm(dim=1, keepdim=True) == 0
    vectors = normalised(torch.where(dead, spare, vectors))
    count = min(vectors.shape)
    q, r = torch.linalg.qr(vectors[:count].T)
    # A sign matters: to a ReLU, w and -w are different neurons.
    sign = torch.where(torch.diagonal(r) < 0, -1.0, 1.0).to(q)
    return torch.cat([(q * sign).T, vectors[count:]])
