"""GradMax: new neurons whose gradient is as large as their norm allows, with the function preserved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from auxin.budgets import Allocated
from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.methods.random import Random
from auxin.ranking import untreatable, why_not_twice
from auxin.shadow import Shadow
from auxin.statistics.activations import Piecewise
from auxin.statistics.batches import Batch, gradients, measuring, take_batches
from auxin.statistics.parts import MICRO_BATCH, Part, in_parts
from auxin.statistics.units import Units, columns_orthonormal, normalised
from auxin.types import Budget, GrowthPlan, LossFn, Widen


@dataclass(frozen=True)
class GradMax:
    """Zero fan-out, and the fan-in w for which the gradient at that fan-out is largest.

        G(w) = ∂L/∂W2[:, new] = Σ_samples (∂L/∂z_out) φ(w · h_in)ᵀ;   maximise ‖G(W)‖_F, W orthonormal, of Kaiming norm

    Where φ is linear, G(w) = M w with M = Σ (∂L/∂z_out) h_inᵀ, and the answer is the top right singular vectors of M.
    The iteration w ← orth(J(w)ᵀ G(w)), J = ∂G/∂w, is block power iteration on MᵀM there, and ascent on the true
    gradient norm through any other φ: ReLU, norms, pooling, attention. It runs on a grown copy of the model, all groups
    at once, since new units with zero fan-out do not see each other.

    The published method zeroes the fan-in instead and takes M's left singular vectors for the fan-out. With
    ReLU'(0) = 0 such neurons never learn, so this side is used throughout; the function is preserved through any
    activation or norm. A neuron made of several parameters (heads, gates, depthwise filters) keeps the Kaiming norm of
    each. A group that is read through the axis that writes it, has no fan-out, or no second derivative falls back to
    random growth; the event says so.

    Attributes:
        iterations: Steps of the iteration; each costs two forwards, two backwards and a second backward of the grown
            model: G is summed over all parts of the batches before any part's J(w)ᵀ G is.
        num_batches: Batches that the gradient is summed over.
        micro_batch: Samples that are held in memory at once; None for whole batches. The result does not depend on it.
        name: Key in ``METHODS``.

    Reference:
        Evci, van Merriënboer, Unterthiner, Vladymyrov, Pedregosa 2022 (arXiv 2201.05125), equations 6 to 11.
    """

    iterations: int = 3
    num_batches: int = 1
    micro_batch: int | None = MICRO_BATCH
    name: str = "gradmax"

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.num_batches < 1:
            raise ConfigError("GradMax needs at least 1 iteration and 1 batch.")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ConfigError("GradMax needs a micro_batch of at least 1 sample, or None for whole batches.")

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
            generator: Source of the starting directions.
            batches: Pairs (inputs, target).
            loss_fn: The training loss of (output, target).

        Returns:
            One widening for each group of the budget.

        Raises:
            RuntimeError: If the model or the loss fails on the batches.
        """
        found, loss = take_batches(model, batches, loss_fn, self.num_batches, self.name)
        units = budget.allocate(graph)
        start = Random().propose(model, graph, Allocated(units), generator=generator)
        plain = {op.group: op for op in start.operations if isinstance(op, Widen)}
        notes = {name: why for name in units if (why := untreatable(model, graph, name, copies=False))}
        wanted = [op for name, op in plain.items() if name not in notes]
        values: dict[str, dict[str, Tensor]] = {}
        if wanted:
            with measuring(model):
                try:
                    climb = _Climb(model, graph, wanted, found, loss, self.micro_batch)
                    values = _maximise(climb, self.iterations)
                except RuntimeError as error:
                    notes |= dict.fromkeys((op.group for op in wanted), why_not_twice(error))
        operations = tuple(Widen(name, op.by, values=values.get(name, op.values)) for name, op in plain.items())
        sentences = tuple(f"{name} {why}, so it grew by the random method" for name, why in notes.items())
        return GrowthPlan(self.name, operations, self.preserves, sentences)


