"""Where a network looks: Grad-CAM, how spread out it is, and whether the places it marks matter to the network.

Reference:
    Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2; Petsiuk et al. 2018 (arXiv 1806.07421), section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn import functional

from auxin.errors import ConfigError

SMALLEST_MAP = 4
"""A map of fewer cells a side says little about where a network looks, so it is not chosen by itself."""

STEPS = 16
"""Portions in which insertion and deletion change an image."""

_BATCH = 250


@dataclass(frozen=True, eq=False)
class Attention:
    """Where a network looks in some images.

    Attributes:
        maps: Grad-CAM, (N, H, W), each from 0 to 1; all zeros where nothing speaks for the class.
        predicted: Predicted classes, (N,).
        confidence: Probability of the predicted class, (N,).
        entropy: Spread of each map, (N,): 0 is one pixel, 1 is even; NaN for an empty map.
        area: Share of the image above half of the map's maximum, (N,); NaN for an empty map.
    """

    maps: Tensor
    predicted: Tensor
    confidence: Tensor
    entropy: np.ndarray
    area: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its 95 % confidence interval.

    Attributes:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end.
        num_images: Images it is taken over.
    """

    mean: float
    low: float
    high: float
    num_images: int

    def __str__(self) -> str:
        half = (self.high - self.low) / 2
        return f"{self.mean:.3f}" if np.isnan(half) else f"{self.mean:.3f} ± {half:.3f}"


def estimate(values: np.ndarray) -> Estimate:
    """Return the mean of some values, mean ± 1.96·s/√n, those that are NaN left out.

    Args:
        values: One per image, (N,).

    Returns:
        The estimate; the interval is the normal approximation, NaN for fewer than two values.

    Example:
        >>> print(estimate(np.array([0.0, 1.0, 0.0, 1.0])))
        0.500 ± 0.566
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Estimate(mean, mean - half, mean + half, len(values))


def maps_of_layers(model: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """Return the modules that Grad-CAM can look at: convolutions with an output (N, C, H, W).

    Args:
        model: In eval mode.
        image: One input, (1, C, H, W).

    Returns:
        Path of the module → height and width of its output, in the order they run.
    """
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    sizes: dict[str, tuple[int, int]] = {}

    def note(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        sizes[names[module]] = (output.shape[2], output.shape[3])

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def choose_layer(model: nn.Module, image: Tensor, name: str | None = None) -> str:
    """Return the layer to look at.

    Args:
        model: In eval mode.
        image: One input, (1, C, H, W).
        name: Path of a convolution; None takes the last whose map has at least 4 × 4 cells, else the largest map.

    Returns:
        Its path.

    Raises:
        ConfigError: If there is no such convolution, or none at all.
    """
    sizes = maps_of_layers(model, image)
    if not sizes:
        raise ConfigError("Grad-CAM needs a convolution with an image-shaped output, and this model has none.")
    if name is None:
        fine = [layer for layer, size in sizes.items() if min(size) >= SMALLEST_MAP]
        return fine[-1] if fine else max(sizes, key=lambda layer: min(sizes[layer]))
    if name not in sizes:
        raise ConfigError(f"Grad-CAM knows no layer {name!r}; choose one of {', '.join(sizes)}.")
    return name


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the predicted classes, (N,).

    Args:
        model: In eval mode; maps images to logits (N, classes).
        images: As the model takes them, (N, C, H, W).

    Returns:
        int64.
    """
    return torch.cat([model(batch).argmax(1) for batch in images.split(_BATCH)])


