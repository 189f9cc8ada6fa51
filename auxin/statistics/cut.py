"""A forward cut at its linear maps, so that what lies between them can be differentiated apart from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from auxin.statistics.activations import SMOOTHED, depthwise

CONVOLUTIONS: tuple[Callable[..., Any], ...] = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
)  # fmt: skip
PLACES: dict[Callable[..., Any], tuple[int, int, int | None]] = {
    **dict.fromkeys((F.linear, *CONVOLUTIONS), (0, 1, 2)),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), (0, 1, None)),
    torch.addmm: (1, 2, 0),
    F.embedding: (0, 1, None),
}
"""Where each linear map takes its input, its weight and its bias."""


@dataclass
class Call:
    """One linear map of one forward: y = f(x, weight)."""

    name: str
    linear: Callable[[Tensor], Tensor]
    x: Tensor
    y: Tensor
    groups: int = 1


@dataclass
class Switch:
    """Whether gradients still pass the cuts; apart from them, as a graph that reaches its own calls is freed late."""

    closed: bool = False


class _Gate(torch.autograd.Function):
    """The identity; once its switch is closed, gradients no longer pass."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, switch: Switch) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.switch = switch
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None if ctx.switch.closed else gradients[0], None


class Cut(TorchFunctionMode):
    """Intercepts the linear maps of a forward; its switch closed, no gradient passes from one to another."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.switch = Switch()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SMOOTHED:
            return SMOOTHED[func](*args, **kwargs)
        places = PLACES.get(func)
        if places is None:
            return func(*args, **kwargs)
        args, kwargs = _positional(args, kwargs)
        weight = args[places[1]] if len(args) > places[1] else None
        name = self.names.get(id(weight))
        groups = _groups(func, args, kwargs)
        # A depthwise filter treats channels one by one: it belongs to what lies between the cuts.
        if weight is None or name is None:
            return func(*args, **kwargs)
        if groups > 1 and weight.shape[1] == 1:
            return depthwise(func, *args, **kwargs)
        return self._cut(func, places, name, groups, list(args), kwargs)

    def _cut(self, func: Any, places: Any, name: str, groups: int, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
        x_at, weight_at, bias_at = places
        x = args[x_at]
        x = x.view_as(x)
        stored = x.detach()
        y = func(*[x if i == x_at else arg for i, arg in enumerate(args)], **kwargs)
        y = _Gate.apply(y if y.requires_grad else y.requires_grad_(), self.switch)
        device = x.device.type
        enabled, lower = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def linear(weight: Tensor) -> Tensor:
            given = list(args)
            given[x_at], given[weight_at] = stored, weight
            if bias_at is not None and len(given) > bias_at and given[bias_at] is not None:
                given[bias_at] = torch.zeros_like(given[bias_at])
            # The region of autocast around the call has ended by now. It would keep casts of the weights until then.
            with torch.autocast(device, lower, enabled=enabled, cache_enabled=False):
                result: Tensor = func(*given, **kwargs)
            return result

        self.calls.append(Call(name, linear, x, y, groups))
        # The model may change its own activation in place; y stays as it is.
        return y.clone()


def _positional(args: Any, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with input, weight and bias in their places, also where they were given by name."""
    kwargs = dict(kwargs)
    for name in ("input", "weight", "bias"):
        if name in kwargs and len(args) == ("input", "weight", "bias").index(name):
            args = (*args, kwargs.pop(name))
    return tuple(args), kwargs


def _groups(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    if func not in CONVOLUTIONS:
        return 1
    return int(kwargs.get("groups", args[6] if len(args) > 6 else 1))
