"""Whether a model fits the images, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from auxin.errors import ConfigError
from auxin.graph.capture import evaluation


def require_fit(forward: nn.Module, model: nn.Module, image: Tensor, num_classes: int, batch_size: int = 2) -> None:
    """Refuse a model that does not turn images into one number per class, or that such small batches cannot train.

    Args:
        forward: What training calls, the model or a wrapper of it.
        model: The model itself.
        image: One image, (1, C, H, W).
        num_classes: Number of classes of the images.
        batch_size: Images of a training batch.

    Raises:
        ConfigError: If it cannot take the image, returns something else, or has a batch norm that would see one value.
    """
    images = image.expand(2, *image.shape[1:])
    single: list[str] = []
    hooks = _note_single_values(model, len(images), single) if batch_size == 1 else []
    try:
        with torch.no_grad(), evaluation(model):
            logits = forward(images)
    except Exception as error:  # whatever the user's forward raises
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"The model cannot take images of shape {tuple(image.shape[1:])} ({reason}).") from error
    finally:
        for hook in hooks:
            hook.remove()
    if single:
        raise ConfigError(
            f"A train.batch_size of 1 cannot train the batch norm {single[0]} over one value per channel: "
            "give 2 or more."
        )
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < num_classes:
        raise ConfigError(
            f"The model returns {shape} for 2 images of {num_classes} classes: let it return one number per class, "
            f"in the shape (2, {num_classes})."
        )


def _note_single_values(model: nn.Module, num_images: int, single: list[str]) -> list[RemovableHandle]:
    """Have the forward add to a list which batch norms take one value per channel from each image."""
    frozen = {norm for norm in model.modules() if model.training and not norm.training}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and inputs[0].numel() == num_images * inputs[0].shape[1]:
                single.append(name)

        return look

    norms = [(name, norm) for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)]
    return [norm.register_forward_pre_hook(note(name)) for name, norm in norms if norm not in frozen]
