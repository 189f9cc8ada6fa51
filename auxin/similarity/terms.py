"""The two terms of the objective as plain differentiable functions of weights.

Each public function takes one weight whose first dimension counts neurons; those that start with ``of_`` take a batch
of matrices (L, n, d) and return one value for each. Everything is computed in float32 at least, also under autocast.

Reference:
    Sakai and Hotta 2024 (arXiv 2408.13291), equations 1 to 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 0.05
"""|ΣW| below about this share of Σ|W_previous| counts as nearly zero: there the change is measured linearly."""


def cosine_map(weight: Tensor) -> Tensor:
    """Return the cosine similarity of every pair of neurons, Eq. 1.

        C = Ŵ Ŵᵀ,  ŵ_i = w_i / |w_i|

    Args:
        weight: (C_out, ...), for example (C_out, C_in, k, k); neurons are flattened. A neuron whose weights are all
            zero has no direction; its row and column of the map are zero.

    Returns:
        (C_out, C_out), float32, or float64 for float64 weights.

    Example:
        >>> import torch
        >>> cosine_map(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))[2]
        tensor([0.7071, 0.7071, 1.0000])
    """
    return of_cosine_map(as_matrix(weight)[None])[0]


def mean_similarity(weight: Tensor) -> Tensor:
    """Return the mean absolute similarity of two different neurons, Eq. 2.

        μ = 1/(n(n−1)) Σ_{i≠j} |C_ij|

    n counts the neurons with a direction; with fewer than two, μ is 0. Independent random neurons with d weights have
    μ ≈ sqrt(2/(πd)).

    Args:
        weight: (C_out, ...), as in ``cosine_map``.

    Returns:
        A scalar from 0 to 1, differentiable where no two neurons are orthogonal.

    Example:
        >>> import torch
        >>> mean_similarity(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -5.0], [0.0, 0.0]]))
        tensor(0.3333)
    """
    return of_mean_similarity(as_matrix(weight)[None])[0]


def weight_change(weight: Tensor, previous: Tensor, *, literal: bool = False) -> Tensor:
    """Return how far the sum of a layer's weights has moved, Eq. 4.

        literal:  ω = log |ΣW / ΣW_prev|
        sound:    ω = |f(ΣW) − f(ΣW_prev)|,  f(s) = asinh(s / (2·eps·Σ|W_prev|)),  eps = 0.05

    The literal form has no lower bound: minimising it drives the sum to zero instead of preserving it, and its gradient
    1/ΣW explodes there. The sound form is |log |ΣW / ΣW_prev|| where both sums are far from zero and have one sign, is
    linear around zero, counts a change of sign as a change, and has slope 1/(2·eps·Σ|W_prev|) at most.

    Args:
        weight: The weights now, any shape.
        previous: The weights before, of the same shape.
        literal: Whether to take the paper's letters.

    Returns:
        A scalar; the sound form is 0 where nothing moved and positive elsewhere.
    """
    current, before = _float(weight).reshape(1, -1), _float(previous).reshape(1, -1)
    return of_weight_change(current.sum(1), before.sum(1), before.abs().sum(1), literal=literal)[0]


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight as neurons × weights, (C_out, d), in float32 at least."""
    return _float(weight).flatten(1)


def of_cosine_map(matrices: Tensor) -> Tensor:
    """Return Eq. 1 for each of a batch of matrices: (L, n, d) → (L, n, n)."""
    norms = torch.linalg.vector_norm(matrices, dim=2, keepdim=True)
    alive = norms > torch.finfo(matrices.dtype).tiny ** 0.5
    directions = matrices / torch.where(alive, norms, 1) * alive
    with torch.autocast(matrices.device.type, enabled=False):
        return directions @ directions.mT


def of_mean_similarity(matrices: Tensor) -> Tensor:
    """Return Eq. 2 for each of a batch of matrices: (L, n, d) → (L,)."""
    return mean_off_diagonal(of_cosine_map(matrices))


def mean_off_diagonal(maps: Tensor, among: Tensor | None = None) -> Tensor:
    """Return the mean absolute off-diagonal entry of each map, over pairs of neurons with a direction.

    Args:
        maps: Cosine maps (L, n, n).
        among: Where given, (L, n): only pairs with at least one of these neurons count.

    Returns:
        (L,); 0 where there is no such pair.
    """
    alive = maps.detach().diagonal(dim1=1, dim2=2) > 0
    pairs = alive[:, :, None] & alive[:, None, :]
    if among is not None:
        pairs = pairs & (among[:, :, None] | among[:, None, :])
    pairs = pairs & ~torch.eye(maps.shape[1], dtype=torch.bool, device=maps.device)
    return (maps.abs() * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def of_weight_change(sums: Tensor, previous: Tensor, absolute: Tensor, *, literal: bool = False) -> Tensor:
    """Return Eq. 4 for each of some layers.

    Args:
        sums: ΣW of each layer now, (L,).
        previous: ΣW_prev, (L,).
        absolute: Σ|W_prev|, (L,).
        literal: Whether to take the paper's letters.

    Returns:
        (L,).
    """
    tiny = torch.finfo(sums.dtype).tiny
    if literal:
        return sums.abs().clamp(min=tiny).log() - previous.abs().clamp(min=tiny).log()
    scale = (2 * EPS * absolute).clamp(min=tiny)
    return (torch.asinh(sums / scale) - torch.asinh(previous / scale)).abs()


def _float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
