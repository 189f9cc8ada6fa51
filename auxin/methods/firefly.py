"""Firefly: splits and new neurons compete in one ranking, by what each would do to the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from auxin.candidates import Candidates
from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.ranking import choose, decide, random_values, untreatable, widening
from auxin.statistics.batches import Batch, measuring, take_batches
from auxin.statistics.units import new_units
from auxin.types import Budget, GrowthPlan, LossFn, Widen


@dataclass(frozen=True)
class Firefly:
    """Over-grow, train the candidates' directions with the base frozen, keep those that lower the loss most.

    Candidates of a group: each neuron a·σ(θ) split into (a/2 + r) σ(θ + εδ) + (a/2 - r) σ(θ - εδ), and
    ``num_candidates`` new ones with fan-in w and fan-out εa. On a grown copy of the model, δ, w and a are trained for a
    few steps at constant ε; then

        Δ_i = ∫₀^ε ∂L/∂ε_i dε     over held batches, all gates rising together

    ranks splits and new neurons together, in each group or over all groups as the budget says. The chosen ones are
    applied at ε, halved until the loss of the held batches falls. What the budget has left once no candidate lowers the
    loss is filled with random neurons of zero fan-out, and the event says so.

    Attributes:
        num_candidates: New neurons among the candidates of each group; as many as the budget gives it if None.
        steps: Training steps of the directions, each on half a batch.
        step_size: ε: length of a split, norm of a new neuron's outgoing weights.
        rate: Relative length of the first training step.
        path_points: Points of the path integral; 1 is exact to second order in ε.
        num_batches: Batches to train on, then to hold out, in the proportion 2 to 1.
        splits: Whether neurons may be split; without, all candidates are new neurons.
        asymmetry: How unequally the two halves of a split share the outgoing weights a, a/2 + r and a/2 - r, relative
            to the size of these (``symmetry.outgoing_offsets``). With r a split is a first-order step, as a new neuron
            is, and its halves are trained apart; 0 is the paper's rule.
        name: Key in ``METHODS``.

    Reference:
        Wu, Liu, Stone, Liu 2020 (arXiv 2102.08574), algorithm 1 and equations 5 to 7.
    """

    num_candidates: int | None = None
    steps: int = 12
    step_size: float = 5e-2
    rate: float = 1.0
    path_points: int = 1
    num_batches: int = 6
    splits: bool = True
    asymmetry: float = 1.0
    name: str = "firefly"

    def __post_init__(self) -> None:
        if self.steps < 0 or self.path_points < 1 or self.num_batches < 1 or not self.step_size > 0:
            raise ConfigError("Firefly needs at least 1 batch and 1 point, 0 steps or more, and a step size above 0.")
        if not (self.rate >= 0 and self.asymmetry >= 0):
            raise ConfigError("Firefly needs a rate and an asymmetry of 0 or more.")
        if self.num_candidates is not None and self.num_candidates < 1:
            raise ConfigError("Firefly needs at least 1 new neuron among the candidates of each group.")

    @property
    def preserves(self) -> bool:
        """Whether the function is unchanged right after an event."""
        return False

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
        train, held = _divide(found)
        allocated = decide(budget, graph)
        names = list(allocated.units if allocated.scope == "per_group" else allocated.groups or allocated.units)
        why = {name: reason for name in names if (reason := untreatable(model, graph, name))}
        number = {n: self.num_candidates or max(allocated.units.get(n, 0), 1) for n in names if n not in why}
        operations, notes = [], []
        candidates = None
        chosen: dict[str, list[int]] = {}
        rest: dict[str, int] = dict(allocated.units)
        step = self.step_size
        if number:
            with measuring(model):
                candidates = Candidates(model, graph, number, generator, self.asymmetry, self.splits)
                candidates.train(train, loss, self.steps, self.step_size, self.rate)
                scores = candidates.scores(held, loss, self.step_size, self.path_points)
                sizes = {name: candidates.groups[name].size for name in scores}
                if not self.splits:
                    for name, score in scores.items():
                        score[: sizes[name]] = 0.0
                ranked = {name: score.tolist() for name, score in scores.items()}
                chosen, rest = choose(allocated, graph, ranked)
                step, change = _step_length(candidates, chosen, held, loss, self.step_size)
            predicted = sum(ranked[name][i] for name, units in chosen.items() for i in units)
            splits = sum(i < sizes[name] for name, units in chosen.items() for i in units)
            notes.append(
                f"{splits} splits and {sum(map(len, chosen.values())) - splits} new neurons: predicted loss change "
                f"{predicted:.2e} at step {self.step_size:.3g}, on held batches {change:.2e} at step {step:.3g}"
            )
        fresh = random_values(model, graph, rest, generator)
        for name in names:
            if chosen.get(name) or rest.get(name):
                operations.append(
                    _operation(model, graph, candidates, name, chosen.get(name, []), step, rest.get(name, 0), fresh)
                )
        for name, by in rest.items():
            reason = why.get(name, f"has only {len(chosen.get(name, []))} candidates that lower the loss")
            notes.append(f"{name} {reason}, so {by} of its new neurons are random")
        return GrowthPlan(self.name, tuple(operations), self.preserves, tuple(notes))


def _divide(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return batches to train on and to hold out, as halves: the over-grown model needs the memory."""
    cut = len(batches) - len(batches) // 3
    train = [half for batch in batches[:cut] for half in batch.halves()]
    held = [half for batch in batches[cut:] for half in batch.halves()]
    return train, held or train


