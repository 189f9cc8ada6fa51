"""A labelled image set held as whole uint8 tensors: what every other part of auxin.data makes or reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Options:
    """How to read a source, where the user wants something else than what is found by itself.

    Attributes:
        image_size: Height and width to resize to; None for the most common size of the set.
        channels: 1 for grey, 3 for colour; None for grey where all images are grey.
        image_column: Name of the column of images.
        label_column: Name of the column of labels.
        config: Name of the configuration, for sets that have several.
    """

    image_size: tuple[int, int] | None = None
    channels: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    config: str | None = None


class Source(Protocol):
    """A place that images come from.

    Attributes:
        fingerprint: JSON data that changes whenever the decoded images would.
    """

    fingerprint: Any

    def decode(self) -> Decoded:
        """Read and decode all images."""
        ...


@dataclass(frozen=True, eq=False)
class Decoded:
    """A source after decoding, before validation or test parts are held out; what the disk cache stores.

    Attributes:
        splits: The parts the source itself has, (images, labels) each: ``train`` always, ``val`` and ``test`` maybe.
            Images are uint8 (N, C, H, W), labels int64 (N,).
        classes: Name of each label.
        facts: JSON data about where the images come from.
        notes: Sentences for the user about choices that were made on the way.
    """

    splits: Mapping[str, tuple[Tensor, Tensor]]
    classes: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ImageData:
    """Train, validation and test images of one set, as one tensor each, with what a training run must know.

    Attributes:
        train_images: uint8, (N, C, H, W), values 0 to 255.
        train_labels: int64, (N,), values 0 to ``num_classes`` - 1.
        val_images: As ``train_images``; empty if no validation part was asked for.
        val_labels: As ``train_labels``.
        test_images: As ``train_images``.
        test_labels: As ``train_labels``.
        classes: Name of each class.
        mean: Mean of each channel over the train part, after division by 255.
        std: Standard deviation of each channel, likewise.
        description: JSON data about origin, splits and choices, to be kept beside every result.
    """

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour images."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[2], self.train_images.shape[3]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.train_images.device

    def part(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return images and labels of ``train``, ``val`` or ``test``."""
        return getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same set with its tensors on another device."""
        moved = {
            f"{split}_{kind}": getattr(self, f"{split}_{kind}").to(device)
            for split in ("train", "val", "test")
            for kind in ("images", "labels")
        }
        return replace(self, **moved)

    def __repr__(self) -> str:
        sizes = " + ".join(str(len(labels)) for labels in (self.train_labels, self.val_labels, self.test_labels))
        height, width = self.image_size
        return (
            f"ImageData({self.description.get('source', '?')}: {sizes} images (train + val + test), "
            f"{self.channels}×{height}×{width}, {self.num_classes} classes)"
        )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images, after division by 255.

    Computed from the histogram of pixel values, so exact whatever the number of images. The standard deviation of a
    constant channel is given as 1, so that dividing by it is safe.

    Args:
        images: uint8, (N, C, H, W).

    Returns:
        Means and standard deviations, one float per channel each.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.reshape(-1).cpu(), minlength=256).double()
        mean = (counts @ values / counts.sum()).item()
        std = (counts @ (values - mean).square() / counts.sum()).sqrt().item()
        means.append(mean)
        stds.append(std or 1.0)
    return tuple(means), tuple(stds)
