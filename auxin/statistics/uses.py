"""What a forward does with each parameter: the uses from which gradients of single samples follow.

For a linear map y_t = W a_t over positions t (one for a plain linear layer, the output pixels of a convolution), the
gradient of sample i is Σ_t b_it a_itᵀ with b = ∂ℓ_i/∂y. Norms, and parameters that are added, multiplied or expanded,
are as simple. One rule per function; a function without a rule makes its parameters unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Rows = Callable[[Tensor], Tensor]
"""From the gradient at a use's output to one gradient per sample, of shape (samples, *parameter)."""
IN_CACHE = 8
"""Samples whose pixels fit the processor's cache together."""
ADD: frozenset[Any] = frozenset({torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__})
MULTIPLY: frozenset[Any] = frozenset({torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply})


@dataclass
class Linear:
    """A weight as a plain matrix: gradient of sample i = Σ_t b_t a_tᵀ.

    Attributes:
        a: What the layer reads, shape (samples, positions, inputs · kernel), computed when asked for.
        b: Maps the gradient at its output to shape (samples, positions, outputs).
        positions: Number of positions.
        bias: Name of the bias added to it, if any.
    """

    a: Callable[[], Tensor]
    b: Callable[[Tensor], Tensor]
    positions: int
    bias: str | None = None


@dataclass
class Use:
    """One place at which a forward uses parameters.

    Attributes:
        y: The output there.
        rows: For each parameter, its gradient per sample from the gradient at ``y``.
        linear: For each weight that is a plain matrix here, its factors.
    """

    y: Tensor
    rows: dict[str, Rows]
    linear: dict[str, Linear] = field(default_factory=dict)


