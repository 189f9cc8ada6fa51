"""``widen`` and ``deepen``: one growth by hand, without a Grower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from auxin.budgets import Allocated
from auxin.graph import Graph
from auxin.graph.capture import refuse_sharded, unwrap
from auxin.methods import find_method
from auxin.similarity import model_inputs
from auxin.surgery import apply, check_widen
from auxin.types import Deepen, DepthSite, Event, GrowthPlan, LossFn, Method, Widen, WidthGroup


@torch.inference_mode(False)  # gradients are needed
def widen(
    model: nn.Module,
    group: str | WidthGroup,
    by: int,
    *,
    graph: Graph,
    method: str | Method = "random",
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    ema: nn.Module | Sequence[nn.Module] = (),
    seed: int = 0,
    allow_inexact: bool = False,
    loader: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
) -> Event:
    """Add units to one width group, in place.

    Args:
        model: Any module that ``graph`` was traced from.
        group: The group or its name.
        by: Number of units to add.
        graph: ``auxin.trace(model, example_inputs)``; kept up to date.
        method: A method or its name.
        optimizer: Optimizers whose state follows.
        ema: An averaged copy of the model, or several, resized alike.
        seed: Seed of the new weights.
        allow_inexact: Whether the function may change.
        loader: Batches for methods that look at data.
        loss_fn: The training loss, for methods that look at gradients.

    Returns:
        What changed.

    Raises:
        ConfigError: If there is no such group, or the optimizer or an averaged copy is another model's.
        FrozenError: If the group may not grow.
        GrowthError: If the grown model fails; everything is restored.
        TraceError: If the model has been sharded since it was traced.
    """
    model = unwrap(model)
    refuse_sharded(model)
    name = group.name if isinstance(group, WidthGroup) else group
    check_widen(graph, Widen(name, by), allow_inexact)
    plan = find_method(method).propose(
        model,
        graph,
        Allocated({name: by}),
        generator=torch.Generator().manual_seed(seed),
        batches=loader,
        loss_fn=loss_fn,
    )
    return apply(plan, model, graph, optimizer=optimizer, ema=ema, allow_inexact=allow_inexact)


def deepen(
    model: nn.Module,
    site: str | DepthSite,
    *,
    graph: Graph,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    ema: nn.Module | Sequence[nn.Module] = (),
    loader: Iterable[Any] | None = None,
    kernel_size: int = 3,
    noise: float = 0.0,
    copy: bool | None = None,
    fresh: float | None = None,
    seed: int = 0,
) -> Event:
    """Insert a block that starts as the identity after a module, in place.

    After a residual block, y = x + f(x), that is a copy of it whose f starts at zero; elsewhere a linear map with norm
    and activation, as the layers around it have.

    Args:
        model: Any module that ``graph`` was traced from.
        site: The depth site or its name.
        graph: ``auxin.trace(model, example_inputs)``; traced again after the insertion.
        optimizer: Optimizers that shall train the new block.
        ema: An averaged copy of the model, or several, that get the same block.
        loader: Training batches or model inputs to calibrate the block's norm on; the example inputs if None.
        kernel_size: Odd size of the convolution's kernel; 1 where the edge has a single position (a pooled map).
        noise: Standard deviation of noise on the identity weights; 0 preserves the function.
        copy: Whether to copy the module that the block follows; None does so where it is a residual block.
        fresh: Share of a copy's weights that is drawn anew, 0 to 1; the function does not see it, as f starts at zero.
            None is 0 for the first copy of a module and 0.5 for further ones, which would stay like it.
        seed: Seed of the noise, and of what is drawn anew.

    Returns:
        What changed.

    Raises:
        ConfigError: If there is no such site, an option does not fit it, or the optimizer or an averaged copy is of
            another model.
        GrowthError: If the grown model fails; everything is restored.
        TraceError: If the model has been sharded since it was traced.
    """
    name = site.name if isinstance(site, DepthSite) else site
    plan = GrowthPlan("identity", (Deepen(name, kernel_size, noise, copy, fresh, seed),), preserves=noise == 0)
    generator = torch.Generator().manual_seed(seed)
    inputs = None if loader is None else [model_inputs(batch, graph.example_inputs) for batch in loader]
    return apply(plan, model, graph, optimizer=optimizer, ema=ema, batches=inputs, generator=generator)
