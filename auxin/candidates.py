"""Candidates for growth on an over-grown copy: every neuron split in two, and new neurons, each behind a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from auxin.budgets import Allocated
from auxin.graph import Graph
from auxin.methods.random import Random
from auxin.methods.symmetry import outgoing_offsets
from auxin.shadow import Shadow
from auxin.statistics.batches import Batch, gradients
from auxin.statistics.units import new_units, normalised, old_units
from auxin.types import LossFn, Widen


class GroupCandidates:
    """The candidates of one group: n splits, then k new neurons.

    Attributes:
        split: Directions of the splits, unit rows, (n, incoming weights).
        apart: Half the difference between the outgoing weights of a split's two halves, (n, outgoing weights).
        fan_in: Incoming weights of new neurons, each parameter's part at its Kaiming norm, (k, incoming weights).
        fan_out: Directions of their outgoing weights, unit rows, (k, outgoing weights).
    """

    def __init__(
        self, shadow: Shadow, group: str, fresh: Mapping[str, Tensor], apart: Tensor, generator: torch.Generator
    ) -> None:
        self.shadow, self.group = shadow, group
        producers, consumers = shadow.slots(group, "producer"), shadow.slots(group, "consumer")
        self.size = shadow.old[group].size
        copies, new = range(self.size), range(self.size, shadow.by[group])
        self.parents = old_units(shadow.old, group, producers)
        self.copies = shadow.units(group, producers, copies)
        self.incoming, self.outgoing = shadow.units(group, producers, new), shadow.units(group, consumers, new)
        self.num_new = len(new)
        self.apart = apart

        def draw(rows: int, columns: int) -> Tensor:
            drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            return normalised(drawn).to(shadow.device, shadow.dtype)

        self.split = draw(self.size, self.copies.length)
        given = {key: fresh[key].to(shadow.device, shadow.dtype) for key in self.incoming.places}
        alone = new_units(shadow.old, group, producers, len(new)).gather(given)
        self.norms = [part.norm(dim=1).square().mean().sqrt() for part in alone.split(self.incoming.widths, 1)]
        self.fan_in = self.rescaled(alone, alone)
        self.fan_out = draw(self.num_new, self.outgoing.length)

    def rescaled(self, rows: Tensor, spare: Tensor) -> Tensor:
        """Return incoming weights with each parameter's part at its norm; a part of zeros is taken from ``spare``."""
        parts = zip(rows.split(self.incoming.widths, 1), spare.split(self.incoming.widths, 1), self.norms, strict=True)
        return torch.cat([
            normalised(torch.where(part.norm(dim=1, keepdim=True) > 0, part, old)) * norm for part, old, norm in parts
        ], dim=1)  # fmt: skip

    def add(self, parameters: dict[str, Tensor], gates: Tensor) -> None:
        """Add the candidates to the copy's parameters.

        Args:
            parameters: The copy's parameters; replaced entry by entry.
            gates: ε of each candidate, (n + k,).
        """
        moved = gates[: self.size, None] * self.split
        for key, tensor in self.parents.scatter(moved).items():
            name = key.rpartition(":")[0]
            parameters[name] = parameters[name] + self.shadow.place_old(self.group, key, tensor)
        parts = [self.copies.scatter(-moved), self.incoming.scatter(self.fan_in)]
        parts.append(self.outgoing.scatter(gates[self.size :, None] * self.fan_out))
        for part in parts:
            for key, tensor in part.items():
                name = key.rpartition(":")[0]
                parameters[name] = parameters[name] + self.shadow.place(self.group, key, tensor)


