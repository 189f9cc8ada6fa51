"""How alike the activations of a layer's neurons are: how far they rise and fall together over data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.capture import evaluation, normalise_inputs, unwrap
from auxin.similarity.layers import Layer, find_layers, grown_units, masks
from auxin.similarity.terms import mean_off_diagonal
from auxin.statistics.batches import precise_copy, precision
from auxin.types import Event

SAMPLES = 8192
"""Activations that a covariance is estimated from, at least (if the batches have as many)."""


def activation_similarity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    graph: Graph | None = None,
    event: Event | None = None,
    layers: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return the mean absolute correlation of two different neurons, for each layer.

        ρ_ij = cov(z_i, z_j) / (σ_i σ_j),   z = W h        (h: the layer's inputs, over images and positions or tokens)

    This is μ with the angle between activations in place of the angle between weights. z is what the neurons compute
    before norm and nonlinearity, in eval mode; a norm's scale and shift do not change |ρ|. Neurons whose activation
    does not vary are left out. At most about ``SAMPLES`` activations are looked at, chosen with a fixed seed.

    Args:
        model: Any module; it is not changed.
        batches: Inputs of its forward: tensors, tuples of arguments, or dicts of keyword arguments.
        graph: Its graph, which knows the classifier and the new neurons; needed with ``event``.
        event: A growth event that has just been applied: only pairs with a neuron it added count then.
        layers: Names or regular expressions of module paths; None takes all the similarity constraint applies to.

    Returns:
        By module path, from 0 (uncorrelated) to 1; without layers that are not called as modules, or with an event,
        that it did not widen.

    Raises:
        ConfigError: If there is no batch, or an event without graph.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        >>> model = torch.nn.Sequential(layer, torch.nn.Linear(2, 1))
        >>> round(activation_similarity(model, [torch.randn(64, 2)])["0"], 5)
        1.0

    Reference:
        Li et al. 2016 (arXiv 1511.07543), section 3: neurons compared by the correlation of their activations. CKA
        (Kornblith et al. 2019, arXiv 1905.00414) compares whole layers and is blind to rotations, hence to neurons.
    """
    model = unwrap(model)
    found = find_layers(model, graph=graph, layers=layers)
    among: list[Tensor | None] = [None] * len(found)
    if event is not None:
        if graph is None:
            raise ConfigError("Only the graph knows which neurons an event added: pass graph= with event=.")
        among = [*masks(model, found, graph, grown_units(event, None, graph, parents=False)[0])]
    rows = [(layer, layer.matrices().detach()) for layer in found]
    result = {}
    for layer, mask, measured in zip(found, among, moments(model, rows, batches), strict=True):
        if measured is None or (mask is not None and not bool(mask.any())):
            continue
        result[layer.name] = float(mean_off_diagonal(_correlation(measured[1]), mask).mean())
    return result


@torch.no_grad()
def moments(
    model: nn.Module,
    rows: Sequence[tuple[Layer, Tensor]],
    batches: Iterable[Any],
    generator: torch.Generator | None = None,
) -> list[tuple[Tensor, Tensor] | None]:
    """Return mean and covariance of what some rows of weights compute from a layer's inputs.

    The layer itself, with these rows for a weight, runs beside it on a copy of the model, so no patch is ever laid out.

    Args:
        model: The model, only read.
        rows: For each layer, rows to try, (groups, k, d).
        batches: Model inputs.
        generator: Chooses which positions to look at; None has a fixed seed.

    Returns:
        For each layer (groups, k) and (groups, k, k), float64; None if the forward does not call its module.

    Raises:
        ConfigError: If there is no batch.
    """
    dtype = precision(model)
    device = next(model.parameters()).device
    generator = generator or torch.Generator().manual_seed(0)
    given = [pytree.tree_map(lambda x: _placed(x, device, dtype), normalise_inputs(batch)) for batch in batches]
    if not given:
        raise ConfigError("Activations cannot be compared without a batch: pass batches that are not empty.")
    clone = precise_copy(model)
    sums = [_Sums(layer.groups, tried.shape[1], len(given), generator, device) for layer, tried in rows]
    with ExitStack() as stack:
        for (layer, tried), total in zip(rows, sums, strict=True):
            module = clone.get_submodule(layer.name)
            hook = _watch(module, layer, tried.to(dtype), total)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.enter_context(evaluation(clone))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        for args, kwargs in given:
            clone(*args, **kwargs)
    return [total.moments() for total in sums]


class _Sums:
    """Running sums over a sample of each call's activations, in float64 since the means are subtracted at the end."""

    def __init__(self, groups: int, k: int, calls: int, generator: torch.Generator, device: torch.device) -> None:
        self.groups, self.generator = groups, generator
        self.share = -(-max(SAMPLES, 8 * k) // calls)
        self.number = 0
        self.first = torch.zeros(groups, k, dtype=torch.float64, device=device)
        self.second = torch.zeros(groups, k, k, dtype=torch.float64, device=device)

    def add(self, z: Tensor) -> None:
        """Add activations (..., groups·k)."""
        z = z.flatten(0, -2)
        if len(z) > self.share:
            z = z[torch.randperm(len(z), generator=self.generator)[: self.share].to(z.device)]
        z = z.double().unflatten(1, (self.groups, -1)).transpose(0, 1)
        self.number += z.shape[1]
        self.first += z.sum(1)
        self.second += z.mT @ z

    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Return mean and covariance; None of nothing."""
        if not self.number:
            return None
        mean = self.first / self.number
        return mean, self.second / self.number - mean[:, :, None] * mean[:, None, :]


def _watch(module: nn.Module, layer: Layer, rows: Tensor, total: _Sums) -> Callable[..., None]:
    """Return a hook that runs a layer with some rows (groups, k, d) for its weight and no bias, beside the layer."""
    number = layer.groups * rows.shape[1]
    indices = torch.zeros(number // layer.blocks, dtype=torch.int64, device=layer.weight.device)
    template = replace(layer, weight=layer.weight.detach().index_select(layer.dim, indices))
    tried = {"weight": template.restore(rows)}
    if getattr(module, "bias", None) is not None:
        tried["bias"] = rows.new_zeros(number)
    probe: Any = copy.deepcopy(module)
    probe._forward_pre_hooks.clear()
    probe._forward_hooks.clear()
    if hasattr(probe, "nf"):  # the GPT family's Conv1D counts its outputs itself
        probe.nf = number
    channel = -1 - len(getattr(probe, "kernel_size", ()))

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        total.add(functional_call(probe, tried, args, kwargs).movedim(channel, -1))

    return hook


def _correlation(covariance: Tensor) -> Tensor:
    variance = covariance.diagonal(dim1=1, dim2=2)
    # What does not vary but for rounding has no correlation.
    alive = variance > 1e-12 * variance.amax(1, keepdim=True)
    scale = torch.where(alive, variance, 1).rsqrt() * alive
    return covariance * scale[:, :, None] * scale[:, None, :]


def _placed(x: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.detach().to(device, dtype if x.is_floating_point() else None)
