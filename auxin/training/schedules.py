"""Learning rates over time: a schedule is a function from epochs trained to a factor of the top rate."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from auxin.training.config import ScheduleConfig

Schedule = Callable[[float], float]
"""From progress in epochs, fractions included, to the factor that multiplies the top learning rate."""


def cosine(epochs: float, floor: float = 0.0) -> Schedule:
    """Fall along half a cosine: floor + (1 − floor)·(1 + cos(π t / epochs)) / 2.

    Args:
        epochs: Length of the fall; the factor stays at ``floor`` afterwards.
        floor: The last factor.

    Returns:
        The schedule.

    Reference:
        Loshchilov and Hutter, SGDR, arXiv 1608.03983, Eq. 5.

    Example:
        >>> [round(cosine(10)(t), 3) for t in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """
    return lambda t: floor + (1 - floor) * (1 + math.cos(math.pi * min(t / epochs, 1.0))) / 2


def trapezoid(epochs: float, decay: float = 0.5, floor: float = 0.0) -> Schedule:
    """Stay at the top, then fall on a straight line: 1 while t ≤ (1 − decay)·epochs, ``floor`` at ``epochs``.

    Growth during the constant part leaves new units as much learning rate as the old ones had.

    Args:
        epochs: Length of both parts; the factor stays at ``floor`` afterwards.
        decay: Share of the epochs in which it falls, above 0 to 1.
        floor: The last factor.

    Returns:
        The schedule.

    Reference:
        Hägele et al. 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, arXiv 2405.18392.

    Example:
        >>> [round(trapezoid(10, 0.4)(t), 3) for t in (0, 6, 8, 10)]
        [1.0, 1.0, 0.5, 0.0]
    """
    return lambda t: floor + (1 - floor) * min(1.0, max(0.0, (1 - t / epochs) / decay))


def step(milestones: Sequence[float], gamma: float = 0.1) -> Schedule:
    """Multiply by gamma at each milestone: gamma^(number of milestones ≤ t).

    Args:
        milestones: Epochs at which the factor drops.
        gamma: The factor of one drop.

    Returns:
        The schedule.

    Example:
        >>> [round(step([2, 4], 0.5)(t), 3) for t in (0, 2, 4.5)]
        [1.0, 0.5, 0.25]
    """
    ordered = sorted(milestones)
    return lambda t: gamma ** bisect_right(ordered, t)


def constant() -> Schedule:
    """Stay at the top rate: 1.

    Returns:
        The schedule.
    """
    return lambda t: 1.0


@dataclass
class Plateau:
    """Multiply by a factor whenever the validation loss stops improving, as ``ReduceLROnPlateau`` of torch does.

    An epoch improves if its loss is below ``(1 - threshold)`` times the best so far. After ``patience`` epochs in a
    row without improvement, the next such epoch lowers the level and the count begins again.

    Attributes:
        factor: What ``level`` is multiplied by.
        patience: Epochs without improvement that are let pass.
        floor: Where ``level`` stops falling.
        threshold: Smallest improvement that counts, relative to the best loss.
        level: Factor of the top learning rate now.
        best: Lowest loss so far, or None before the first.
        bad_epochs: Epochs in a row without improvement.

    Example:
        >>> plateau = Plateau(factor=0.5, patience=1)
        >>> for loss in (1.0, 0.9, 0.9, 0.95):
        ...     plateau.update(loss)
        >>> plateau.level
        0.5
    """

    factor: float
    patience: int
    floor: float = 0.0
    threshold: float = 1e-4
    level: float = 1.0
    best: float | None = None
    bad_epochs: int = 0

    def update(self, loss: float) -> None:
        """Take in an epoch's validation loss."""
        if loss < (math.inf if self.best is None else self.best * (1 - self.threshold)):
            self.best, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.level, self.bad_epochs = max(self.level * self.factor, self.floor), 0

    def restart(self) -> None:
        """Go back to the top rate and forget the best loss."""
        self.level, self.best, self.bad_epochs = 1.0, None, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what changes over a run, as JSON data."""
        return {"level": self.level, "best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned; an empty state changes nothing."""
        for name, value in state.items():
            setattr(self, name, value)


def warmup(schedule: Schedule, epochs: float) -> Schedule:
    """Rise linearly from 0 over the first epochs, then follow a schedule from its own start.

    Args:
        schedule: What follows; it is asked for t − epochs.
        epochs: Length of the rise.

    Returns:
        The schedule.
    """
    if epochs <= 0:
        return schedule
    return lambda t: t / epochs if t < epochs else schedule(t - epochs)


def make_schedule(config: ScheduleConfig, epochs: int, growth_epoch: int = 0, level: float = 1.0) -> Schedule:
    """Return the schedule of a run.

    Args:
        config: Its kind, and what happens after a growth event.
        epochs: Length of the run.
        growth_epoch: Epochs trained when the latest growth event happened; 0 before the first.
        level: Where a ``Plateau`` stands, which holds for the epoch to come.

    Returns:
        The schedule, asked with epochs since the start of the run.
    """
    start = growth_epoch if config.after_growth == "restart" else 0
    length = max(epochs - start - config.warmup, 1e-9)
    if config.name == "cosine":
        inner = cosine(length, config.floor)
    elif config.name == "trapezoid":
        inner = trapezoid(length, config.decay, config.floor)
    elif config.name == "step":
        # Milestones count from where the schedule starts, its warmup included.
        inner = step([milestone - config.warmup for milestone in config.milestones], config.gamma)
    else:
        inner = constant()
    whole = warmup(inner, config.warmup)
    scale = level if config.name == "plateau" else 1.0
    return lambda t: scale * whole(t - start)
