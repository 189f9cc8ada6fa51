"""The models and images of a run, found again from its folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from auxin.analysis.curves import RunRecord
from auxin.data import ImageData
from auxin.errors import ConfigError, DataError
from auxin.training import checkpoint as checkpoints
from auxin.training.config import DataConfig
from auxin.training.images import image_facts, load_images, require_same_images
from auxin.training.ladder import load_model, rung_path


def final_rung(record: RunRecord) -> Path:
    """Return the manifest of the newest size: the last rung of a finished run, else the last checkpoint.

    Args:
        record: The run.

    Returns:
        The path.

    Raises:
        ConfigError: If neither is there.
    """
    for manifest in (rung_path(record.folder.ladder, len(record.events)), record.folder.last):
        if manifest.is_file():
            return manifest
    raise ConfigError(f"{record.folder.path} has no checkpoints: copy its ladder and checkpoints folders too.")


def model_of(record: RunRecord, rung: int | None = None) -> nn.Module:
    """Return the model of a run at one size, in eval mode on the CPU.

    Args:
        record: The run.
        rung: 0 is the size it began with; None takes the newest.

    Returns:
        The model.

    Raises:
        ConfigError: If there is no checkpoint of that size.
    """
    if rung is None:
        return load_model(final_rung(record))
    manifest = rung_path(record.folder.ladder, rung)
    if not manifest.is_file():
        there = [str(n) for n in range(len(record.events) + 1) if rung_path(record.folder.ladder, n).is_file()]
        found = f"it has {', '.join(there)}" if there else "it has no ladder yet"
        raise ConfigError(f"{record.folder.path} has no rung {rung}: {found}.")
    return load_model(manifest)


def images_of(record: RunRecord, source: str | None = None) -> ImageData:
    """Return the images that a run learnt from.

    Args:
        record: The run.
        source: Where they are now; None is where they were.

    Returns:
        The images, split as in the run.

    Raises:
        DataError: If they are not there, or others are.
    """
    config = record.config["data"]
    name = source or config["source"]
    try:
        data = load_images(DataConfig(**{**config, "source": name}))
    except DataError as error:
        if source:
            raise
        raise DataError(f"The images of {record.name} are not at {name}: say with --data where they are.") from error
    require_images_of(record, data)
    return data


def require_images_of(record: RunRecord, data: ImageData) -> None:
    """Refuse images that are not those of a run.

    Args:
        record: The run; one of a version that kept no facts of its images is not refused.
        data: The images.

    Raises:
        DataError: If they are others.
    """
    saved = checkpoints.load(final_rung(record)).run.get("images")
    require_same_images(saved, image_facts(data), data.description.get("source", "These"), record.name)
