"""Kaiming initialisation, shared by the models of this folder."""

import torch
from torch import nn


@torch.no_grad()
def kaiming(model: nn.Module) -> None:
    """Initialise every convolution, batch norm and linear layer of a model in place.

    Convolutions draw from N(0, 2 / fan_in), linear layers from N(0, 1 / fan_in), with fan_in = C_in / groups · k · k
    (fan_out would be wrong by a factor of ``groups`` for depthwise filters); biases are 0, batch norms 1 and 0.
    Draws come from torch's global generator, as in every ``nn.Module``: call ``torch.manual_seed`` before.

    Args:
        model: The model to initialise.

    Reference:
        He et al., Delving Deep into Rectifiers (arXiv 1502.01852), equation 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