class _New:
    """The new units of one group: their fan-in as vectors, and leaves for the gradient at their fan-out."""

    def __init__(self, shadow: Shadow, op: Widen) -> None:
        self.shadow, self.group = shadow, op.group
        producers, consumers = shadow.slots(op.group, "producer"), shadow.slots(op.group, "consumer")
        self.fan_in: Units = shadow.units(op.group, producers)
        given = {key: op.values[key].to(shadow.device, shadow.dtype) for key in self.fan_in.places}
        self.vectors = self.fan_in.gather(given)
        parts = self.vectors.split(self.fan_in.widths, dim=1)
        self.norms = [part.norm(dim=1).square().mean().sqrt() for part in parts]
        self.fan_out = shadow.units(op.group, consumers)
        self.outgoing = {
            key: torch.zeros(shape, dtype=shadow.dtype, device=shadow.device, requires_grad=True)
            for key, shape in self.fan_out.shapes.items()
        }
        self.vectors = self.scaled(self.vectors, self.vectors)
        self.best, self.quality = self.vectors, (-1, 0.0)

    def scaled(self, vectors: Tensor, spare: Tensor) -> Tensor:
        """Return orthonormal directions, each parameter's part at its own norm."""
        rows = columns_orthonormal(vectors, spare)
        parts = zip(rows.split(self.fan_in.widths, 1), spare.split(self.fan_in.widths, 1), self.norms, strict=True)
        return torch.cat([
            normalised(torch.where(part.norm(dim=1, keepdim=True) > 0, part, old)) * norm for part, old, norm in parts
        ], dim=1)  # fmt: skip

    def entries(self) -> dict[str, Tensor]:
        """Return the parts to add to the grown copy's parameters, by slot key."""
        new = {**self.fan_in.scatter(self.vectors), **self.outgoing}
        return {key: self.shadow.place(self.group, key, tensor) for key, tensor in new.items()}

    def remember(self, gradients: Sequence[Tensor]) -> None:
        """Keep the directions with the fewest dead neurons so far and, among those, the largest gradient."""
        self.norm = self.fan_out.gather(dict(zip(self.outgoing, gradients, strict=True))).detach().norm(dim=1)
        quality = (int((self.norm > 0).sum()), float(self.norm.square().sum()))
        if quality > self.quality:
            self.best, self.quality = self.vectors.detach(), quality

    def climb(self, direction: Tensor) -> None:
        """Take the next directions; a ReLU that is off for all samples is on for some with its fan-in negated."""
        old = self.vectors.detach()
        self.vectors = self.scaled(direction, torch.where(self.norm[:, None] > 0, old, -old))


class _Climb:
    """The grown copy with all new units, and their gradients at the fan-out, summed over the parts of the batches."""

    def __init__(
        self, model: nn.Module, graph: Graph, operations: Sequence[Widen], batches: Sequence[Batch], loss_fn: LossFn,
        micro_batch: int | None,
    ) -> None:  # fmt: skip
        self.shadow = Shadow(model, graph, [Widen(op.group, op.by) for op in operations])
        self.groups = [_New(self.shadow, op) for op in operations]
        # Without fan-out the new units change no output, so ∂L/∂output is the same for all their fan-ins.
        self.parts = [part for batch in batches for part in in_parts(self._old, batch, loss_fn, micro_batch)]

    def _old(self, inputs: Any) -> Any:
        return self.shadow.output({}, inputs)

    def _gradients(self, part: Part, twice: bool) -> Sequence[Tensor]:
        parameters = dict(self.shadow.parameters)
        for new in self.groups:
            for key, tensor in new.entries().items():
                name = key.rpartition(":")[0]
                parameters[name] = parameters[name] + tensor
        with Piecewise():
            objective = part.objective(self.shadow.output(parameters, part.inputs))
        leaves = [leaf for new in self.groups for leaf in new.outgoing.values()]
        return gradients(objective, leaves, create_graph=twice)

    def gradients(self) -> list[Tensor]:
        """Return G, for each parameter that holds fan-out."""
        return _summed(self._gradients(part, twice=False) for part in self.parts)

    def ascent(self, total: Sequence[Tensor]) -> list[Tensor]:
        """Return J(w)ᵀ G = ∇_w Σ_parts ⟨G, G_part(w)⟩ for each group, G held fixed."""
        vectors = [new.vectors.requires_grad_() for new in self.groups]
        found = []
        for part in self.parts:
            flat = self._gradients(part, twice=True)
            objective = torch.stack([(g * fixed).sum() for g, fixed in zip(flat, total, strict=True)]).sum()
            found.append(gradients(objective, vectors))
        for vector in vectors:
            vector.requires_grad_(False)
        return _summed(found)


def _summed(terms: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    total: list[Tensor] = []
    for term in terms:
        total = [a + b for a, b in zip(total, term, strict=True)] if total else list(term)
    return total


def _maximise(climb: _Climb, iterations: int) -> dict[str, dict[str, Tensor]]:
    """Return the fan-in values with the largest gradient at the fan-out, for each group."""
    for step in range(iterations + 1):
        total = climb.gradients()
        gradients = iter(total)
        for new in climb.groups:
            new.remember([next(gradients) for _ in new.outgoing])
        if step < iterations:
            for new, direction in zip(climb.groups, climb.ascent(total), strict=True):
                new.climb(direction)
    return {new.group: new.fan_in.scatter(new.best) for new in climb.groups}
