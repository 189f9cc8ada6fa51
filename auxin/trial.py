"""Whether a model really lets a group grow: it gets one unit more, which is taken back at once."""

from __future__ import annotations

import torch
from torch import nn

from auxin.budgets import Allocated
from auxin.errors import GrowthError
from auxin.graph import Graph
from auxin.methods.random import Random
from auxin.surgery import apply
from auxin.types import Event


def try_group(model: nn.Module, graph: Graph, group: str, allow_inexact: bool = False) -> Event:
    """Grow one group by a random unit and take that back; model and graph are then as they were.

    Args:
        model: The model.
        graph: Its graph.
        group: Name of the group.
        allow_inexact: Whether the function may change.

    Returns:
        The event that would have been.

    Raises:
        GrowthError: If the grown model fails.
    """
    generator = torch.Generator().manual_seed(0)
    plan = Random().propose(model, graph, Allocated({group: 1}), generator=generator)
    return apply(plan, model, graph, allow_inexact=allow_inexact, keep=False)


def resisting_groups(model: nn.Module, graph: Graph, allow_inexact: bool = False) -> dict[str, str]:
    """Return the groups that the graph takes for growable but the model does not, with the reason.

    Args:
        model: The model.
        graph: Its graph.
        allow_inexact: Whether the function may change.
    """
    found = {}
    for group in graph.growable(allow_inexact):
        try:
            try_group(model, graph, group.name, allow_inexact)
        except GrowthError as error:
            found[group.name] = error.why
    return found
