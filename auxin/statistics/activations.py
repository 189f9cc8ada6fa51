"""Piecewise linear activations with the second derivative of a softplus, and batch norm as the affine map it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 3.0


class _Step(torch.autograd.Function):
    """1 where z > 0, else 0; its derivative is that of sigmoid(3z): 3 s (1 - s)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        s = torch.sigmoid(SHARPNESS * z)
        return gradients[0] * SHARPNESS * s * (1 - s)


class _Relu(torch.autograd.Function):
    """ReLU; its first derivative is exact, its second that of softplus with sharpness 3."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        step: Tensor = _Step.apply(z)
        return gradients[0] * step


def relu(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """ReLU with second derivative 3 s (1 - s), s = sigmoid(3z)."""
    result: Tensor = _Relu.apply(z)
    return result


def relu6(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """ReLU6 = ReLU(z) - ReLU(z - 6), each with its second derivative."""
    return relu(z) - relu(z - 6)


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
    return x * scale.view(shape) + shift.view(shape)


SMOOTHED: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.relu: relu, F.relu_: relu, torch.relu: relu, torch.relu_: relu, Tensor.relu: relu, Tensor.relu_: relu,
    F.relu6: relu6, F.leaky_relu: leaky_relu, F.leaky_relu_: leaky_relu, F.batch_norm: batch_norm,
}  # fmt: skip
"""What is computed in place of a function while second derivatives are taken."""
