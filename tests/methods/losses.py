"""A loss whose gradient at every output is generic, so that no gradient vanishes by symmetry."""

import torch
from torch import Tensor

from tests.cases import flatten


def generic_loss(output, target=None) -> Tensor:
    """Return a random linear function of all outputs plus their mean square; the target is not looked at."""
    total = torch.zeros((), dtype=torch.float64)
    for i, out in enumerate(flatten(output)):
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        total = total + (weight * out).sum() + out.square().mean()
    return total
