"""Splitting steepest descent: neurons at which the loss bends down are replaced by two that move apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.methods.symmetry import outgoing_offsets
from auxin.ranking import choose, decide, random_values, why_not_twice, widening
from auxin.shadow import Shadow
from auxin.statistics.batches import Batch, gradients, measuring, take_batches
from auxin.statistics.parts import MICRO_BATCH
from auxin.statistics.splitting import SplittingMatrices, smallest
from auxin.statistics.units import Units
from auxin.types import Budget, GrowthPlan, LossFn, Widen


@dataclass(frozen=True)
class Splitting:
    """Replace a·σ(θ) by (a/2 + r) σ(θ + εv) + (a/2 - r) σ(θ - εv), v the eigenvector of S(θ)'s smallest eigenvalue.

        S(θ) = E[(∂L/∂σ) ∇²_θ σ(θ, x)];   change of the loss = (ε²/2) λ_min(S) + O(ε³)

    Only neurons with λ < 0 are split, the most negative first: in each group under a budget per group, over all groups
    under a global one. What the budget has left is filled with random new neurons, and the event says so. θ are the
    rows of every linear map that computes the neuron; norms, depthwise filters and biases are copied whole. ReLU has no
    second derivative: softplus' 3 s (1 - s), s = sigmoid(3z), is taken.

    Attributes:
        step_size: ε, with ‖v‖ = 1.
        iterations: Lanczos steps, one product S·v each, for all neurons of all groups at once.
        num_batches: Batches that S is averaged over, fixed during the iteration; each step goes through all of them.
        micro_batch: Samples that are held in memory at once; None for whole batches. S does not depend on it.
        asymmetry: How unequally the two halves share the outgoing weights a, a/2 + r and a/2 - r, relative to the size
            of these (``symmetry.outgoing_offsets``), so that they are trained apart. The change of the loss then has
            a term of first order in ε too, and v the sign that makes it a descent; 0 is the paper's rule.
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
        if self.iterations < 1 or self.num_batches < 1 or not (self.step_size >= 0 and self.asymmetry >= 0):
            raise ConfigError(
                "Splitting needs at least 1 iteration and 1 batch, and a step size and an asymmetry of 0 or more."
            )
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
        matrices: SplittingMatrices | None = None
        values: dict[str, Tensor] = {}
        vectors: dict[str, Tensor] = {}
        with measuring(model):
            try:
                matrices = SplittingMatrices(model, graph, found, loss, tuple(groups), self.micro_batch)
                values, vectors = smallest(matrices, self.iterations, generator)
                why = matrices.untreated
            except RuntimeError as error:
                why = dict.fromkeys(groups, why_not_twice(error))
        changes = {name: 0.5 * self.step_size**2 * value for name, value in values.items()}
        # A step of zero (for tests of exactness) still ranks by the eigenvalue.
        scores = {name: (changes[name] if self.step_size else value).tolist() for name, value in values.items()}
        split, rest = choose(allocated, graph, scores)
        split = {name: chosen for name, chosen in split.items() if chosen}
        fresh = random_values(model, graph, rest, generator)
        apart = {
            name: outgoing_offsets(
                model, graph, name, (*split.get(name, ()), *(-1,) * rest.get(name, 0)), self.asymmetry, generator
            )
            for name in groups
            if name in split or rest.get(name)
        }

        def grown(name: str, offsets: Mapping[str, Tensor]) -> Widen:
            return widening(
                model, graph, name, parents=split.get(name, ()), offsets=offsets, fresh=fresh.get(name, {}),
                num_fresh=rest.get(name, 0), apart=apart[name],
            )  # fmt: skip

        notes = []
        if matrices is not None and split:
            with measuring(model):
                tried = _Splits(model, graph, [grown(name, {}) for name in apart], matrices, vectors, split)
                slopes = tried.slopes() if self.asymmetry else {name: torch.zeros(len(i)) for name, i in split.items()}
                for name, chosen in split.items():
                    vectors[name][chosen] *= torch.where(slopes[name] > 0, -1.0, 1.0)[:, None].to(vectors[name])
                measured = tried.change(self.step_size, found, loss)
            predicted = sum(
                float((changes[name][chosen] - self.step_size * slopes[name].abs().to(changes[name])).sum())
                for name, chosen in split.items()
            )
            notes.append(f"splits predict a loss change of {predicted:.2e}; on the same batches it is {measured:.2e}")
        offsets = {name: matrices.units[name].scatter(self.step_size * vectors[name]) for name in split if matrices}
        operations = [grown(name, offsets.get(name, {})) for name in apart]
        for name, by in rest.items():
            reason = why.get(name, f"has only {len(split.get(name, []))} neurons worth splitting")
            notes.append(f"{name} {reason}, so {by} of its new neurons are random")
        return GrowthPlan(self.name, tuple(operations), self.preserves, tuple(notes))


class _Splits:
    """A copy of the model that has grown but whose split neurons have not moved yet, to see where they shall move."""

    def __init__(
        self, model: nn.Module, graph: Graph, operations: Sequence[Widen], matrices: SplittingMatrices,
        vectors: Mapping[str, Tensor], split: Mapping[str, list[int]],
    ) -> None:  # fmt: skip
        self.shadow = Shadow(model, graph, operations)
        self.matrices, self.vectors, self.split = matrices, vectors, split
        self.copies: dict[str, Units] = {}
        for name, chosen in split.items():
            slots = [s for s in graph[name].slots if f"{s.parameter}:{s.dim}" in matrices.units[name].places]
            self.copies[name] = self.shadow.units(name, slots, range(len(chosen)))

    def moved(self, steps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters with each split neuron moved by its own step, and its copy by minus that."""
        parameters = dict(self.shadow.parameters)
        for name, chosen in self.split.items():
            moves = steps[name][:, None] * self.vectors[name][chosen]
            old = torch.zeros_like(self.vectors[name]).index_copy(0, torch.tensor(chosen, device=moves.device), moves)
            copies = self.copies[name].scatter(-moves)
            for key, tensor in self.matrices.units[name].scatter(old).items():
                parameter = key.rpartition(":")[0]
                change = self.shadow.place_old(name, key, tensor) + self.shadow.place(name, key, copies[key])
                parameters[parameter] = parameters[parameter] + change
        return parameters

    def slopes(self) -> dict[str, Tensor]:
        """Return ∂L/∂ε of each split neuron at ε = 0; not zero, as its halves are read with different weights."""
        steps = {name: self.vectors[name].new_zeros(len(chosen)) for name, chosen in self.split.items()}
        total = {name: torch.zeros_like(step) for name, step in steps.items()}
        for part in self.matrices.parts:
            leaves = {name: step.clone().requires_grad_() for name, step in steps.items()}
            objective = part.objective(self.shadow.output(self.moved(leaves), part.inputs))
            for name, slope in zip(leaves, gradients(objective, list(leaves.values())), strict=True):
                total[name] += slope / self.matrices.num_batches
        return total

    @torch.no_grad()
    def change(self, step: float, batches: Sequence[Batch], loss_fn: LossFn) -> float:
        """Return by how much the loss changes, on average over batches, if all of them move by ε."""
        rest, far = (
            self.moved({name: self.vectors[name].new_full((len(i),), length) for name, i in self.split.items()})
            for length in (0.0, step)
        )
        pairs = [[float(self.shadow.loss(parameters, b, loss_fn)) for parameters in (rest, far)] for b in batches]
        return sum(after - before for before, after in pairs) / len(batches)
