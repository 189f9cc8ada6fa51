"""From a configuration to images and batches, and what a model must know about them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from auxin.data import ImageData, Loader, load
from auxin.data.splits import hold_out
from auxin.errors import DataError
from auxin.models import MODELS
from auxin.training.config import DataConfig, RunConfig


def load_images(config: DataConfig) -> ImageData:
    """Return the images that a configuration names, on the CPU.

    Args:
        config: Source, split, and what to read of it.

    Returns:
        The image set.
    """
    return load(
        config.source,
        val_fraction=config.val_fraction,
        seed=config.seed,
        image_size=config.image_size,
        channels=config.channels,
        image_column=config.image_column,
        label_column=config.label_column,
    )


def make_loader(config: RunConfig, data: ImageData, split: Literal["train", "val", "test"]) -> Loader:
    """Return the batches of one part of an image set, augmented for training only.

    Args:
        config: Batch size, augmentation and seed.
        data: The image set.
        split: Which part.

    Returns:
        The loader.
    """
    size = config.train.batch_size if split == "train" else max(config.train.batch_size, 500)
    return Loader(
        data,
        split,
        batch_size=size,
        seed=config.train.seed,
        # A last batch of a few images would give batch norm useless statistics.
        drop_last=split == "train" and len(data.train_labels) >= size,
        padding=config.data.crop,
        flip=config.data.flip,
        cutout=config.data.cutout,
        channels_last=config.train.channels_last,
    )


def scoring_samples(data: ImageData, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return some validation images with as many of each class as there are, not augmented, for growth decisions.

    Args:
        data: The image set.
        number: How many images; all of the validation part if it has fewer.
        seed: Seed of the draw.

    Returns:
        Normalised images (number, C, H, W) and labels (number,).
    """
    count = len(data.val_labels)
    index = torch.arange(count)
    if number < count:
        index = hold_out(data.val_labels.cpu(), number / count, seed)[1]
    index = index.to(data.device)
    part = replace(data, val_images=data.val_images[index], val_labels=data.val_labels[index])
    return next(iter(Loader(part, "val", batch_size=len(index))))


def with_shapes(config: RunConfig, data: ImageData) -> RunConfig:
    """Return a configuration that says what our models must know about the images, so that none are needed to rebuild.

    Args:
        config: The configuration; one with a model of the user's own stays as it is.
        data: The image set.
    """
    if config.model.name not in MODELS:
        return config
    kwargs = {"num_classes": data.num_classes, "in_channels": data.channels, **config.model.kwargs}
    if "image_size" in inspect.signature(MODELS[config.model.name]).parameters:
        kwargs.setdefault("image_size", data.image_size[0])
    return replace(config, model=replace(config.model, kwargs=kwargs))


def require_same_images(facts: Mapping[str, Any] | None, data: ImageData) -> None:
    """Refuse images of other classes or of another shape than a run began with.

    Args:
        facts: What ``image_facts`` said of the run's images; None where nothing is known.
        data: The images that are there now.

    Raises:
        DataError: If they are others.
    """
    for what, now in (("classes", list(data.classes)), ("shape", list(data.train_images.shape[1:]))):
        if facts is not None and what in facts and list(facts[what]) != now:
            raise DataError(
                f"{data.description.get('source', 'These')} are not the images of this run: their {what} are "
                f"{_some(now)}, those of the run {_some(facts[what])}; say with --data where the run's own are."
            )


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def image_facts(data: ImageData) -> dict[str, Any]:
    """Return what whoever uses a model must know about its images, as JSON data.

    Args:
        data: The image set.

    Returns:
        ``shape`` (C, H, W), ``mean`` and ``std`` of each channel after division by 255, and ``classes``.
    """
    return {
        "shape": list(data.train_images.shape[1:]),
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": list(data.classes),
    }
