"""Orthogonal growth: random neurons turned away from those already there, so that little is left to refine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.axes import gather_index
from auxin.methods.random import Random
from auxin.similarity.activations import moments
from auxin.similarity.layers import Layer, all_layers
from auxin.similarity.refine import Similarity, descend
from auxin.similarity.terms import mean_off_diagonal, of_cosine_map
from auxin.statistics.batches import take_batches
from auxin.statistics.units import columns_orthonormal
from auxin.types import Budget, GrowthPlan, LossFn, Slot, Widen

RATES = (0.3, 0.1, 0.03)
"""Step sizes of the descent, one after the other: a constant one would jump around the kinks of |cos|."""

SMALLEST_VARIANCE = 1e-4
"""Share of the largest variance; directions of a layer's inputs below it are noise, and turned to by nobody."""


@dataclass(frozen=True)
class Orthogonal:
    """Random neurons with their incoming weights turned orthogonal to the old ones and to each other.

        w = |w_random| · q,   q ⟂ every old row and every new one before it, and as near to w_random as that allows

    for as many new rows as the span of the old ones leaves dimensions. Rows beyond those start at random and descend
    on μ, their mean |cos| with all others. Everything else is as in ``Random``: outgoing weights are zero, so the
    function is preserved exactly. Filters of a grouped convolution are compared within their group. Rows of whole new
    groups and of producers that are not matrices (embeddings, depthwise filters, packed attention) stay random; the
    event names groups of which that is true altogether.

    With ``criterion="activation"`` the same is done by the angle between what neurons compute from their inputs h on a
    few batches, their correlation, in place of the angle between their weights:

        w = |w_random| · q,   q A w_iᵀ = 0 for every old row and every new one before it,   A = cov(h)

    A layer that the forward does not call as a module is compared by weight, and the event says so.

    Attributes:
        iterations: Steps of the descent at each of its three rates; 0 leaves the rows beyond the rank random.
        criterion: What is orthogonal: "weight" or "activation".
        num_batches: Batches that activations are compared on.
        name: Key in ``METHODS``.

    Reference:
        Our own. It minimises before growth what Sakai & Hotta 2024 (arXiv 2408.13291) minimise after it, Eq. 2.
    """

    iterations: int = 10
    criterion: Literal["weight", "activation"] = "weight"
    num_batches: int = 4
    name: str = "orthogonal"

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.num_batches < 1:
            raise ConfigError("Orthogonal needs 0 iterations or more, and 1 batch or more.")
        if self.criterion not in ("weight", "activation"):
            raise ConfigError(f"Orthogonal compares neurons by weight or activation, not by {self.criterion!r}.")

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
            batches: Pairs (inputs, target), for activations.
            loss_fn: Not needed.

        Returns:
            One widening for each group of the budget.
        """
        start = Random().propose(model, graph, budget, generator=generator)
        widenings = [op for op in start.operations if isinstance(op, Widen)]
        drawn = _rows_to_turn(model, graph, widenings)
        frames: dict[str, list[Frame]] = {}
        if self.criterion == "activation":
            found, _ = take_batches(model, batches, loss_fn or _no_loss, self.num_batches, self.name)
            frames = _frames(model, drawn, [batch.inputs for batch in found], generator)
        # Several groups may lie on one axis: the later ones also keep away from the new rows of the earlier.
        before: dict[str, list[list[Tensor]]] = {}
        operations, notes = [], []
        for op in widenings:
            values, turned = dict(op.values), False
            for slot in graph[op.group].slots:
                key = f"{slot.parameter}:{slot.dim}"
                if key not in values or key not in drawn or _adds_groups(graph, op.group, drawn[key][0]):
                    continue
                layer = drawn[key][0]
                earlier = before.setdefault(key, [[] for _ in range(layer.groups)])
                values[key] = self._turn(graph, op, slot, layer, earlier, frames.get(key))
                turned = True
                if self.criterion == "activation" and key not in frames:
                    notes.append(f"{layer.name} shows no inputs, so its new neurons were compared by weight")
            if not turned:
                notes.append(f"{op.group} has no rows that can be compared, so it grew by the random method")
            operations.append(replace(op, values=values))
        return GrowthPlan(self.name, tuple(operations), self.preserves, tuple(notes))

    def _turn(
        self, graph: Graph, op: Widen, slot: Slot, layer: Layer, earlier: list[list[Tensor]], frames: list[Frame] | None
    ) -> Tensor:
        """Return the new rows of a slot, turned; add them to those turned before."""
        leaf = graph.atom(op.group)
        sources = torch.cat([torch.arange(leaf.size), torch.full((op.by,), -1)])
        index = gather_index(graph.axes[slot.parameter][slot.dim], {leaf: sources}).to(layer.weight.device)
        new = (index < 0).nonzero().flatten()
        rows = layer.weight.detach().index_select(slot.dim, index.clamp(min=0))
        rows = rows.index_copy(slot.dim, new, op.values[f"{slot.parameter}:{slot.dim}"])
        grown = replace(layer, weight=rows)
        matrices, mask = grown.matrices().clone(), grown.neurons(new)
        for i, (matrix, fresh, ones) in enumerate(zip(matrices, mask, earlier, strict=True)):
            away = turned_away if frames is None else frames[i].turned_away
            matrix[fresh] = away(torch.cat([matrix[~fresh], *ones]), matrix[fresh], self.iterations)
            ones.append(matrix[fresh])
        return grown.restore(matrices).index_select(slot.dim, new).to(layer.weight.dtype)


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates u = F w of rows, in which a dot product is the covariance of what two rows compute.

    Attributes:
        factor: F, (r, d); FᵀF is the covariance of the layer's inputs as far as the rows to compare can tell.
        inverse: (d, r), F·inverse = 1.
        mean: Of the layer's inputs, likewise, (d,).
    """

    factor: Tensor
    inverse: Tensor
    mean: Tensor

    @classmethod
    def of(cls, basis: Tensor, mean: Tensor, covariance: Tensor) -> Frame:
        """Return the frame of rows in the span of a basis, directions of hardly any variance left out.

        Args:
            basis: Orthonormal rows, (k, d).
            mean: Of what the basis computes, (k,).
            covariance: Of what the basis computes, (k, k).

        Returns:
            The frame, float64.
        """
        variances, directions = torch.linalg.eigh(covariance)
        kept = variances > SMALLEST_VARIANCE * variances.amax().clamp(min=torch.finfo(variances.dtype).tiny)
        scale, directions = variances[kept].sqrt(), directions[:, kept].T @ basis.double()
        return cls(directions * scale[:, None], directions.T / scale, mean @ basis.double())

    def turned_away(self, old: Tensor, new: Tensor, iterations: int) -> Tensor:
        """Return new rows of the same lengths whose activations are uncorrelated, as far as there is room for that."""
        if not len(self.factor):
            return turned_away(old, new, iterations)
        start = new.double() @ self.factor.T
        turned = turned_away(old.double() @ self.factor.T, start, iterations)
        rows = new.double() + (turned - start) @ self.inverse.T
        # What varies has been taken away but not the mean: a row that a ReLU would hardly ever let through turns round,
        # which no |correlation| notices.
        deviation = (rows @ self.factor.T).norm(dim=1)
        rows[rows @ self.mean < -2 * deviation] *= -1
        return (nn.functional.normalize(rows) * new.norm(dim=1, keepdim=True)).to(new.dtype)


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


