"""Averaged copies of a model (EMA, SWA) follow what a refinement does to its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from auxin.similarity.layers import Layer


@contextmanager
def followed(model: nn.Module, layers: Sequence[Layer], ema: Sequence[nn.Module]) -> Iterator[None]:
    """Add to averaged copies, at the end, the change that some layers' weights went through.

    An average of weights that all move by δ moves by δ. Where a copy's weight is the model's own, as in the fresh
    neurons of an event that has just resized both, it is so afterwards too, to the bit.

    Args:
        model: The model whose weights change.
        layers: The layers that may change.
        ema: Copies of the same structure, as ``averaged_copies`` returns them.

    Yields:
        Nothing; the weights change meanwhile.
    """
    copies = [dict(copy.named_parameters()) for copy in ema]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    before = [layer.weight.detach().clone() for layer in layers] if copies else []
    yield
    with torch.no_grad():
        for parameters in copies:
            for layer, start in zip(layers, before, strict=True):
                average = parameters[names[id(layer.weight)]]
                old, new = start.to(average), layer.weight.to(average)
                average.copy_(torch.where(average == old, new, average + (new - old)))
