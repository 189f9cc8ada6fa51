"""Orthogonal growth: random neurons turned away from those already there, so that little is left to refine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.axes import gather_index
from auxin.methods.random import Random
from auxin.similarity.layers import Layer, find_layers
from auxin.similarity.refine import Similarity, descend
from auxin.similarity.terms import mean_off_diagonal, of_cosine_map
from auxin.statistics.units import columns_orthonormal
from auxin.types import Budget, GrowthPlan, LossFn, Slot, Widen

RATES = (0.3, 0.1, 0.03)
"""Step sizes of the descent, one after the other: a constant one would jump around the kinks of |cos|."""


@dataclass(frozen=True)
class Orthogonal:
    """Random neurons with their incoming weights turned orthogonal to the old ones and to each other.

        w = |w_random| · q,   q ⟂ every old row and every new one before it, and as near to w_random as that allows

    for as many new rows as the span of the old ones leaves dimensions. Rows beyond those start at random and descend
    on μ, their mean |cos| with all others. Everything else is as in ``Random``: outgoing weights are zero, so the
    function is preserved exactly. Filters of a grouped convolution are compared within their group. Rows of whole new
    groups and of producers that are not matrices (embeddings, depthwise filters, packed attention) stay random; the
    event names groups of which that is true altogether.

    Attributes:
        iterations: Steps of the descent at each of its three rates; 0 leaves the rows beyond the rank random.
        name: Key in ``METHODS``.

    Reference:
        Our own. It minimises before growth what Sakai & Hotta 2024 (arXiv 2408.13291) minimise after it, Eq. 2.
    """

    iterations: int = 10
    name: str = "orthogonal"

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ConfigError("Orthogonal needs 0 iterations or more.")

    @property
    def preserves(self) -> bool:
        """Whether the function is unchanged right after an event."""
        return True

    def propose(
        self,
        model: nn.Module,
        graph: Graph,
        budget: Budget,
        *,
        generator: torch.Generator,
        batches: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
    ) -> GrowthPlan:
        """Return the plan of one event.

        Args:
            model: The model, only read.
            graph: Its graph.
            budget: How much to grow.
            generator: Source of the random weights.
            batches: Not needed.
            loss_fn: Not needed.

        Returns:
            One widening for each group of the budget.
        """
        start = Random().propose(model, graph, budget, generator=generator)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        layers = {(names[id(layer.weight)], layer.dim): layer for layer in find_layers(model, graph=graph)}
        # Several groups may lie on one axis: the later ones also keep away from the new rows of the earlier.
        drawn: dict[str, list[list[Tensor]]] = {}
        operations, notes = [], []
        for op in start.operations:
            if not isinstance(op, Widen):
                continue
            values, turned = dict(op.values), False
            for slot in graph[op.group].slots:
                layer, key = layers.get((slot.parameter, slot.dim)), f"{slot.parameter}:{slot.dim}"
                if layer is not None and key in values and not _adds_groups(graph, op.group, layer):
                    before = drawn.setdefault(key, [[] for _ in range(layer.groups)])
                    values[key] = self._turn(graph, op, slot, layer, before)
                    turned = True
            if not turned:
                notes.append(f"{op.group} has no rows that can be compared, so it grew by the random method")
            operations.append(replace(op, values=values))
        return GrowthPlan(self.name, tuple(operations), self.preserves, tuple(notes))

    def _turn(self, graph: Graph, op: Widen, slot: Slot, layer: Layer, drawn: list[list[Tensor]]) -> Tensor:
        """Return the new rows of a slot, turned; add them to those drawn before."""
        leaf = graph.atom(op.group)
        sources = torch.cat([torch.arange(leaf.size), torch.full((op.by,), -1)])
        index = gather_index(graph.axes[slot.parameter][slot.dim], {leaf: sources}).to(layer.weight.device)
        new = (index < 0).nonzero().flatten()
        rows = layer.weight.detach().index_select(slot.dim, index.clamp(min=0))
        rows = rows.index_copy(slot.dim, new, op.values[f"{slot.parameter}:{slot.dim}"])
        grown = replace(layer, weight=rows)
        matrices, mask = grown.matrices().clone(), grown.neurons(new)
        for matrix, fresh, before in zip(matrices, mask, drawn, strict=True):
            matrix[fresh] = turned_away(torch.cat([matrix[~fresh], *before]), matrix[fresh], self.iterations)
            before.append(matrix[fresh])
        return grown.restore(matrices).index_select(slot.dim, new).to(layer.weight.dtype)


def turned_away(old: Tensor, new: Tensor, iterations: int = 10) -> Tensor:
    """Return new rows of the same lengths that point away from the old ones and from each other.

    Args:
        old: Rows that stay, (n, d).
        new: Rows to turn, (m, d), none of them zero.
        iterations: Steps of the descent at each rate, for rows beyond the rank.

    Returns:
        (m, d). The first d - rank(old) rows are orthogonal to all others; the rest descend from where they were given.
        Entries at inputs that no old row reads are as they were given.

    Example:
        >>> import torch
        >>> turned_away(torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, -4.0]]))
        tensor([[ 3.5355, -3.5355]])
    """
    read = (old != 0).any(0)
    if bool(read.any()) and not bool(read.all()):
        # An input that no old row reads is orthogonal to them all. Were it the only such direction, and silent, the new
        # neurons would be dead; so these entries stay as they were drawn.
        turned = new.clone()
        turned[:, read] = turned_away(old[:, read], new[:, read], iterations)
        return turned
    lengths = torch.linalg.vector_norm(new, dim=1, keepdim=True)
    basis = old if len(old) + len(new) <= old.shape[1] else _span(old)
    directions = columns_orthonormal(torch.cat([basis, new]), torch.ones_like(torch.cat([basis, new])))[len(basis) :]
    exact = min(old.shape[1] - len(basis), len(new))
    if exact < len(new) and iterations:
        directions = _descended(old, directions, exact, iterations)
    return directions * lengths


def _span(rows: Tensor) -> Tensor:
    """Return an orthonormal basis of what some rows span, (rank, d)."""
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    largest = sizes.max() if len(sizes) else 0.0
    return basis[sizes > largest * torch.finfo(rows.dtype).eps * max(rows.shape)]


def _descended(old: Tensor, new: Tensor, exact: int, iterations: int) -> Tensor:
    """Return the new rows, those after the first few moved down μ; the start if that was no worse."""
    best = rows = torch.cat([old, new])[None]
    free = torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
    free[:, len(old) + exact :] = True
    lowest = mean_off_diagonal(of_cosine_map(rows), free)
    for lr in RATES:
        rows = descend(best, free, Similarity(iterations=iterations, lr=lr, neurons="all"))
        rows = torch.where(free[:, :, None], torch.nn.functional.normalize(rows, dim=2), rows)
        reached = mean_off_diagonal(of_cosine_map(rows), free)
        if bool(reached < lowest):
            best, lowest = rows, reached
    return best[0, len(old) :]


def _adds_groups(graph: Graph, group: str, layer: Layer) -> bool:
    """Return whether growing a width group gives a grouped convolution more groups."""
    leaf = graph.atom(group)
    return any(
        attribute.module == layer.name and attribute.name == "groups" and leaf in set(attribute.axis.atoms())
        for attribute in graph.attributes
    )
