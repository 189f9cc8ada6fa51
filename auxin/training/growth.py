"""From a configuration to a Grower: which trigger, which budget."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import jsonargparse
import torch
from torch import Tensor, nn

from auxin.budgets import count, ratio
from auxin.errors import ConfigError
from auxin.expansion import Natural
from auxin.grower import Grower
from auxin.methods import METHODS
from auxin.planned import Planned
from auxin.training.config import GrowthConfig
from auxin.training.cost import Ledger
from auxin.triggers import every, plateau
from auxin.types import Budget, Decider, Event, Method, Trigger


class CountingGrower(Grower):
    """A Grower that counts what its decisions cost: the FLOPs of surgery and refinement, and all others as scoring."""

    ledger: Ledger

    def step(self, *args: Any, **kwargs: Any) -> Event | None:
        """Do what ``Grower.step`` does.

        Args:
            *args: As there.
            **kwargs: As there.

        Returns:
            The event, or None if nothing grew.
        """
        with self.ledger.count("scoring"):
            return super().step(*args, **kwargs)

    def apply(self, *args: Any, **kwargs: Any) -> Event:
        """Do what ``Grower.apply`` does.

        Args:
            *args: As there.
            **kwargs: As there.

        Returns:
            The event.
        """
        with self.ledger.count("surgery"):
            return super().apply(*args, **kwargs)


def make_grower(
    config: GrowthConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    example: Tensor,
    seed: int,
    ledger: Ledger | None = None,
    scoring: Callable[[int], tuple[Tensor, Tensor]] | None = None,
) -> Grower | None:
    """Return the object that grows a model between epochs, or None where the configuration wants no growth.

    Args:
        config: Method, trigger and budget.
        model: The user's own module, not a wrapper of it.
        optimizer: Its optimizer, likewise.
        example: One input.
        seed: Seed of the new weights.
        ledger: Takes the FLOPs of every decision and event; None counts them for nobody.
        scoring: Returns that many held-out images and labels, for the natural trigger.

    Returns:
        The grower.
    """
    if config.method is None:
        return None
    grower = CountingGrower(
        model,
        optimizer,
        example,
        method=_method(config.method, config.kwargs),
        trigger=_trigger(config, scoring, seed),
        budget=_budget(config),
        until=config.until,
        seed=seed,
        allow_inexact=config.allow_inexact,
        carry_state=config.carry_state,
        refine=config.similarity,
    )
    grower.ledger = ledger or Ledger()
    return grower


def _method(name: str, settings: Mapping[str, Any]) -> Method:
    if name not in METHODS:
        raise ConfigError(f"There is no growth method {name!r}: choose one of {', '.join(sorted(METHODS))}.")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(METHODS[name]), as_group=False)
    try:
        checked = parser.parse_object(dict(settings))
        return replace(METHODS[name], **{key: checked[key] for key in settings})  # type: ignore[type-var]
    except (ArgumentError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"growth.kwargs does not suit the method {name}: {reason}.") from error


def written_out(config: GrowthConfig) -> GrowthConfig:
    """Return a configuration that names every setting of its growth method, so that it means the same in any version.

    Args:
        config: Method and its settings.

    Example:
        >>> written_out(GrowthConfig(method="net2net")).kwargs
        {'noise': 0.0, 'asymmetry': 1.0}
    """
    method = METHODS.get(config.method or "")
    if method is None or not is_dataclass(method):
        return config
    settings = {field.name: getattr(method, field.name) for field in fields(method) if field.name != "name"}
    return replace(config, kwargs={**settings, **config.kwargs})


def _trigger(
    config: GrowthConfig, scoring: Callable[[int], tuple[Tensor, Tensor]] | None, seed: int
) -> Trigger | Decider:
    if config.trigger == "natural":
        options = dict(vars(config.natural))
        samples = options.pop("samples")
        data = scoring(samples) if scoring is not None else None
        start = config.start or 1
        return Natural(**options, cooldown=config.cooldown, start=start, data=data, num_samples=samples, seed=seed)
    if config.trigger == "planned":
        return Planned(config.plan)
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
    make, amount = (count, float(config.count)) if config.budget == "count" else (ratio, config.ratio)
    return make(
        amount,
        of=config.of,
        scope=config.scope,
        allow_inexact=config.allow_inexact,
        multiple_of=config.multiple_of,
    )
