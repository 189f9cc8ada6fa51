"""Learning rates over time: a schedule is a function from epochs trained to a factor of the top rate."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

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


def make_schedule(config: ScheduleConfig, epochs: int, growth_epoch: int = 0) -> Schedule:
    """Return the schedule of a run.

    Args:
        config: Its kind, and what happens after a growth event.
        epochs: Length of the run.
        growth_epoch: Epochs trained when the latest growth event happened; 0 before the first.

    Returns:
        The schedule, asked with epochs since the start of the run.
    """
    start = growth_epoch if config.after_growth == "restart" else 0
    length = max(epochs - start - config.warmup, 1e-9)
    if config.name == "cosine":
        inner = cosine(length, config.floor)
    elif config.name == "step":
        # Milestones count from where the schedule starts, its warmup included.
        inner = step([milestone - config.warmup for milestone in config.milestones], config.gamma)
    else:
        inner = constant()
    whole = warmup(inner, config.warmup)
    return lambda t: whole(t - start)
