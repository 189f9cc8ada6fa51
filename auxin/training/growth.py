"""From a configuration to a Grower: which trigger, which budget."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from auxin.budgets import count, ratio
from auxin.errors import ConfigError
from auxin.grower import Grower
from auxin.methods import METHODS
from auxin.training.config import GrowthConfig
from auxin.triggers import every, plateau
from auxin.types import Budget, Trigger


def make_grower(
    config: GrowthConfig, model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor, seed: int
) -> Grower | None:
    """Return the object that grows a model between epochs, or None where the configuration wants no growth.

    Args:
        config: Method, trigger and budget.
        model: The user's own module, not a wrapper of it.
        optimizer: Its optimizer, likewise.
        example: One input.
        seed: Seed of the new weights.

    Returns:
        The grower.

    Raises:
        ConfigError: If there is no such method.
    """
    if config.method is None:
        return None
    if config.method not in METHODS:
        raise ConfigError(f"There is no growth method {config.method!r}: choose one of {', '.join(sorted(METHODS))}.")
    return Grower(
        model,
        optimizer,
        example,
        method=config.method,
        trigger=_trigger(config),
        budget=_budget(config),
        until=config.until,
        seed=seed,
        allow_inexact=config.allow_inexact,
        carry_state=config.carry_state,
        refine=config.similarity,
    )


def _trigger(config: GrowthConfig) -> Trigger:
    if config.trigger == "plateau":
        return plateau(
            metric=config.metric,
            patience=config.patience,
            min_delta=config.min_delta,
            mode="max" if config.metric.endswith("accuracy") else "min",
            cooldown=config.cooldown,
            times=config.times,
        )
    return every(config.every, start=config.start, times=config.times)


def _budget(config: GrowthConfig) -> Budget:
    if config.budget == "count":
        return count(int(config.count), of=config.of, scope=config.scope, allow_inexact=config.allow_inexact)
    return ratio(config.ratio, of=config.of, scope=config.scope, allow_inexact=config.allow_inexact)
