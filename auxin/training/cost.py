"""What a model costs: parameters, and FLOPs of one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def num_parameters(model: nn.Module) -> int:
    """Return the number of entries of all parameters, each tied one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def num_flops(model: nn.Module, example: Tensor) -> int:
    """Return the FLOPs of one forward pass in eval mode; a multiply and an add count as two.

    Args:
        model: Left in the mode it was in.
        example: Its input.

    Returns:
        The sum over matrix products and convolutions, as ``torch.utils.flop_counter`` counts them.

    Example:
        >>> num_flops(nn.Linear(3, 4), torch.zeros(1, 3))
        24
    """
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(example)
    model.train(training)
    return int(counter.get_total_flops())
