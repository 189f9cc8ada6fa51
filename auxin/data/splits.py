"""Hold a stratified part out of a labelled set."""

import torch
from torch import Tensor

from auxin.errors import DataError


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices at random into a kept and a held-out part with the same mix of classes.

    Each class of n images gives floor(fraction · n) to the held-out part; the classes with the largest remainders give
    one more until it holds round(fraction · N), at least one. A class never gives its last image.

    Args:
        labels: int64, (N,), values from 0.
        fraction: Share to hold out, in [0, 1).
        seed: Seed of the draw.

    Returns:
        Indices kept and indices held out, int64, both in ascending order.

    Raises:
        DataError: If the fraction is outside [0, 1), or no class has two images.

    Example:
        >>> kept, held = hold_out(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> labels[held].tolist()
        [0, 1]
    """
    if not 0 <= fraction < 1:
        raise DataError(
            f"A held-out fraction of {fraction} is not usable: give a number from 0 up to, not including, 1."
        )
    num_images = len(labels)
    if fraction == 0:
        return torch.arange(num_images), torch.empty(0, dtype=torch.int64)
    counts = torch.bincount(labels)
    quota = _quota(counts, fraction)
    if quota.sum() == 0:
        raise DataError("No class has two images, so none can be held out: give more images or a fraction of 0.")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(num_images, generator=generator)
    by_class = shuffled[torch.sort(labels[shuffled], stable=True).indices]
    starts = counts.cumsum(0) - counts
    sorted_labels = labels[by_class]
    rank = torch.arange(num_images) - starts[sorted_labels]
    taken = rank < quota[sorted_labels]
    return by_class[~taken].sort().values, by_class[taken].sort().values


def _quota(counts: Tensor, fraction: float) -> Tensor:
    exact = counts.double() * fraction
    limit = (counts - 1).clamp(min=0)
    quota = torch.minimum(exact.floor().long(), limit)
    missing = max(1, round(fraction * int(counts.sum()))) - int(quota.sum())
    remainder = exact - quota
    remainder[quota >= limit] = -1
    for label in remainder.argsort(descending=True, stable=True).tolist():
        if missing <= 0 or remainder[label] < 0:
            break
        quota[label] += 1
        missing -= 1
    return quota
