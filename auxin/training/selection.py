"""Choosing among the checkpoints of a run: the Pareto front, and the best that a limit allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from auxin.errors import CheckpointError, ConfigError
from auxin.training import checkpoint as checkpoints
from auxin.training.config import RunConfig
from auxin.training.cost import latency_ms
from auxin.training.folder import RunFolder
from auxin.training.images import image_facts, load_images
from auxin.training.ladder import Rung, load_model, rungs
from auxin.training.result import Phase, Result


@dataclass(frozen=True)
class Choice:
    """One checkpoint of a run that may be put to use.

    Attributes:
        name: Such as ``2`` (the last epoch of the third size), ``2-best`` (its best epoch) or ``2-finished`` (trained
            on by ``auxin ladder --finish``).
        path: Manifest of the checkpoint.
        parameters: Number of parameters.
        flops: FLOPs of one image's forward pass.
        val_accuracy: 0 to 1.
        test_accuracy: 0 to 1; None before the run has ended, or without a test set.
        seconds: Time trained so far, smaller sizes included.
        training_flops: FLOPs spent so far: training, scoring and surgery; 0 where they were not counted.
        energy_kwh: Electricity so far; None without a meter.
        latency_ms: Time of one image's forward pass on this machine, one thread; None where it was not asked for.
    """

    name: str
    path: Path
    parameters: int
    flops: int
    val_accuracy: float
    test_accuracy: float | None
    seconds: float
    training_flops: int
    energy_kwh: float | None
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON data; its name is called ``rung``."""
        values = {**vars(self), "path": str(self.path)}
        return {"rung": values.pop("name"), **values}


def choices(folder: RunFolder, damaged: Callable[[CheckpointError], object] | None = None) -> list[Choice]:
    """Return every checkpoint of a run's ladder, smallest size first, with what is known of it.

    Args:
        folder: Of a run, finished or not.
        damaged: Called for each damaged checkpoint, which is then left out; None passes its error on.

    Returns:
        For each size its last epoch, its best one where that is kept, and the finished one where there is one.

    Raises:
        ConfigError: If the folder is not one of a run, or the run has no rung yet.
        CheckpointError: If no rung is whole.
    """
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is not the folder of a run: it has no config.yaml.")
    result = Result.read(folder.result) if folder.result.exists() else None
    phases = result.phases if result else []
    last, best = ({getattr(phase, name): phase for phase in phases} for name in ("last_epoch", "best_epoch"))
    found: list[Choice] = []
    for rung in rungs(folder.ladder, best=True, damaged=damaged):
        found.append(_choice(rung, (best if rung.best else last).get(rung.epoch + 1)))
        if not rung.best:
            found += _finished(folder.finished(rung.number), rung, damaged)
    if not found and any(folder.ladder.glob("rung-*.json")):
        raise CheckpointError(f"{folder.path} has no rung that is whole: copy its ladder again.")
    if not found:
        raise ConfigError(f"{folder.path} has no rung yet: its first one comes with its first growth event.")
    order = {"": 0, "best": 1, "finished": 2}
    return sorted(found, key=lambda c: (int(c.name.partition("-")[0]), order[c.name.partition("-")[2]]))


def _choice(rung: Rung, phase: Phase | None) -> Choice:
    test = None if phase is None else phase.best_test_accuracy if rung.best else phase.test_accuracy
    return Choice(
        name=rung.name,
        path=rung.path,
        parameters=rung.parameters,
        flops=rung.flops,
        val_accuracy=rung.val_accuracy,
        test_accuracy=test,
        seconds=rung.seconds,
        training_flops=rung.training_flops,
        energy_kwh=rung.energy_kwh,
    )


def _finished(folder: RunFolder, origin: Rung, damaged: Callable[[CheckpointError], object] | None) -> list[Choice]:
    # What came before belongs to the cost of a finished rung.
    found = rungs(folder.ladder, damaged=damaged)
    if not found or not folder.result.exists():
        return []
    (rung,), phase = found, Result.read(folder.result).phases[-1]
    known = origin.energy_kwh is not None and rung.energy_kwh is not None
    return [
        Choice(
            name=f"{origin.number}-finished",
            path=rung.path,
            parameters=rung.parameters,
            flops=rung.flops,
            val_accuracy=rung.val_accuracy,
            test_accuracy=phase.test_accuracy,
            seconds=origin.seconds + rung.seconds,
            training_flops=origin.training_flops + rung.training_flops,
            energy_kwh=(origin.energy_kwh or 0) + (rung.energy_kwh or 0) if known else None,
        )
    ]