class Candidates:
    """All candidates of some groups on one over-grown copy of the model; the base stays frozen.

    Args:
        model: The model, only read.
        graph: Its graph.
        num_new: Number of new neurons among the candidates of each group.
        generator: Source of the starting directions.
        asymmetry: How unequally the halves of a split share the outgoing weights (``methods.symmetry``).
        splits: Whether neurons may be split; without, the splits' gates stay at 0.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        num_new: Mapping[str, int],
        generator: torch.Generator,
        asymmetry: float = 0.0,
        splits: bool = True,
    ) -> None:
        self.splits = splits
        plan = Random().propose(model, graph, Allocated(num_new), generator=generator)
        fresh = {op.group: op.values for op in plan.operations if isinstance(op, Widen)}
        operations, apart = [], {}
        for name, k in num_new.items():
            n = graph[name].size
            parents = (*range(n), *(-1,) * k)
            offsets = outgoing_offsets(model, graph, name, parents, asymmetry, generator)
            consumers = [slot for slot in graph[name].slots if f"{slot.parameter}:{slot.dim}" in offsets]
            apart[name] = new_units(graph, name, consumers, n + k, range(n)).gather(offsets)
            operations.append(Widen(name, n + k, parents, {}, (*(0.5,) * n, *(0.0,) * k), offsets))
        self.shadow = Shadow(model, graph, operations)
        self.groups = {
            name: GroupCandidates(self.shadow, name, fresh[name], apart[name], generator) for name in num_new
        }

    def gates(self, value: float) -> dict[str, Tensor]:
        """Return gates that all have one value, but for splits that may not be."""
        like = {"device": self.shadow.device, "dtype": self.shadow.dtype}
        gates = {n: torch.full((g.size + g.num_new,), value, **like) for n, g in self.groups.items()}  # type: ignore[call-overload]
        if not self.splits:
            for name, group in self.groups.items():
                gates[name][: group.size] = 0.0
        return gates

    def loss(self, gates: Mapping[str, Tensor], batch: Batch, loss_fn: LossFn) -> Tensor:
        """Return the loss of the over-grown model; with gates of zero it is the model's own."""
        parameters = dict(self.shadow.parameters)
        for name, group in self.groups.items():
            group.add(parameters, gates[name])
        return self.shadow.loss(parameters, batch, loss_fn)

    def train(self, batches: Sequence[Batch], loss_fn: LossFn, steps: int, gate: float, rate: float) -> None:
        """Train the directions at constant gates by descent on the sphere.

        Each direction moves by ``rate`` (falling to zero) against its own normalised gradient, averaged over steps by
        momentum, and is put back on its sphere: the length of a gradient says nothing here, since a split's is of
        second order in ε and a new neuron's of first.

        Args:
            batches: Used in turn.
            loss_fn: The loss of (output, target).
            steps: Number of steps.
            gate: ε.
            rate: Relative length of the first step.
        """
        gates = self.gates(gate)
        groups = list(self.groups.values())
        momentum: list[Tensor] = []
        for step in range(steps):
            leaves = [x.requires_grad_() for g in groups for x in (g.split, g.fan_in, g.fan_out)]
            loss = self.loss(gates, batches[step % len(batches)], loss_fn)
            slopes = [normalised(g) for g in gradients(loss, leaves)]
            momentum = [0.5 * m + g for m, g in zip(momentum, slopes, strict=True)] if momentum else slopes
            length = rate * (1 - step / steps)
            with torch.no_grad():
                pairs = zip(leaves, momentum, strict=True)
                moved = iter([x - length * x.norm(dim=1, keepdim=True) * normalised(m) for x, m in pairs])
                for group in groups:
                    old = group.fan_in.detach()
                    group.split = normalised(next(moved))
                    group.fan_in = group.rescaled(next(moved), old)
                    group.fan_out = normalised(next(moved))

    def scores(self, batches: Sequence[Batch], loss_fn: LossFn, gate: float, points: int) -> dict[str, Tensor]:
        """Return the predicted change of the loss by each candidate: Δ_i = ∫₀^ε ∂L/∂ε_i dε along ε_1 = ε_2 = ….

        The midpoint rule with one point is exact for what is linear (new neurons) or quadratic (splits) in ε. The sum
        over all candidates tends to the true change of the loss as the number of points grows.

        Args:
            batches: Averaged over.
            loss_fn: The loss of (output, target).
            gate: ε.
            points: Points of the path integral.

        Returns:
            For each group, Δ of its n splits and k new neurons.
        """
        total = self.gates(0.0)
        for batch in batches:
            for point in range(points):
                gates = {n: g.requires_grad_() for n, g in self.gates(gate * (point + 0.5) / points).items()}
                slopes = gradients(self.loss(gates, batch, loss_fn), list(gates.values()))
                for name, gradient in zip(gates, slopes, strict=True):
                    total[name] += gate * gradient / (points * len(batches))
        return total

    @torch.no_grad()
    def measure(self, gates: Mapping[str, Tensor], batches: Sequence[Batch], loss_fn: LossFn) -> float:
        """Return the mean loss over batches."""
        return sum(float(self.loss(gates, batch, loss_fn)) for batch in batches) / len(batches)