def _rows_to_turn(model: nn.Module, graph: Graph, widenings: Sequence[Widen]) -> dict[str, tuple[Layer, list[Tensor]]]:
    """Return by slot the layers whose rows can be compared, each with its old rows and the draws of all its groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = {
        f"{names[id(layer.weight)]}:{layer.dim}": layer for layer, depthwise in all_layers(model) if not depthwise
    }
    found: dict[str, tuple[Layer, list[Tensor]]] = {}
    for op in widenings:
        for key, values in op.values.items():
            if key in layers and not _adds_groups(graph, op.group, layers[key]):
                layer = layers[key]
                found.setdefault(key, (layer, [layer.matrices().detach()]))
                found[key][1].append(replace(layer, weight=values).matrices())
    return found


def _frames(
    model: nn.Module, rows: Mapping[str, tuple[Layer, list[Tensor]]], inputs: list[Any], generator: torch.Generator
) -> dict[str, list[Frame]]:
    """Return by slot the frame of each group of rows; without slots whose layer the forward does not call."""
    # min(n + m, d) orthonormal rows hold old rows and draws, whatever their rank: all that turning needs.
    bases = {key: torch.linalg.qr(torch.cat(parts, 1).mT).Q.mT for key, (_, parts) in rows.items()}
    measured = moments(model, [(rows[key][0], basis) for key, basis in bases.items()], inputs, generator)
    return {
        key: [Frame.of(*group) for group in zip(basis, *found, strict=True)]
        for (key, basis), found in zip(bases.items(), measured, strict=True)
        if found is not None
    }


def _no_loss(output: Any, target: Any) -> Tensor:
    raise NotImplementedError


def _adds_groups(graph: Graph, group: str, layer: Layer) -> bool:
    """Return whether growing a width group gives a grouped convolution more groups."""
    leaf = graph.atom(group)
    return any(
        attribute.module == layer.name and attribute.name == "groups" and leaf in set(attribute.axis.atoms())
        for attribute in graph.attributes
    )
