"""From a configuration to images and batches, and what a model must know about them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from auxin.data import ImageData, Loader, load
from auxin.data.splits import hold_out
from auxin.errors import ConfigError, DataError
from auxin.models import MODELS
from auxin.training.config import DataConfig, RunConfig

_SAMPLE = 2**17
"""About how many values of each part the checksum reads."""

_COMPARED = {
    "classes": "classes",
    "shape": "shape",
    "sizes": "numbers of train, val and test images",
    "mean": "channel means",
    "std": "channel deviations",
    "content": "checksums of the train, val and test images",
}
"""Facts that tell one image set from another, with what a sentence calls them."""


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


def require_same_split(saved: Mapping[str, Any], config: DataConfig) -> None:
    """Refuse settings that would split the images anew, so that a run tests on what it has learnt.

    Args:
        saved: ``DataConfig`` of the run as plain data.
        config: What it is to go on with.

    Raises:
        ConfigError: If one of them was changed.
    """
    for name in ("seed", "val_fraction"):
        before, now = saved.get(name), getattr(config, name)
        if before is not None and before != now:
            raise ConfigError(
                f"data.{name} is {now} and was {before} so far: another split would test a run on images "
                "that it has learnt, so leave it as it was."
            )


def require_same_images(
    saved: Mapping[str, Any] | None, now: Mapping[str, Any], source: str, run: str = "this run"
) -> None:
    """Refuse other images than a run began with, wherever they lie now.

    Args:
        saved: What ``image_facts`` said of the run's images; None where nothing is known, and a fact that an earlier
            version did not keep may be absent.
        now: What it says of the images that are there.
        source: Where these come from.
        run: What the sentence calls the run.

    Raises:
        DataError: If they are others.
    """
    for what, words in _COMPARED.items():
        if not saved or what not in saved:
            continue
        ours, theirs = _rounded(now[what]), _rounded(saved[what])
        if ours != theirs:
            raise DataError(
                f"{source} are not the images of {run}: their {words} are {_some(ours)}, "
                f"those of the run {_some(theirs)}; say with --data where the run's own are."
            )


def _rounded(values: Sequence[Any]) -> list[Any]:
    return [round(value, 6) if isinstance(value, float) else value for value in values]


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def image_facts(data: ImageData) -> dict[str, Any]:
    """Return what whoever uses a model must know about its images, as JSON data.

    Args:
        data: The image set.

    Returns:
        ``shape`` (C, H, W), ``mean`` and ``std`` of each channel after division by 255, ``classes``, and the numbers
        (``sizes``) and checksums (``content``) of the train, val and test images.
    """
    parts = [data.part(split) for split in ("train", "val", "test")]
    return {
        "shape": list(data.train_images.shape[1:]),
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": list(data.classes),
        "sizes": [len(labels) for _, labels in parts],
        "content": [_checksum(images, labels) for images, labels in parts],
    }


def _checksum(images: Tensor, labels: Tensor) -> str:
    """Return a checksum of all labels and of values spread evenly over all images."""
    values = images.reshape(-1)
    # Odd: an even step would meet few columns of the usual sizes.
    sample = values[:: values.numel() // _SAMPLE | 1]
    digest = hashlib.sha256(labels.to("cpu", torch.int64).numpy().tobytes())
    digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