class Recorder(TorchFunctionMode):
    """Notes every use of a parameter during a forward.

    Args:
        names: Name of each parameter by the ``id`` of the tensor that stands for it.

    Attributes:
        uses: The uses, in the order of the forward.
        unknown: Names of parameters that some other function reads.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.uses: list[Use] = []
        self.unknown: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        found = {id(value) for value in pytree.tree_leaves((args, kwargs))} & self.names.keys()
        y = func(*args, **kwargs)
        if not found:
            return y
        record = RECORDERS.get(func)
        use = None if record is None else record(self.names, y, *args, **kwargs)
        if use is None or not (use.rows or use.linear):
            # Reading a shape or a type gives no tensor, and ``to`` may give the parameter itself.
            if any(isinstance(leaf, Tensor) and id(leaf) not in self.names for leaf in pytree.tree_leaves(y)):
                self.unknown |= {self.names[key] for key in found}
            return y
        use.y = y if y.requires_grad else y.requires_grad_()
        self.uses.append(use)
        # The model may change it in place, and a leaf must not be.
        return use.y.clone()


def _linear(names: Mapping[int, str], y: Tensor, input: Tensor, weight: Tensor, bias: Any = None) -> Use:
    x = input.detach()
    use = Use(y, {})

    def flat(t: Tensor) -> Tensor:
        return t.reshape(len(t), -1, t.shape[-1]) if t.ndim > 1 else t.view(1, 1, -1)

    if id(weight) in names:
        use.rows[names[id(weight)]] = lambda b: flat(b).transpose(1, 2) @ flat(x)
        positions = max(math.prod(x.shape[1:-1]), 1)
        use.linear[names[id(weight)]] = Linear(lambda: flat(x), flat, positions, names.get(id(bias)))
    if id(bias) in names:
        use.rows[names[id(bias)]] = lambda b: flat(b).sum(1)
    return use


def _convolution(
    names: Mapping[int, str], y: Tensor, input: Tensor, weight: Tensor, bias: Any = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Use | None:  # fmt: skip
    rank = weight.ndim - 2
    if rank > 2 or input.ndim != weight.ndim:
        return None
    kernel = tuple(weight.shape[2:])
    stride, dilation = _per_dim(stride, rank), _per_dim(dilation, rank)
    x = input.detach()
    if padding == "same":
        sides = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        x = F.pad(x, [side for total in reversed(sides) for side in (total // 2, total - total // 2)])
    pad = (0,) * rank if isinstance(padding, str) else _per_dim(padding, rank)
    if rank == 1:
        x, kernel, stride, dilation, pad = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation), (0, *pad)

    def read() -> Tensor:
        """Return what each output pixel reads, shape (samples, groups, inputs · kernel, positions)."""
        if kernel == (1, 1) and stride == (1, 1) and pad == (0, 0):
            return x.reshape(len(x), groups, -1, x.shape[2] * x.shape[3])
        columns = F.unfold(x, kernel, dilation, pad, stride)
        return columns.view(len(x), groups, -1, columns.shape[-1])

    def write(b: Tensor) -> Tensor:
        return b.reshape(len(b), groups, -1, math.prod(b.shape[2:]))

    use = Use(y, {})
    if id(weight) in names:
        name, shape = names[id(weight)], tuple(weight.shape)
        use.rows[name] = lambda b: (write(b) @ read().transpose(2, 3)).view(len(b), *shape)
        if groups == 1:
            use.rows[name] = lambda b: _kernel_gradients(
                x, b.reshape(*b.shape[:2], 1, -1) if rank == 1 else b, kernel, stride, pad, dilation
            ).view(len(b), *shape)
            use.linear[name] = Linear(
                lambda: read()[:, 0].transpose(1, 2), lambda b: write(b)[:, 0].transpose(1, 2),
                math.prod(y.shape[2:]), names.get(id(bias)),
            )  # fmt: skip
    if id(bias) in names:
        use.rows[names[id(bias)]] = lambda b: b.flatten(2).sum(2)
    return use


def _kernel_gradients(
    x: Tensor, b: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:  # fmt: skip
    """Return Σ_t b_t a_tᵀ of each sample, kernel row by kernel row, some samples at a time: faster than unfold.

    Args:
        x: Input, shape (samples, C_in, H, W).
        b: Gradient at the output, shape (samples, C_out, H', W').
        kernel: Height and width of the kernel.
        stride: Of the convolution, as the two below.
        padding: Zeros on both sides.
        dilation: Distance between the kernel's taps.

    Returns:
        Gradients, shape (samples, C_out, C_in, k_h, k_w).
    """
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    height, width = b.shape[2:]
    outputs, inputs = b.shape[1], x.shape[1]
    result = x.new_empty(len(x), kh, outputs, kw * inputs)
    for some in range(0, len(x), IN_CACHE):
        padded = F.pad(x[some : some + IN_CACHE], (padding[1], padding[1], padding[0], padding[0]))
        padded = padded.permute(0, 2, 3, 1).contiguous()
        n, _, wide, _ = padded.shape
        at = b[some : some + IN_CACHE].permute(0, 2, 3, 1).reshape(n, -1, outputs).transpose(1, 2)
        steps = (padded.stride(0), sh * wide * inputs, sw * inputs, dw * inputs, 1)
        for i in range(kh):
            read = padded.as_strided((n, height, width, kw, inputs), steps, i * dh * wide * inputs)
            result[some : some + n, i] = at @ read.reshape(n, height * width, kw * inputs)
    return result.view(len(x), kh, outputs, kw, inputs).permute(0, 2, 4, 1, 3).contiguous()


def _per_dim(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value) if len(value) == rank else tuple(value) * rank


def _affine(
    names: Mapping[int, str], y: Tensor, normal: Callable[[], Tensor], weight: Any, bias: Any, dims: Any
) -> Use:
    """Return a use of y = weight · normal + bias; ``dims`` are summed over within a sample."""
    use = Use(y, {})
    if id(weight) in names:
        use.rows[names[id(weight)]] = lambda b: (b * normal()).sum(dims) if dims else b * normal()
    if id(bias) in names:
        use.rows[names[id(bias)]] = lambda b: b.sum(dims) if dims else b
    return use


def _batch_norm(
    names: Mapping[int, str], y: Tensor, input: Tensor, running_mean: Any, running_var: Any, weight: Any = None,
    bias: Any = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Use | None:  # fmt: skip
    if training or running_mean is None or running_var is None:
        return None
    x = input.detach()
    dims = list(range(2, x.ndim))
    return _affine(names, y, lambda: F.batch_norm(x, running_mean, running_var, eps=eps), weight, bias, dims)


def _layer_norm(
    names: Mapping[int, str], y: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> Use:  # fmt: skip
    x = input.detach()
    dims = list(range(1, x.ndim - len(normalized_shape)))
    return _affine(names, y, lambda: F.layer_norm(x, normalized_shape, eps=eps), weight, bias, dims)


def _group_norm(
    names: Mapping[int, str], y: Tensor, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> Use:  # fmt: skip
    x = input.detach()
    return _affine(names, y, lambda: F.group_norm(x, num_groups, eps=eps), weight, bias, list(range(2, x.ndim)))


def _elementwise(names: Mapping[int, str], y: Tensor, *operands: Any, factor: bool, **kwargs: Any) -> Use | None:
    if kwargs or len(operands) != 2 or sum(id(operand) in names for operand in operands) != 1 or not y.ndim:
        return None
    parameter, other = operands if id(operands[0]) in names else operands[::-1]
    if factor and isinstance(other, Tensor):
        other = other.detach()

    def rows(b: Tensor) -> Tensor:
        return _fold(b * other if factor else b, parameter.shape)

    return Use(y, {names[id(parameter)]: rows})


def _prelu(names: Mapping[int, str], y: Tensor, input: Tensor, weight: Tensor) -> Use | None:
    x = input.detach()
    if id(weight) not in names or x.ndim < 2:
        return None
    dims = [d for d in range(1, x.ndim) if d != 1 or weight.numel() == 1]

    def rows(b: Tensor) -> Tensor:
        return (b * x.clamp(max=0)).sum(dims).reshape(len(b), *weight.shape) if dims else b * x.clamp(max=0)

    return Use(y, {names[id(weight)]: rows})


def _expand(names: Mapping[int, str], y: Tensor, parameter: Tensor, *sizes: Any, **kwargs: Any) -> Use | None:
    return Use(y, {names[id(parameter)]: lambda b: _fold(b, parameter.shape)}) if parameter.ndim else None


def _fold(b: Tensor, shape: torch.Size) -> Tensor:
    """Sum a gradient over the positions that broadcasting repeated, the samples of dimension 0 aside."""
    full = (1,) * (b.ndim - len(shape)) + tuple(shape)
    repeated = [d for d in range(1, b.ndim) if full[d] == 1 and b.shape[d] > 1]
    folded = b.sum(repeated, keepdim=True) if repeated else b
    return folded.reshape(len(b), *shape)


RECORDERS: dict[Any, Callable[..., Use | None]] = {
    F.linear: _linear,
    **dict.fromkeys((F.conv1d, F.conv2d), _convolution),
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    **dict.fromkeys(ADD, lambda names, y, *a, **k: _elementwise(names, y, *a, factor=False, **k)),
    **dict.fromkeys(MULTIPLY, lambda names, y, *a, **k: _elementwise(names, y, *a, factor=True, **k)),
    Tensor.expand: _expand,
    **dict.fromkeys((F.prelu, torch.prelu), _prelu),
}
"""How the uses of parameters by each function are noted."""
