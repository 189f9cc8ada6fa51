"""When to grow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from auxin.errors import ConfigError
from auxin.types import Trigger

__all__ = ["Every", "Plateau", "every", "plateau"]


def _whole(value: Any, least: int) -> bool:
    """Return whether an option is None or a whole number from the least on."""
    return value is None or (type(value) is int and value >= least)


class Every:
    """Grow after every k-th epoch; see ``every``."""

    def __init__(self, epochs: int, times: int | None = None, start: int | None = None) -> None:
        if type(epochs) is not int or epochs < 1:
            raise ConfigError(f"every() needs a whole number of epochs between events, 1 or more, not {epochs!r}.")
        if not _whole(times, 0) or not _whole(start, 1):
            raise ConfigError(
                "every() takes times of 0 or more and a start of epoch 1 or later, whole numbers, or None."
            )
        self.epochs, self.times = epochs, times
        self.start = epochs if start is None else start

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> str | None:
        """Return the reason to grow after this epoch (0 is the first), or None."""
        done = epoch + 1
        since = done - self.start
        if since < 0 or since % self.epochs:
            return None
        number = since // self.epochs + 1
        if self.times is not None and number > self.times:
            return None
        return f"every {self.epochs} epochs, event {number}{f' of {self.times}' if self.times else ''}"


class Plateau:
    """Grow when a metric stops improving; see ``plateau``."""

    def __init__(
        self, metric: str, patience: int, min_delta: float, mode: str, cooldown: int, times: int | None
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"plateau() takes mode 'min' or 'max', not {mode!r}.")
        if (
            patience is None
            or cooldown is None
            or not (_whole(patience, 1) and _whole(cooldown, 0) and _whole(times, 0))
        ):
            raise ConfigError(
                "plateau() needs a patience of 1 or more, and a cooldown and times of 0 or more, whole numbers."
            )
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.mode, self.cooldown, self.times = mode, cooldown, times
        self.best = math.inf
        self.waited = self.fired = 0
        self.resting = 0

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> str | None:
        """Return the reason to grow after this epoch, or None."""
        if self.metric not in metrics:
            known = ", ".join(sorted(metrics)) or "none"
            raise ConfigError(f"plateau() watches {self.metric!r}, but the metrics given to step() are: {known}.")
        value = float(metrics[self.metric]) * (1 if self.mode == "min" else -1)
        if math.isnan(value):  # neither an improvement nor a plateau
            return None
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            self.resting = max(0, self.resting - 1)
            return None
        if self.resting:
            self.resting -= 1
            return None
        self.waited += 1
        if self.waited < self.patience or (self.times is not None and self.fired >= self.times):
            return None
        self.fired += 1
        self.waited, self.resting = 0, self.cooldown
        return f"{self.metric} has not improved by {self.min_delta} for {self.patience} epochs"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "waited": self.waited, "fired": self.fired, "resting": self.resting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        self.best = math.inf if state["best"] is None else state["best"]
        self.waited, self.fired, self.resting = state["waited"], state["fired"], state["resting"]


def every(epochs: int, times: int | None = None, start: int | None = None) -> Trigger:
    """Grow after every k-th epoch.

    Args:
        epochs: Epochs between events.
        times: Largest number of events, or None for no limit.
        start: Epochs before the first event; ``epochs`` if None.

    Returns:
        The trigger.

    Example:
        >>> import auxin
        >>> trigger = auxin.every(2, times=2)
        >>> [epoch for epoch in range(8) if trigger(epoch, {})]
        [1, 3]
    """
    return Every(epochs, times, start)


def plateau(
    metric: str = "val_loss",
    patience: int = 3,
    min_delta: float = 0.0,
    mode: str = "min",
    cooldown: int = 0,
    times: int | None = None,
) -> Trigger:
    """Grow when a metric has stopped improving.

    Args:
        metric: Key in the metrics given to ``Grower.step``.
        patience: Epochs without improvement before growth.
        min_delta: Smallest change that counts as improvement, in the metric's unit.
        mode: ``min`` if smaller is better, ``max`` if larger is.
        cooldown: Epochs after an event during which patience does not run.
        times: Largest number of events, or None for no limit.

    Returns:
        The trigger.

    Example:
        >>> import auxin
        >>> trigger = auxin.plateau("val_loss", patience=2)
        >>> losses = [1.0, 0.8, 0.8, 0.9, 0.7]
        >>> [epoch for epoch, loss in enumerate(losses) if trigger(epoch, {"val_loss": loss})]
        [3]
    """
    return Plateau(metric, patience, min_delta, mode, cooldown, times)