def _step_length(
    candidates: Candidates, chosen: Mapping[str, Sequence[int]], held: Sequence[Batch], loss_fn: LossFn, longest: float
) -> tuple[float, float]:
    """Return the first of ε, ε/2, ε/4, ε/8 that lowers the loss of the held batches, and the change there."""
    before = candidates.measure(candidates.gates(0.0), held, loss_fn)
    step = longest
    for attempt in range(4):
        step = longest / 2**attempt
        gates = candidates.gates(0.0)
        for name, units in chosen.items():
            gates[name][list(units)] = step
        change = candidates.measure(gates, held, loss_fn) - before
        if change < 0:
            break
    return step, change


def _operation(
    model: nn.Module, graph: Graph, candidates: Candidates | None, name: str, chosen: Sequence[int], step: float,
    num_random: int, random: Mapping[str, Mapping[str, Tensor]],
) -> Widen:  # fmt: skip
    """Return the widening of one group: its splits, its trained new neurons, its random ones."""
    if candidates is None or not chosen:
        return widening(model, graph, name, parents=(), offsets={}, fresh=random.get(name, {}), num_fresh=num_random)
    group = candidates.groups[name]
    parents = [i for i in chosen if i < group.size]
    new = [i - group.size for i in chosen if i >= group.size]
    producers, consumers = (candidates.shadow.slots(name, role) for role in ("producer", "consumer"))
    fan_in, fan_out = group.fan_in[new], step * group.fan_out[new]
    if num_random:
        drawn = {key: tensor.to(fan_in) for key, tensor in random[name].items()}
        fan_in = torch.cat([fan_in, new_units(graph, name, producers, num_random).gather(drawn)])
        fan_out = torch.cat([fan_out, fan_out.new_zeros(num_random, fan_out.shape[1])])
    fresh: dict[str, Tensor] = {}
    if len(fan_in):
        for slots, vectors in ((producers, fan_in), (consumers, fan_out)):
            fresh |= new_units(graph, name, slots, len(fan_in)).scatter(vectors.detach())
    offsets = group.parents.scatter(step * group.split.detach())
    apart = {}
    if parents:
        halves = new_units(graph, name, consumers, len(parents) + len(fan_in), range(len(parents)))
        apart = halves.scatter(group.apart[parents])
    return widening(
        model, graph, name, parents=parents, offsets=offsets, fresh=fresh, num_fresh=len(fan_in), apart=apart
    )
