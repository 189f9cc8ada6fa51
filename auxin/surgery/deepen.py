"""Insert a block that starts as the identity after a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.capture import clone_tensors, evaluation, normalise_inputs
from auxin.graph.numbers import copies_of
from auxin.surgery.blocks import GROWN, IdentityBlock, attach, detach_last, make_block, renew
from auxin.surgery.param_groups import add_parameters
from auxin.surgery.transaction import Transaction
from auxin.types import Deepen, DepthSite


def check_deepen(graph: Graph, model: nn.Module, op: Deepen) -> None:
    """Refuse an insertion that cannot be done.

    Args:
        graph: The model's graph.
        model: The model.
        op: The insertion.

    Raises:
        ConfigError: If the site is unknown, the kernel size is even, or the module already uses our name.
    """
    site = graph.site(op.site)
    if op.copy and not site.neutral:
        raise ConfigError(f"{op.site!r} is no residual block, y = x + f(x), to copy: leave copy out for a plain block.")
    if op.copy is False and not site.activation:
        raise ConfigError(f"No activation ends {op.site!r}, so only a copy of it can follow: leave copy out.")
    odd = type(op.kernel_size) is int and op.kernel_size > 0 and op.kernel_size % 2 == 1
    if not is_copy(site, op) and site.kind != "linear" and not odd:
        raise ConfigError(f"An identity convolution needs an odd kernel size, not {op.kernel_size!r}.")
    if op.noise < 0:
        raise ConfigError(f"The noise of a new layer is a standard deviation of 0 or more, not {op.noise}.")
    if op.fresh is not None:
        if op.copy is False or not site.neutral:
            raise ConfigError(
                f"Only a copy has weights to draw anew, and {op.site!r} gets a plain block: leave fresh out."
            )
        if not 0 <= op.fresh <= 1:
            raise ConfigError(f"The share of a copy's weights that is drawn anew is {op.fresh}: give 0 to 1.")
    host = model.get_submodule(site.name)
    taken = getattr(host, GROWN, None)
    if taken is not None and not (isinstance(taken, nn.Sequential) and GROWN in host._modules):
        raise ConfigError(f"Module {site.name!r} has an attribute {GROWN!r} of its own; rename it to grow there.")


def is_copy(site: DepthSite, op: Deepen) -> bool:
    """Return whether an insertion copies the module that it follows."""
    return bool(site.neutral) and op.copy is not False


def block_options(site: DepthSite, op: Deepen) -> dict[str, Any]:
    """Return what ``make_block`` needs for the block that fits a site."""
    if is_copy(site, op):
        return {"neutral": dict(site.neutral)}
    return {
        "kind": site.kind,
        "channels": site.channels,
        "kernel_size": 1 if site.pointwise else op.kernel_size,
        "norm": site.norm,
        "bias": site.bias,
        "activation": site.activation,
        "arguments": dict(site.arguments),
        "blend": not site.idempotent,
    }


@torch.no_grad()
def channel_statistics(
    model: nn.Module, sites: Iterable[DepthSite], batches: Sequence[Any]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance per channel of the edges at some sites, with batch norms upstream in training mode.

    Args:
        model: The model; its buffers come back as they were.
        sites: The sites after these modules.
        batches: Model inputs.

    Returns:
        For each site's name mean and (biased) variance over all other dimensions, each of shape (channels,).

    Raises:
        ConfigError: If a batch norm upstream sees a single value of each channel.
        ValueError: If the model refuses a batch for another reason.
    """
    total: dict[str, list[Tensor]] = {}

    def record(site: DepthSite, output: Tensor) -> None:
        flat = output.detach().to(torch.float64).movedim(site.channel, 0).reshape(output.shape[site.channel], -1)
        sums = torch.stack([flat.sum(1), flat.square().sum(1), torch.full_like(flat[:, 0], flat.shape[1])])
        total.setdefault(site.name, []).append(sums)

    handles = [
        model.get_submodule(site.name).register_forward_hook(lambda module, args, y, site=site: record(site, y))
        for site in sites
    ]
    kinds = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats)
    norms = [norm for norm in kinds if norm.training or not model.training]  # without those the user froze
    try:
        with evaluation(model), _in_training(norms):
            for batch in batches:
                args, kwargs = clone_tensors(normalise_inputs(batch))
                model(*args, **kwargs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "The norm of a new layer cannot be calibrated on a single sample: give a loader whose batches hold 2 or "
            "more."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for path, parts in total.items():
        sums, squares, counts = torch.stack(parts).sum(0)
        mean = sums / counts
        found[path] = mean, (squares / counts - mean.square()).clamp(min=0)
    return found


@contextmanager
def _in_training(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Let batch norms use the batch's statistics, as the next training step will, without updating their own."""
    saved = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
    try:
        for module in norms:
            module.training = True
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                buffer = getattr(module, name)
                module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, (mean, variance, count) in zip(norms, saved, strict=True):
            module._buffers.update(running_mean=mean, running_var=variance, num_batches_tracked=count)


def deepen_model(
    model: nn.Module, graph: Graph, op: Deepen, optimizers: Sequence[Optimizer], copies: Sequence[nn.Module],
    batches: Iterable[Any] | None, generator: torch.Generator, change: Transaction,
) -> dict[str, Any]:  # fmt: skip
    """Carry out one insertion on a model, its optimizers and its averaged copies.

    Args:
        model: The model.
        graph: Its graph.
        op: The insertion, already checked.
        optimizers: Optimizers that shall train the new parameters.
        copies: Modules of the same structure (averaged weights) that get the same block.
        batches: Model inputs to calibrate the norm on; the example inputs if None.
        generator: Source of the noise, if any.
        change: Where to record the changes.

    Returns:
        What ``make_block`` was given.
    """
    site, options = graph.site(op.site), block_options(graph.site(op.site), op)
    existing = dict(model.named_parameters())
    inputs = list(batches) if batches is not None else [graph.example_inputs]
    number = len(copies_of(model.get_submodule(site.name)))
    for target in (model, *copies):
        block = make_block(target, site.name, options, change)
        if is_copy(site, op):
            renew(block, options["neutral"], op, number)
        if isinstance(block, IdentityBlock) and site.norm:
            block.calibrate(*channel_statistics(target, [site], inputs)[site.name])
        place = target.get_submodule(site.name)
        attach(place, block)
        change.on_rollback(partial(detach_last, place))
        for name in options.get("neutral", ["map.weight"]) if op.noise else ():
            weight: Any = block.get_parameter(name)
            with torch.no_grad():
                weight += op.noise * torch.randn(weight.shape, generator=generator).to(weight)
        if target is not model:
            block.requires_grad_(False)
    new = {name: p for name, p in model.named_parameters() if name not in existing and p.requires_grad}
    add_parameters(optimizers, model, new, site.name, change)
    return options
