"""Finishing a ladder: every rung trained on at its own size, with a learning rate that falls to zero."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from auxin.data import ImageData
from auxin.errors import ConfigError
from auxin.training import checkpoint as checkpoints
from auxin.training.begun import config_of
from auxin.training.config import RunConfig, ScheduleConfig, TargetConfig
from auxin.training.folder import RunFolder
from auxin.training.images import require_same_images
from auxin.training.ladder import Rung, rungs
from auxin.training.lock import alone_in
from auxin.training.result import Result
from auxin.training.trainer import Trainer

SHARE = 0.1
"""The top learning rate of a finish, as a share of the run's own: the weights are trained already."""


def finish(
    folder: RunFolder,
    epochs: int,
    lr: float | None = None,
    *,
    console: Console | None = None,
    data: ImageData | None = None,
) -> list[Result]:
    """Train every rung of a ladder on, without growth, each in a run folder of its own below ``finished``.

    Data, seed and recipe are those of the run; the optimizer starts anew, and the learning rate falls along a cosine to
    zero. Rungs that are finished already are left alone, and one that was interrupted goes on.

    Args:
        folder: Of the run.
        epochs: Length of each finish.
        lr: Top learning rate; None takes a tenth of the run's own.
        console: Where progress goes; None is standard output.
        data: The images; None loads what the configuration names.

    Returns:
        One result per rung.

    Raises:
        ConfigError: If a setting is out of range, or a rung was finished with others.
        DataError: If the images are not those of the run.
    """
    results: list[Result] = []
    found = rungs(folder.ladder)
    for index, rung in enumerate(found):
        place = folder.finished(rung.number)
        config = finishing_config(rung, epochs, lr)
        _require_same(place, config)
        if place.result.exists():
            results.append(Result.read(place.result))
            continue
        with alone_in(place.path):
            trainer = Trainer(config, place, data=data, console=console)
            data = trainer.data
            images = checkpoints.load(rung.path).run.get("images")
            require_same_images(images, trainer.image_facts, data.description.get("source", "These"))
            trainer.progress.label = f"rung {rung.name} ({index + 1}/{len(found)}) "
            results.append(trainer.fit())
    return results


def finishing_config(rung: Rung, epochs: int, lr: float | None = None) -> RunConfig:
    """Return the configuration that finishes a rung.

    Args:
        rung: The rung.
        epochs: Length of the finish.
        lr: Top learning rate; None takes a tenth of the run's own.

    Returns:
        The rung's own configuration, without growth.

    Raises:
        ConfigError: If a setting is out of range.
    """
    config = RunConfig.from_dict(checkpoints.load(rung.path).config)
    if lr is None:
        lr = config.optimizer.lr * SHARE
    return replace(
        config,
        name=f"{config.name}-rung-{rung.number:02d}",
        model=replace(config.model, start=str(rung.path)),
        optimizer=replace(config.optimizer, lr=lr),
        schedule=ScheduleConfig(name="cosine"),
        train=replace(config.train, epochs=epochs),
        growth=replace(config.growth, method=None, trigger="every", plan=[]),
        target=TargetConfig(),
    )


def _require_same(place: RunFolder, config: RunConfig) -> None:
    if not place.config.exists():
        return
    old = config_of(place)
    if (old.train.epochs, old.optimizer.lr) != (config.train.epochs, config.optimizer.lr):
        raise ConfigError(
            f"{place.path} was begun with --finish {old.train.epochs} --lr {old.optimizer.lr:g}: "
            f"give the same, or remove {place.path.parent} first."
        )
