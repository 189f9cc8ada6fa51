"""Random growth: fresh neurons whose outgoing weights are zero, so that the function does not change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.axes import size_with
from auxin.types import Budget, GrowthPlan, LossFn, Slot, Widen


@dataclass(frozen=True)
class Random:
    """Kaiming fan-in, neutral norm, zero outgoing weights.

    New rows of a producer are drawn from N(0, 2/fan_in) (embeddings: with the standard deviation of the old rows), new
    biases are 0, a norm starts at (scale 1, shift 0, mean 0, variance 1), a raw parameter at the mean of its entries.
    With outgoing weights of zero the function is preserved exactly; ``outgoing_scale`` > 0 draws them from
    N(0, (scale · std of the old columns)²) instead, which changes the function a little.

    Attributes:
        outgoing_scale: Relative size of the new outgoing weights.
        name: Key in ``METHODS``.

    Reference:
        Named as the baseline of Sakai & Hotta 2024 (arXiv 2408.13291), which does not define it.
    """

    outgoing_scale: float = 0.0
    name: str = "random"

    def __post_init__(self) -> None:
        if not self.outgoing_scale >= 0:
            raise ConfigError("Random needs an outgoing_scale of 0 or more.")

    @property
    def preserves(self) -> bool:
        """Whether the function is unchanged right after an event."""
        return self.outgoing_scale == 0

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
            generator: Source of the new weights.
            batches: Not needed.
            loss_fn: Not needed.

        Returns:
            One widening for each group of the budget.
        """
        tensors = dict(model.named_parameters())
        operations = []
        for name, by in budget.allocate(graph).items():
            values = {}
            slots = [slot for slot in graph[name].slots if slot.parameter in graph.parameters]
            # Weights that read the units they compute, and nothing else computes them: zeros would stay zeros.
            tied = graph.reads_what_it_writes(name) and all(slot.role != "producer" for slot in slots)
            for slot in slots:
                tensor = tensors[slot.parameter]
                if slot.role == "producer" or (slot.role == "consumer" and tied):
                    values[f"{slot.parameter}:{slot.dim}"] = fresh_rows(model, graph, name, slot, tensor, by, generator)
                elif slot.role == "consumer" and self.outgoing_scale:
                    scale = self.outgoing_scale * float(tensor.detach().float().std())
                    rows = torch.randn(new_shape(graph, name, slot, by), generator=generator)
                    values[f"{slot.parameter}:{slot.dim}"] = rows * scale
            operations.append(Widen(name, by, values=values))
        return GrowthPlan(self.name, tuple(operations), preserves=self.preserves)


def new_shape(graph: Graph, group: str, slot: Slot, by: int) -> list[int]:
    """Return the shape of a slot's new entries: the parameter's, with the number of new positions along its axis."""
    axes = graph.axes[slot.parameter]
    leaf = graph.atom(group)
    shape = [axis.size for axis in axes]
    shape[slot.dim] = size_with(axes[slot.dim], {leaf: leaf.size + by}) - axes[slot.dim].size
    return shape


def fresh_rows(
    model: nn.Module, graph: Graph, group: str, slot: Slot, tensor: Tensor, by: int, generator: torch.Generator
) -> Tensor:
    """Return new rows of a producer, drawn as its layer would be initialised.

    Args:
        model: The model, only read.
        graph: Its graph.
        group: Name of the group.
        slot: The producer axis.
        tensor: The parameter.
        by: Number of new units.
        generator: Source of randomness.

    Returns:
        Tensor of the parameter's shape with the number of new positions along the slot's axis.
    """
    shape = new_shape(graph, group, slot, by)
    owner = model.get_submodule(slot.parameter.rpartition(".")[0])
    fan_in = tensor.numel() // tensor.shape[slot.dim]
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):  # (C_in, C_out/groups, k...): groups lie in the first
        fan_in = tensor.numel() // tensor.shape[1] // owner.groups
    embedded = isinstance(owner, nn.Embedding)
    std = float(tensor.detach().float().std()) if embedded else sqrt(2 / max(fan_in, 1))
    return (torch.randn(shape, generator=generator) * std).to(tensor)
