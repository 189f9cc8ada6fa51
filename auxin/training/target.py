"""Targets: where growth ends, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from auxin.errors import ConfigError
from auxin.expansion.trigger import NOTHING_FITS
from auxin.grower import Grower
from auxin.training.config import GrowthConfig, TargetConfig
from auxin.types import Decision


def cap_of(until: str | None, target: TargetConfig) -> str | None:
    """Return the cap of a Grower that must keep ``growth.until`` and the targets of size.

    Args:
        until: ``growth.until``.
        target: The targets.

    Returns:
        A text for ``Grower(until=...)``, or None without any limit.

    Example:
        >>> cap_of("flops<=20M", TargetConfig(params="100k"))
        'flops<=20M, params<=100000'
    """
    sizes = {"params": target.params, "flops": target.flops}
    caps = [until] if until else []
    return ", ".join([*caps, *(f"{name}<={size}" for name, size in sizes.items() if size is not None)]) or None


def with_target(growth: GrowthConfig, target: TargetConfig) -> GrowthConfig:
    """Return how to grow towards a target: its sizes join the cap, and the number of events has no limit.

    Args:
        growth: How to grow.
        target: The targets.
    """
    return replace(growth, until=cap_of(growth.until, target), times=None) if target.given else growth


def check(target: TargetConfig, growth: GrowthConfig, grower: Grower | None) -> None:
    """Refuse targets that no growth can lead to.

    Args:
        target: The targets.
        growth: Says whether the model grows at all.
        grower: Of the model before its first event; None where it does not grow.

    Raises:
        ConfigError: If the model does not grow, or is beyond a target of size already.
    """
    if not target.given:
        return
    if grower is None:
        raise ConfigError(f"A target needs growth, but growth.method is {growth.method}: name a method.")
    sizes = {"params": grower.graph.num_parameters(), "flops": grower.graph.flops()}
    for name, size in sizes.items():
        limit = getattr(target, name)
        if not grower.events and limit is not None and size > limit:
            raise ConfigError(
                f"target.{name} is {limit:,} but the model begins with {size:,.0f}: "
                "give a larger target or a smaller model."
            )


def fills_cap(grower: Grower) -> bool:
    """Return whether the next event would have to be shrunk to fit the cap, which makes it the last one."""
    if grower.cap is None or grower.budget is None:
        return False
    return not grower.cap.holds(grower.graph, grower.budget.allocate(grower.graph))


def is_full(grower: Grower) -> bool:
    """Return whether not even a single further unit fits under the cap."""
    if grower.cap is None:
        return False
    if grower.decisions and grower.decisions[-1].reason == NOTHING_FITS:
        return True
    groups = grower.graph.growable(grower.allow_inexact)
    return not any(grower.cap.holds(grower.graph, {group.name: 1}) for group in groups)


def accuracy_reached(target: TargetConfig, metrics: Mapping[str, float]) -> str | None:
    """Return the reason to grow no more after an epoch that was accurate enough, or None.

    Args:
        target: The targets.
        metrics: Of the epoch just trained.
    """
    if target.accuracy is None or metrics["val_accuracy"] < target.accuracy:
        return None
    return (
        f"validation accuracy {metrics['val_accuracy']:.2%} reached target.accuracy {target.accuracy:.2%}; "
        "the epochs that are left are spent at this size"
    )


def size_reached(grower: Grower, target: TargetConfig, until: str | None) -> str:
    """Return the reason to grow no more at the cap.

    Args:
        grower: Its model is as large as the cap lets it be.
        target: The targets.
        until: ``growth.until``.
    """
    size = f"{grower.graph.num_parameters():,} parameters and {grower.graph.flops():,.0f} FLOPs"
    return f"{size} fill the cap {cap_of(until, target)}; the epochs that are left are spent at this size"


def missed(target: TargetConfig, metrics: Mapping[str, float]) -> str:
    """Return the sentence for a run that ended before any of its targets was reached.

    Args:
        target: The targets.
        metrics: Of the last epoch.
    """
    now = {"params": metrics["parameters"], "flops": metrics["flops"], "accuracy": metrics["val_accuracy"]}
    wanted = [f"{name} {now[name]:,.6g} of {limit:,}" for name, limit in vars(target).items() if limit is not None]
    return f"the run ended before its target ({', '.join(wanted)}): raise train.epochs, or let growth come sooner"


def stop_record(epoch: int, reason: str) -> dict[str, Any]:
    """Return the end of growth as a decision, with the fields that every decision has.

    Args:
        epoch: The epoch just trained; 0 is the first.
        reason: Why growth ends.
    """
    return Decision(epoch, reason).to_dict()
