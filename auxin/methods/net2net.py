"""Net2Net widening: copies of existing neurons that share their parent's outgoing weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from auxin.budgets import Allocated
from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.methods.random import Random
from auxin.methods.symmetry import outgoing_offsets
from auxin.types import Budget, GrowthPlan, LossFn, Slot, Widen


@dataclass(frozen=True)
class Net2Net:
    """Net2WiderNet: g(j) = j for j ≤ n, else uniform over 1..n; fan-in copied, fan-out divided by the multiplicity.

        U1[j] = W1[g(j)],  b1[j] = b1[g(j)],  norm copied;  U2[:, j] = W2[:, g(j)] / r_g(j) ± r,  r_k = #{j : g(j) = k}

    A copy's outgoing weights lose a random r and its parent's gain it, so that the two are trained apart; without it
    (``asymmetry=0``, the paper's rule) they stay the same neuron for long. The function is preserved in eval and in
    train mode either way. A group whose units are also read through the axis that writes
    them (a tied embedding) cannot be divided so, and falls back to random growth; the event says so.

    Attributes:
        noise: Standard deviation of noise on the copies' fan-in, relative to the fan-in's own. It changes the function
            and takes the place of asymmetry.
        asymmetry: Size of r relative to that of the outgoing weights (``symmetry.outgoing_offsets``).
        name: Key in ``METHODS``.

    Reference:
        Chen, Goodfellow, Shlens 2016 (arXiv 1511.05641), algorithm 1 and equations 2 to 4; unequal shares: LEMON, Wang
        et al. 2024 (arXiv 2310.07999).
    """

    noise: float = 0.0
    asymmetry: float = 1.0
    name: str = "net2net"

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and self.asymmetry >= 0):
            raise ConfigError("Net2Net needs noise and asymmetry of 0 or more.")

    @property
    def preserves(self) -> bool:
        """Whether the function is unchanged right after an event."""
        return self.noise == 0

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
            generator: Source of the parents and of the noise.
            batches: Not needed.
            loss_fn: Not needed.

        Returns:
            One widening for each group of the budget.
        """
        tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        operations: list[Widen] = []
        notes: list[str] = []
        fallback = Random()
        for name, by in budget.allocate(graph).items():
            group = graph[name]
            if why := graph.why_not_copied(name):
                plan = fallback.propose(model, graph, Allocated({name: by}), generator=generator)
                operations.extend(op for op in plan.operations if isinstance(op, Widen))
                notes.append(f"{name} {why}, so it grew by the random method")
                continue
            parents = tuple(torch.randint(group.size, (by,), generator=generator).tolist())
            values = {}
            if self.noise:
                for slot in group.slots:
                    if slot.role == "producer":
                        copied = copies(graph, name, slot, tensors[slot.parameter], parents)
                        spread = self.noise * float(copied.float().std())
                        noise = torch.randn(copied.shape, generator=generator).to(copied)
                        values[f"{slot.parameter}:{slot.dim}"] = copied + spread * noise
            offsets = {}
            if self.asymmetry and not self.noise:
                offsets = outgoing_offsets(model, graph, name, parents, self.asymmetry, generator)
            operations.append(Widen(name, by, parents, values, offsets=offsets))
        return GrowthPlan(self.name, tuple(operations), self.preserves, tuple(notes))


def copies(graph: Graph, group: str, slot: Slot, tensor: Tensor, parents: tuple[int, ...]) -> Tensor:
    """Return a slot's entries of the given units, in the order in which new units are laid out."""
    rows = torch.tensor(graph.new_positions_from(group, slot, parents), device=tensor.device)
    return tensor.detach().index_select(slot.dim, rows)