def pareto(found: Sequence[Choice], cost: Literal["parameters", "flops"]) -> set[str]:
    """Return the names of the choices that no other one beats in validation accuracy and cost at once.

    Args:
        found: The choices.
        cost: Which cost.

    Returns:
        The names on the front.
    """

    def beats(a: Choice, b: Choice) -> bool:
        no_worse = getattr(a, cost) <= getattr(b, cost) and a.val_accuracy >= b.val_accuracy
        return no_worse and (getattr(a, cost) < getattr(b, cost) or a.val_accuracy > b.val_accuracy)

    return {one.name for one in found if not any(beats(other, one) for other in found)}


@dataclass(frozen=True)
class Wish:
    """What the chosen checkpoint must keep.

    Attributes:
        rung: Its name, such as ``2`` or ``2-best``; all others are out.
        max_params: Largest number of parameters.
        max_flops: Largest FLOPs of one image's forward pass.
        max_latency_ms: Largest time of one image's forward pass on this machine, one thread.
        min_accuracy: Lowest validation accuracy, 0 to 1; the smallest model that reaches it is taken.
    """

    rung: str | None = None
    max_params: float | None = None
    max_flops: float | None = None
    max_latency_ms: float | None = None
    min_accuracy: float | None = None

    @property
    def given(self) -> bool:
        """Whether anything is wished for."""
        return any(value is not None for value in vars(self).values())


def select(found: Sequence[Choice], wish: Wish) -> Choice:
    """Return the choice of highest validation accuracy within the limits; with ``min_accuracy`` the smallest.

    Args:
        found: The choices, at least one.
        wish: The limits.

    Returns:
        The choice; of equal ones the smallest.

    Raises:
        ConfigError: If there is none; it names the nearest.
    """
    left = list(found)
    if wish.rung is not None:
        left = [one for one in left if one.name == wish.rung]
        if not left:
            names = ", ".join(one.name for one in found)
            raise ConfigError(f"there is no rung {wish.rung}: choose one of {names}.")
    left = _at_most(left, wish.max_params, "{:,.0f} parameters", lambda one: one.parameters)
    left = _at_most(left, wish.max_flops, "{:,.0f} FLOPs", lambda one: one.flops)
    if wish.max_latency_ms is not None:
        left = [replace(one, latency_ms=latency(one.path)) for one in left]
        left = _at_most(left, wish.max_latency_ms, "{:.3g} ms", lambda one: one.latency_ms or 0.0)
    if wish.min_accuracy is not None:
        best = max(left, key=lambda one: one.val_accuracy)
        left = [one for one in left if one.val_accuracy >= wish.min_accuracy]
        if not left:
            raise ConfigError(
                f"no rung reaches a validation accuracy of {wish.min_accuracy:.2%}: "
                f"the nearest is rung {best.name} with {best.val_accuracy:.2%}."
            )
        return min(left, key=lambda one: (one.parameters, one.flops, -one.val_accuracy))
    return max(left, key=lambda one: (one.val_accuracy, -one.parameters, -one.flops))


def _at_most(found: list[Choice], limit: float | None, words: str, measure: Callable[[Choice], float]) -> list[Choice]:
    if limit is None:
        return found
    nearest = min(found, key=measure)
    if measure(nearest) > limit:
        raise ConfigError(
            f"no rung has at most {words.format(limit)}: "
            f"the nearest is rung {nearest.name} with {words.format(measure(nearest))}."
        )
    return [one for one in found if measure(one) <= limit]


def latency(manifest: Path) -> float:
    """Return the milliseconds that the model of a checkpoint takes for one image, with one thread of this machine."""
    shape = facts_of(checkpoints.load(manifest))["shape"]
    return latency_ms(load_model(manifest), torch.zeros(1, *shape))


def facts_of(saved: checkpoints.Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint's model must be told about images.

    Args:
        saved: The checkpoint; one of an earlier version lacks the facts, so its images are loaded to find them.

    Returns:
        As ``images.image_facts`` gives them.

    Raises:
        CheckpointError: If the checkpoint's configuration cannot be used.
    """
    if "images" in saved.run:
        return dict(saved.run["images"])
    try:
        data = load_images(RunConfig.from_dict(saved.config).data)
    except ConfigError as error:
        raise CheckpointError(f"The checkpoint does not say which images it was trained on ({error}).") from error
    return image_facts(data)
