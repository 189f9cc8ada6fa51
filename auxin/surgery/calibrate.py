"""Give the norms of new channels the statistics of what they will see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from auxin.graph.capture import clone_tensors, evaluation, normalise_inputs


@torch.no_grad()
def calibrate_channels(model: nn.Module, channels: Mapping[str, Tensor], batches: Iterable[Any]) -> None:
    """Set the running mean and variance of some channels of batch norms to those of one forward, in its order.

    A norm further down the same new channels sees them as the norms above have just been set.

    Args:
        model: The model, changed in place; everything else runs in eval mode.
        channels: For each batch norm's path the indices of its channels.
        batches: Model inputs; their statistics are averaged.
    """
    counts = dict.fromkeys(channels, 0)

    def follow(path: str, module: Any, x: Tensor) -> None:
        index = channels[path].to(x.device)
        mine = x.movedim(1, 0)[index].flatten(1)
        seen = counts[path]
        for buffer, now in ((module.running_mean, mine.mean(1)), (module.running_var, mine.var(1, unbiased=False))):
            buffer[index] = (buffer[index] * seen + now.to(buffer)) / (seen + 1)
        counts[path] = seen + 1

    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: follow(path, module, args[0])
        )
        for path in channels
    ]
    try:
        with evaluation(model):
            for batch in batches:
                args, kwargs = clone_tensors(normalise_inputs(batch))
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
