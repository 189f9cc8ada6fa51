"""How the similarities of a layer's neurons are distributed, as counts small enough to keep for every event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from auxin.similarity.layers import Layer
from auxin.similarity.terms import of_cosine_map

BINS = 40
"""Bins of equal width from -1 to 1, so that -0.5 and 0.5 are edges."""

MOST = 2048
"""A matrix of more neurons is thinned out evenly to at most this many, which bounds time and memory."""


def of_histogram(maps: Tensor) -> Tensor:
    """Return how many pairs of neurons have a similarity in each bin.

    Args:
        maps: Cosine maps (L, n, n), Eq. 1 of Sakai and Hotta 2024.

    Returns:
        Counts (L, BINS), int64, over pairs i < j of neurons with a direction.
    """
    alive = maps.diagonal(dim1=1, dim2=2) > 0
    pairs = (alive[:, :, None] & alive[:, None, :]).triu(1)
    bins = ((maps[pairs] + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    layer = torch.arange(len(maps), device=maps.device).repeat_interleave(pairs.sum((1, 2)))
    return torch.bincount(bins + layer * BINS, minlength=len(maps) * BINS).reshape(-1, BINS)


@torch.no_grad()
def histogram(layer: Layer, weight: Tensor | None = None) -> list[int]:
    """Return the distribution of one layer's similarities.

    Args:
        layer: How to read the weight.
        weight: Another weight to read in the same way, such as the layer's before it grew.

    Returns:
        Counts in ``BINS`` bins from -1 to 1, over all pairs of neurons that read the same inputs.

    Example:
        >>> import torch
        >>> counts = histogram(Layer("0", torch.eye(3)))
        >>> sum(counts), counts[20]
        (3, 3)
    """
    if weight is not None:
        neurons = weight.shape[layer.dim] * layer.blocks
        layer = replace(layer, weight=weight, groups=1 if neurons % layer.groups else layer.groups)
    matrices = layer.matrices().detach()
    matrices = matrices[:, :: -(-matrices.shape[1] // MOST)]
    return [int(count) for count in of_histogram(of_cosine_map(matrices)).sum(0)]


def histograms(layers: Iterable[Layer], weights: Mapping[str, Tensor] | None = None) -> dict[str, list[int]]:
    """Return the distribution of each layer, by name.

    Args:
        layers: Such as ``find_layers`` returns.
        weights: Other weights to read, by parameter name, such as an earlier state dict; layers without one are left
            out.

    Returns:
        Layer name → counts in ``BINS`` bins.
    """
    if weights is None:
        return {layer.name: histogram(layer) for layer in layers}
    named = {layer.name: (layer, weights.get(f"{layer.name}.weight")) for layer in layers}
    return {name: histogram(layer, weight) for name, (layer, weight) in named.items() if weight is not None}
