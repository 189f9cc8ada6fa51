"""Some depthwise convolutions have no fast bf16 kernel on a CPU: they run in float32 under autocast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class DepthwiseInFloat32(TorchFunctionMode):
    """While it is on, depthwise convolutions that bf16 makes slow on a CPU are computed in float32.

    With a stride, a dilation or several outputs per channel, the gradients of a depthwise convolution fall back to slow
    reference code in bf16. Those convolutions leave autocast; their result comes back in bf16, so all others stay
    as they are. The modules are not touched, and without bf16 autocast nothing changes. Measured by
    ``benchmarks/cpu_step.py``.

    Example:
        >>> convolution = torch.nn.Conv2d(4, 4, 3, stride=2, groups=4)
        >>> with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
        ...     convolution(torch.ones(1, 4, 8, 8)).dtype
        torch.bfloat16
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and _is_slow(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                wide = func(*map(_float, args), **{key: _float(value) for key, value in kwargs.items()})
            return wide.to(torch.bfloat16)
        return func(*args, **kwargs)


def depthwise_in_float32(model: nn.Module) -> AbstractContextManager[Any]:
    """Return the mode if a model has such a convolution, else nothing: watching every call costs a little.

    Args:
        model: Whose convolutions count.

    Returns:
        A context to train the model in.
    """
    layers = (each for each in model.modules() if isinstance(each, nn.Conv2d))
    found = any(_lacks_kernel(each.weight, each.stride, each.dilation, each.groups) for each in layers)
    return DepthwiseInFloat32() if found else nullcontext()


def _is_slow(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> bool:
    return (
        _lacks_kernel(weight, stride, dilation, groups)
        and input.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _lacks_kernel(weight: Tensor, stride: int | Sequence[int], dilation: int | Sequence[int], groups: int) -> bool:
    """Say so of depthwise convolutions whose gradients fall back to reference code in bf16."""
    depthwise = groups > 1 and weight.shape[1] == 1
    return depthwise and (_most(stride) > 1 or _most(dilation) > 1 or weight.shape[0] > groups)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _most(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else max(size)
