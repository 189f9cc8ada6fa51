"""What lies between linear maps, made cheap to differentiate twice.

Piecewise linear activations have the second derivative of a softplus, batch norm is the affine map it is in eval mode,
and a depthwise filter is a linear map of its input alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input
from torch.overrides import TorchFunctionMode

SHARPNESS = 3.0


class _ReluGradient(torch.autograd.Function):
    """g where z > 0, else 0; the derivative by z is that of g sigmoid(3z): 3 g s (1 - s)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(g, z)
        return torch.ops.aten.threshold_backward(g, z, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g, z = ctx.saved_tensors
        by_g = torch.ops.aten.threshold_backward(gradients[0], z, 0) if ctx.needs_input_grad[0] else None
        s = (SHARPNESS * z).sigmoid_()
        return by_g, torch.ops.aten.sigmoid_backward((gradients[0] * g).mul_(SHARPNESS), s)


class _Relu(torch.autograd.Function):
    """ReLU; its first derivative is exact, its second that of softplus with sharpness 3."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z)
        return torch.ops.aten.relu(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        if gradients[0] is None:
            return None
        (z,) = ctx.saved_tensors
        result: Tensor = _ReluGradient.apply(gradients[0], z)
        return result


def relu(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """ReLU with second derivative 3 s (1 - s), s = sigmoid(3z)."""
    result: Tensor = _Relu.apply(z)
    return result


def relu6(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """ReLU6 = ReLU(z) - ReLU(z - 6), each with its second derivative."""
    return relu(z) - relu(z - 6)


def hardtanh(z: Tensor, min_val: float = -1.0, max_val: float = 1.0, *args: Any, **kwargs: Any) -> Tensor:
    """Hardtanh = min + ReLU(z - min) - ReLU(z - max); ``nn.ReLU6`` is one."""
    return min_val + relu(z - min_val) - relu(z - max_val)


def prelu(z: Tensor, weight: Tensor) -> Tensor:
    """PReLU = w·z + (1 - w)·ReLU(z), w for each channel (dimension 1) or for all."""
    slope = weight.view(1, -1, *[1] * (z.ndim - 2)) if z.ndim > 1 else weight
    return slope * z + (1 - slope) * relu(z)


def hardsigmoid(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Hard sigmoid = ReLU6(z + 3) / 6."""
    return relu6(z + 3) / 6


def hardswish(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Hard swish = z ReLU6(z + 3) / 6."""
    return z * relu6(z + 3) / 6


def leaky_relu(z: Tensor, negative_slope: float = 0.01, *args: Any, **kwargs: Any) -> Tensor:
    """Leaky ReLU = slope·z + (1 - slope)·ReLU(z)."""
    return negative_slope * z + (1 - negative_slope) * relu(z)


def batch_norm(
    x: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Batch norm; in eval mode as a scale and a shift, whose second derivative costs nothing."""
    if training or mean is None or variance is None:
        return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    shift = shift if bias is None else shift + bias
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


class _Linear(torch.autograd.Function):
    """A linear map and its transpose, each the derivative of the other; nothing is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.maps = back, to
        return to(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (None if gradients[0] is None else _Linear.apply(gradients[0], *ctx.maps)), None, None


TRANSPOSES: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.conv1d: conv1d_input, F.conv2d: conv2d_input, F.conv3d: conv3d_input,
}  # fmt: skip


def depthwise(
    func: Callable[..., Any], x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Return a depthwise convolution whose weight is constant.

    PyTorch's second derivative of a convolution works out a part for the weight, group by group, wanted or not.

    Args:
        func: The convolution.
        x: Its input.
        weight: Its weight, (groups · m, 1, ...).
        bias: Its bias, constant too.
        stride: As in ``torch.nn.functional.conv2d``, and so are the others.
        padding: Likewise.
        dilation: Likewise.
        groups: Likewise.

    Returns:
        The output.
    """
    if func not in TRANSPOSES or isinstance(padding, str):
        result: Tensor = func(x, weight, bias, stride, padding, dilation, groups)
        return result
    rest = (stride, padding, dilation, groups)

    def transpose(g: Tensor, shape: torch.Size = x.shape) -> Tensor:
        return TRANSPOSES[func](shape, weight.to(g), g, *rest)  # autocast may have lowered the output

    y: Tensor = _Linear.apply(x, lambda x: func(x, weight.to(x), None, *rest), transpose)
    return y if bias is None else y + bias.view(-1, *[1] * (weight.ndim - 2))


SMOOTHED: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.relu: relu, F.relu_: relu, torch.relu: relu, torch.relu_: relu, Tensor.relu: relu, Tensor.relu_: relu,
    F.relu6: relu6, F.leaky_relu: leaky_relu, F.leaky_relu_: leaky_relu, F.hardtanh: hardtanh, F.hardtanh_: hardtanh,
    F.prelu: prelu, torch.prelu: prelu, F.hardsigmoid: hardsigmoid, F.hardswish: hardswish, F.batch_norm: batch_norm,
}  # fmt: skip
"""What is computed in place of a function while second derivatives are taken."""

PIECEWISE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.hardsigmoid: lambda z, *args, **kwargs: F.relu6(z + 3) / 6,
    F.hardswish: lambda z, *args, **kwargs: z * F.relu6(z + 3) / 6,
}
"""Functions whose gradient PyTorch cannot differentiate again, made of one that it can."""


class Piecewise(TorchFunctionMode):
    """Computes the functions of ``PIECEWISE`` so that they can be differentiated twice; nothing is smoothed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return PIECEWISE.get(func, func)(*args, **(kwargs or {}))
