"""Whether a model fits the images, checked before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.graph.capture import evaluation


def require_fit(forward: nn.Module, model: nn.Module, image: Tensor, num_classes: int) -> None:
    """Refuse a model that does not turn images into one number per class.

    Args:
        forward: What training calls, the model or a wrapper of it.
        model: The model itself.
        image: One image, (1, C, H, W).
        num_classes: Number of classes of the images.

    Raises:
        ConfigError: If it cannot take the image, or returns something else.
    """
    images = image.expand(2, *image.shape[1:])
    try:
        with torch.no_grad(), evaluation(model):
            logits = forward(images)
    except Exception as error:  # whatever the user's forward raises
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"The model cannot take images of shape {tuple(image.shape[1:])} ({reason}).") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < num_classes:
        raise ConfigError(
            f"The model returns {shape} for 2 images of {num_classes} classes: let it return one number per class, "
            f"in the shape (2, {num_classes})."
        )
