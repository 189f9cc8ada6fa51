"""The Grad-CAM gallery of a run's page: where its first and its last size look."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from auxin.analysis.curves import RunRecord
from auxin.analysis.gradcam import Attention, attend, choose_layer
from auxin.analysis.pictures import tile
from auxin.data import ImageData
from auxin.data.augment import normalise
from auxin.report.models import model_of

MOST_IMAGES = 10


@dataclass(frozen=True)
class Look:
    """What one size makes of one image.

    Attributes:
        size: Its parameters, such as "28.7k".
        picture: PNG as a data URI.
        predicted: Name of the predicted class.
        right: Whether it is the true one.
        confidence: Its probability.
        entropy: Spread of the map, 0 to 1; None for an empty map.
        area: Share of the image above half of the maximum; None likewise.
    """

    size: str
    picture: str
    predicted: str
    right: bool
    confidence: float
    entropy: float | None
    area: float | None


@dataclass(frozen=True)
class Card:
    """One image with what every shown size makes of it.

    Attributes:
        number: Index in the test images.
        true: Name of its class.
        picture: PNG as a data URI.
        looks: One per size.
    """

    number: int
    true: str
    picture: str
    looks: list[Look]


@dataclass(frozen=True)
class Gallery:
    """The section's content.

    Attributes:
        cards: One per image.
        sizes: Parameters of each size.
        layers: Layer that was looked at, per size.
        part: "test" or "validation".
    """

    cards: list[Card]
    sizes: list[str]
    layers: list[str]
    part: str


def make_gallery(record: RunRecord, data: ImageData, sizes: dict[int, str]) -> Gallery:
    """Compute Grad-CAM of the first image of each class by some sizes of a run.

    Args:
        record: The run.
        data: Its images.
        sizes: Rung → what to call it.

    Returns:
        The gallery.
    """
    tested = len(data.test_labels) > 0
    images, labels = data.part("test" if tested else "val")
    numbers = first_of_each_class(labels, data.num_classes)[:MOST_IMAGES]
    images, labels = images[numbers].cpu(), labels[numbers].cpu()
    inputs = as_inputs(images, data)
    layers, found = [], []
    for rung in sizes:
        model = model_of(record, rung)
        layers.append(choose_layer(model, inputs[:1]))
        found.append(attend(model, inputs, layers[-1]))
    cards = []
    for index, number in enumerate(numbers):
        true = int(labels[index])
        looks = [
            _look(size, images[index], attention, index, true, data)
            for size, attention in zip(sizes.values(), found, strict=True)
        ]
        cards.append(Card(number, data.classes[true], data_uri(tile(images[index])), looks))
    return Gallery(cards, list(sizes.values()), layers, "test" if tested else "validation")


def _look(size: str, image: Tensor, attention: Attention, index: int, true: int, data: ImageData) -> Look:
    predicted = int(attention.predicted[index])
    entropy, area = float(attention.entropy[index]), float(attention.area[index])
    return Look(
        size=size,
        picture=data_uri(tile(image, attention.maps[index])),
        predicted=data.classes[predicted],
        right=predicted == true,
        confidence=float(attention.confidence[index]),
        entropy=None if np.isnan(entropy) else entropy,
        area=None if np.isnan(area) else area,
    )


def first_of_each_class(labels: Tensor, num_classes: int) -> list[int]:
    """Return the index of the first image of each class, class by class.

    Args:
        labels: (N,).
        num_classes: Number of classes.

    Returns:
        At most ``num_classes`` indices.
    """
    places = [(labels == label).nonzero() for label in range(num_classes)]
    return [int(place[0]) for place in places if len(place)]


def as_inputs(images: Tensor, data: ImageData) -> Tensor:
    """Return uint8 images as a model of this set takes them.

    Args:
        images: uint8, (N, C, H, W).
        data: Knows mean and standard deviation.

    Returns:
        float32, (N, C, H, W), on the CPU.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (data.mean, data.std))
    return normalise(images.cpu(), mean, 1 / std)


def data_uri(pixels: np.ndarray) -> str:
    """Return pixels, uint8 (H, W, 3), as a PNG in a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
