"""Splitting steepest descent: neurons at which the loss bends down are replaced by two that move apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.methods.symmetry import outgoing_offsets
from auxin.ranking import choose, decide, random_values, widening
from auxin.statistics.batches import measuring, take_batches
from auxin.statistics.parts import MICRO_BATCH
from auxin.statistics.splitting import SplittingMatrices, smallest
from auxin.types import Budget, GrowthPlan, LossFn


@dataclass(frozen=True)
class Splitting:
    """Replace σ(θ) by ½ σ(θ + εv) + ½ σ(θ - εv), v the eigenvector of the smallest eigenvalue of S(θ).

        S(θ) = E[(∂L/∂σ) ∇²_θ σ(θ, x)];   change of the loss = (ε²/2) λ_min(S) + O(ε³)

    Only neurons with λ < 0 are split, the most negative first: in each group under a budget per group, over all groups
    under a global one. What the budget has left is filled with random new neurons, and the event says so. θ are the
    rows of every linear map that computes the neuron; norms, depthwise filters and biases are copied whole, outgoing
    weights halved. ReLU has no second derivative: softplus' 3 s (1 - s), s = sigmoid(3z), is taken.

    Attributes:
        step_size: ε, with ‖v‖ = 1.
        iterations: Lanczos steps, one product S·v each, for all neurons of all groups at once.
        num_batches: Batches that S is averaged over, fixed during the iteration; each step goes through all of them.
        micro_batch: Samples that are held in memory at once; None for whole batches. S does not depend on it.
        asymmetry: How unequally the two halves share the outgoing weights a, a/2 + r and a/2 - r, relative to the size
            of these (``symmetry.outgoing_offsets``), so that they are trained apart. It adds a first-order term in ε,
            of either sign, to the change of the loss; 0 is the paper's rule, by which the loss only falls.
        name: Key in ``METHODS``.

    Reference:
        Liu, Wu, Wang 2019 (arXiv 1910.02366), theorem 2.4 and algorithm 1; products without S: arXiv 1910.03103.
    """

    step_size: float = 1e-2
    iterations: int = 10
    num_batches: int = 3
    micro_batch: int | None = MICRO_BATCH
    asymmetry: float = 1.0
    name: str = "splitting"

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.num_batches < 1 or self.step_size < 0:
            raise ConfigError("Splitting needs at least 1 iteration and 1 batch, and a step size of 0 or more.")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ConfigError("Splitting needs a micro_batch of at least 1 sample, or None for whole batches.")

    @property
    def preserves(self) -> bool:
        """Whether the function is unchanged right after an event."""
        return self.step_size == 0

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
            generator: Source of the starting directions and of random new neurons.
            batches: Pairs (inputs, target).
            loss_fn: The training loss of (output, target).

        Returns:
            One widening for each group that grows.
        """
        found, loss = take_batches(model, batches, loss_fn, self.num_batches, self.name)
        allocated = decide(budget, graph)
        groups = allocated.units if allocated.scope == "per_group" else allocated.groups or tuple(allocated.units)
        with measuring(model):
            matrices = SplittingMatrices(model, graph, found, loss, tuple(groups), self.micro_batch)
            values, vectors = smallest(matrices, self.iterations, generator)
        changes = {name: (0.5 * self.step_size**2 * value) for name, value in values.items()}
        # A step of zero (for tests of exactness) still ranks by the eigenvalue.
        scores = {name: (changes[name] if self.step_size else value).tolist() for name, value in values.items()}
        split, rest = choose(allocated, graph, scores)
        fresh = random_values(model, graph, rest, generator)
        operations = []
        for name in groups:
            chosen, by = split.get(name, []), rest.get(name, 0)
            if not chosen and not by:
                continue
            offsets = matrices.units[name].scatter(self.step_size * vectors[name]) if chosen else {}
            apart = outgoing_offsets(model, graph, name, (*chosen, *(-1,) * by), self.asymmetry, generator)
            operations.append(
                widening(
                    model, graph, name, parents=chosen, offsets=offsets, fresh=fresh.get(name, {}), num_fresh=by,
                    apart=apart,
                )
            )  # fmt: skip
        predicted = sum(float(changes[name][i]) for name, chosen in split.items() for i in chosen)
        notes = [f"splits predict a loss change of {predicted:.2e}"]
        for name, by in rest.items():
            why = matrices.untreated.get(name, f"has only {len(split.get(name, []))} neurons worth splitting")
            notes.append(f"{name} {why}, so {by} of its new neurons are random")
        return GrowthPlan(self.name, tuple(operations), self.preserves, tuple(notes))
