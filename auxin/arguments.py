"""What a ``Grower`` is given, checked when it is made."""

from __future__ import annotations

from typing import Any

from torch import nn

from auxin.errors import ConfigError
from auxin.planned import Planned
from auxin.similarity import Similarity
from auxin.surgery.param_groups import as_list, check_optimizers
from auxin.types import Decider


def check_arguments(
    model: Any, optimizer: Any, method: Any, trigger: Any, budget: Any, until: Any, refine: Any
) -> None:  # fmt: skip
    """Refuse what would otherwise fail at the first event, perhaps hours later.

    Args:
        model: As given to the Grower, and so are the others.
        optimizer: Likewise.
        method: Likewise.
        trigger: Likewise.
        budget: Likewise.
        until: Likewise.
        refine: Likewise.

    Raises:
        ConfigError: If one of them is of another kind, or the optimizer is another model's.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"A Grower grows an nn.Module, not {model!r}.")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ConfigError(
            "Give the Grower the module inside DistributedDataParallel, and wrap that anew after each event: the "
            "wrapper's buckets have the sizes it was built with."
        )
    check_optimizers(model, as_list(optimizer))
    if isinstance(method, type) or (not isinstance(method, str) and not hasattr(method, "propose")):
        raise ConfigError(f"{method!r} is no growth method: pass a name such as 'net2net', or an instance of one.")
    if isinstance(trigger, type) or not (trigger is None or callable(trigger) or isinstance(trigger, Decider)):
        raise ConfigError(
            f"{trigger!r} is no trigger: pass for example auxin.every(10), or auxin.natural() with brackets."
        )
    if isinstance(budget, type) or (budget is not None and not hasattr(budget, "allocate")):
        raise ConfigError(f"{budget!r} is no budget: pass for example auxin.ratio(0.35) or auxin.count(8).")
    if until is not None and not isinstance(until, str):
        raise ConfigError(f"until={until!r} does not say what it limits: write for example 'params<=325k'.")
    if refine is not None and not isinstance(refine, Similarity):
        raise ConfigError(f"{refine!r} is no refinement: pass for example auxin.Similarity(iterations=15).")
    if isinstance(trigger, Planned) and until is not None:
        raise ConfigError("A plan says itself where growth ends: leave until out.")
