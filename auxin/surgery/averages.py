"""The averaged copies of a model (EMA, SWA) that a user passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from auxin.errors import ConfigError
from auxin.graph.capture import unwrap


def averaged_copies(model: nn.Module, ema: nn.Module | Iterable[nn.Module] | None) -> list[nn.Module]:
    """Return the modules that hold averaged weights under the model's own names.

    Args:
        model: The model.
        ema: One copy, several or None. ``torch.optim.swa_utils.AveragedModel`` and others that keep the copy in an
            attribute ``module`` are taken off.

    Raises:
        ConfigError: If one of them is no module, is the model itself, or has other parameters.
    """
    several = isinstance(ema, Iterable) and not isinstance(ema, nn.Module)
    given: Iterable[Any] = () if ema is None else ema if several else [ema]  # type: ignore[assignment]
    return [_averaged(model, copy) for copy in given]


def _averaged(model: nn.Module, copy: Any) -> nn.Module:
    held = copy
    while isinstance(held, nn.Module):
        inner = unwrap(held)
        if inner is model:
            raise ConfigError("ema holds the model itself: pass a copy that averages it, such as AveragedModel(model).")
        theirs = {name: p.shape for name, p in inner.named_parameters()}
        other = [name for name, p in model.named_parameters() if theirs.get(name) != p.shape]
        if not other:
            return inner
        held = getattr(inner, "module", None)
    if not isinstance(copy, nn.Module):
        raise ConfigError(f"{copy!r} in ema is no module: pass copies such as torch.optim.swa_utils.AveragedModel.")
    shape = tuple(model.get_parameter(other[0]).shape)
    raise ConfigError(
        f"A module in ema is no copy of the model: it has no {other[0]} of shape {shape}. Make it from the model as it "
        "is now, and give it to every growth from then on."
    )