def attend(model: nn.Module, images: Tensor, layer: str, target: Tensor | None = None) -> Attention:
    """Compute Grad-CAM, resized to the images.

        α_k = 1/Z Σ_ij ∂y_c/∂A_k,ij     L = relu(Σ_k α_k A_k)

    Args:
        model: In eval mode; maps images to logits (N, classes).
        images: As the model takes them, (N, C, H, W).
        layer: Path of a convolution.
        target: Classes to explain, (N,); None explains the predicted ones.

    Returns:
        The maps and their spread. In-place activations of the model are turned into ordinary ones.
    """
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # it would overwrite the activations that are read
    cam = LayerGradCam(model, model.get_submodule(layer))
    parts, predictions, confidences = [], [], []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        with torch.no_grad():
            probabilities = model(batch).softmax(1)
        confidence, predicted = probabilities.max(1)
        classes = predicted if target is None else target[start : start + _BATCH]
        coarse = cam.attribute(batch, target=classes, relu_attributions=True).detach()
        fine = functional.interpolate(coarse, size=batch.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        parts.append(fine / fine.amax((1, 2), keepdim=True).clamp(min=1e-12))
        predictions.append(predicted)
        confidences.append(confidence)
    maps = torch.cat(parts)
    entropy, area = spread(maps)
    return Attention(maps, torch.cat(predictions), torch.cat(confidences), entropy, area)


def spread(maps: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return how spread out maps are.

        entropy = −Σ p log p / log(H·W),  p = map / Σ map;      area = share of pixels above half of the maximum

    Args:
        maps: (N, H, W), nothing negative.

    Returns:
        Entropy and area, (N,) each; NaN for a map of zeros.
    """
    flat = maps.flatten(1).double()
    total, top = flat.sum(1, keepdim=True), flat.amax(1, keepdim=True)
    p = flat / total.clamp(min=1e-12)
    entropy = torch.special.entr(p).sum(1) / np.log(flat.shape[1])
    area = (flat > top / 2).double().mean(1)
    empty = total[:, 0] <= 0
    return (
        entropy.masked_fill(empty, float("nan")).cpu().numpy(),
        area.masked_fill(empty, float("nan")).cpu().numpy(),
    )


@torch.no_grad()
def insertion_deletion(
    model: nn.Module, images: Tensor, attention: Attention, target: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each image how fast the class appears and disappears with the pixels that a map ranks first.

    Insertion starts from a blurred image and puts the true pixels back, the most important ones first; deletion
    replaces them by the mean colour of the data set. The score is the mean probability of the class on the way: a good
    map has a high insertion and a low deletion score.

    Args:
        model: In eval mode.
        images: Normalised so that 0 is the mean colour, (N, C, H, W).
        attention: What ``attend`` returned for them.
        target: The class whose probability is followed, (N,); None follows the predicted one.

    Returns:
        Insertion and deletion, (N,) each, from 0 to 1.
    """
    classes = attention.predicted if target is None else target
    scores: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch, maps, wanted in _batches(images, attention.maps, classes):
        ranks = maps.flatten(1).argsort(1, descending=True).argsort(1).reshape(maps.shape)[:, None]
        blurred, mean = blur(batch), torch.zeros_like(batch)
        for scored, (first, then) in zip(scores, ((blurred, batch), (batch, mean)), strict=True):
            curve = []
            for step in range(STEPS + 1):
                mask = ranks < step * maps[0].numel() / STEPS
                probabilities = model(torch.where(mask, then, first)).softmax(1)
                curve.append(probabilities.gather(1, wanted[:, None])[:, 0].double())
            stacked = torch.stack(curve)
            scored.append((stacked[:-1] + stacked[1:]).mean(0) / 2)  # the trapezoid rule
    insertion, deletion = (torch.cat(parts).cpu().numpy() for parts in scores)
    return insertion, deletion


def blur(images: Tensor) -> Tensor:
    """Return images without detail: a Gaussian of an eighth of the shorter side, mirrored at the border."""
    side = min(images.shape[2:])
    sigma, reach = side / 8, max(min(side // 4, side - 1), 1)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    rows = functional.conv2d(padded, weights, groups=images.shape[1])
    return functional.conv2d(rows, weights.transpose(2, 3), groups=images.shape[1])


def _batches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(tensor.split(_BATCH) for tensor in tensors), strict=True)
