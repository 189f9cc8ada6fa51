"""Re-estimate the running statistics of batch norms after weights have moved under them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from auxin.errors import ConfigError
from auxin.graph.capture import clone_tensors, evaluation, normalise_inputs, unwrap


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch norms with running statistics; in a model that is training, without those the user froze."""
    found = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    return [m for m in found if m.training] if model.training else found


@torch.no_grad()
def reestimate_norms(model: nn.Module, batches: Iterable[Any], num_batches: int) -> int:
    """Replace the running mean and variance of every batch norm by their averages over some batches.

    Only norms run in training mode, everything else in evaluation mode, so dropout draws no numbers. Training flags,
    momenta and ``num_batches_tracked`` come back as they were.

    Args:
        model: Any module.
        batches: Inputs of its forward: tensors, tuples of arguments, or dicts of keyword arguments.
        num_batches: How many of them to use.

    Returns:
        Number of norms re-estimated.

    Raises:
        ConfigError: If there is no batch.
    """
    model = unwrap(model)
    norms = batch_norms(model)
    if not norms or num_batches < 1:
        return 0
    with evaluation(model), _averaging(norms):
        used = 0
        for batch in islice(batches, num_batches):
            args, kwargs = clone_tensors(normalise_inputs(batch))
            model(*args, **kwargs)
            used += 1
        if not used:
            raise ConfigError("Batch norms cannot be re-estimated without a batch: pass a loader that is not empty.")
    return len(norms)


@contextmanager
def _averaging(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    saved = [(norm.momentum, [getattr(norm, name).clone() for name in names]) for norm in norms]
    done = False
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # None: the plain average over batches
        yield
        done = True
    finally:
        for norm, (momentum, values) in zip(norms, saved, strict=True):
            norm.momentum = momentum
            for name, value in zip(names, values, strict=True):
                if not done or name == "num_batches_tracked":
                    getattr(norm, name).copy_(value)
