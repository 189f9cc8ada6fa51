"""Re-estimate the running statistics of batch norms after weights have moved under them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from auxin.errors import ConfigError
from auxin.graph.capture import evaluation, normalise_inputs, unwrap


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch norms with running statistics; in a model that is training, without those the user froze."""
    found = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    return [m for m in found if m.training] if model.training else found


def model_inputs(batch: Any, example: Any) -> Any:
    """Return what the model is given of a training batch, by the form of its example inputs.

    Args:
        batch: What a data loader yields: a tensor, a sequence that begins with the forward's arguments (labels and the
            like may follow), or a dict that holds its keyword arguments.
        example: The graph's example inputs.

    Returns:
        Inputs of the example's form.
    """
    if isinstance(example, Mapping) and isinstance(batch, Mapping):
        return {key: batch[key] for key in example if key in batch}
    if isinstance(batch, (tuple, list)):
        return tuple(batch[: len(example)]) if isinstance(example, (tuple, list)) else batch[0]
    return batch


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
        device = next(model.parameters()).device
        for batch in islice(batches, num_batches):
            args, kwargs = pytree.tree_map(
                lambda x: x.to(device) if isinstance(x, Tensor) else x, normalise_inputs(batch)
            )
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
