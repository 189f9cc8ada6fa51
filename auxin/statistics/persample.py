"""Gradients of single samples, from what each layer reads and the gradient at what it writes.

For a linear map y_t = W a_t over positions t (one for a plain linear layer, the output pixels of a convolution), the
gradient of sample i is Σ_t b_it a_itᵀ with b = ∂ℓ_i/∂y. One forward and one backward of a chunk of samples give a and b
of all layers at once; weights need no gradient of their own. Norms, and parameters that are added, multiplied or
expanded, are as simple. What is used in another way is found by comparing with plain backward passes of single samples,
and then computed by those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from auxin.errors import ConfigError
from auxin.graph.capture import clone_tensors, normalise_inputs
from auxin.statistics.batches import Batch, precision
from auxin.types import LossFn

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


@dataclass
class Attachment:
    """A layer that starts as the identity, tried at a module's output without being inserted.

    Since its output is its input, nothing else changes: its gradients follow from the edge and the gradient there.

    Attributes:
        block: The layer, in eval mode.
        prefix: Path that its parameters' names begin with.
        channel: Dimension of the channels, from the end (-1 is the last).
        kept: Channels of the edge that it is made for; None for all.
    """

    block: nn.Module
    prefix: str
    channel: int
    kept: Tensor | None = None

    def named_parameters(self) -> dict[str, Tensor]:
        """Return its parameters under their full names."""
        return {f"{self.prefix}.{name}": p for name, p in self.block.named_parameters()}

    def of(self, edge: Tensor) -> Tensor:
        """Return the channels of an edge that it sees."""
        return edge if self.kept is None else edge.index_select(edge.ndim + self.channel, self.kept.to(edge.device))

    def local(self, x: Tensor, b: Tensor) -> list[tuple[Use, Tensor]]:
        """Return its own uses for an edge, with the gradient at each, from the gradient at the edge."""
        recorder = Recorder({id(p): name for name, p in self.named_parameters().items()})
        with torch.enable_grad(), recorder:
            y = self.block(self.of(x).detach())
        places = [use.y for use in recorder.uses]
        if recorder.unknown or not places:
            return [self._one_by_one(self.of(x).detach(), self.of(b))]
        return list(zip(recorder.uses, torch.autograd.grad(y, places, self.of(b), materialize_grads=True), strict=True))

    def _one_by_one(self, x: Tensor, b: Tensor) -> tuple[Use, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for i in range(len(x)):
            leaves = {n: p.detach().clone().requires_grad_() for n, p in self.block.named_parameters()}
            with torch.enable_grad():
                y = functional_call(self.block, leaves, (x[i : i + 1],))
            for name, g in zip(leaves, torch.autograd.grad(y, list(leaves.values()), b[i : i + 1]), strict=True):
                found.setdefault(f"{self.prefix}.{name}", []).append(g)
        rows = {name: torch.stack(parts) for name, parts in found.items()}
        return Use(b, {name: lambda _, name=name: rows[name] for name in rows}), b  # type: ignore[misc]


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
        return t.reshape(len(t), -1, t.shape[-1])

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


class PerSample:
    """Per-sample gradients of a model's parameters, a chunk of samples at a time.

    The model runs in eval mode, in fp32 or float64, and is only read. Where no use explains a parameter's gradient, or
    samples do not lie along dimension 0 of a use, single-sample backward passes take over (``slow``).

    Args:
        model: The model, already in ``measuring``.
        loss_fn: The loss of (output, target); that of one sample is ``loss_fn(output[i:i+1], target[i:i+1])``.
        probe: A few samples to compare with plain backward passes.
        names: The parameters to differentiate; the trainable ones if None.
        attached: Layers tried after modules, by the module's path; their parameters count as well.

    Attributes:
        parameters: The parameters to differentiate, detached, by name.
        slow: Names of those that need single-sample passes.
        positions: For each other one that is a plain matrix used once, its number of positions.
        biases: For each of those, the name of the bias used with it.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, probe: Batch, names: frozenset[str] | None = None,
        attached: Mapping[str, Attachment] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.loss_fn, self.attached = model, loss_fn, dict(attached or {})
        dtype = precision(model)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.state = {n: t.detach().to(dtype) if t.is_floating_point() else t.detach() for n, t in state.items()}
        if names is None:
            names = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        self.own = {name: self.state[name] for name, _ in model.named_parameters() if name in names}
        self.parameters = dict(self.own)
        for one in self.attached.values():
            self.parameters |= one.named_parameters()
        self.slow: set[str] = set()
        self.positions: dict[str, int] = {}
        self.biases: dict[str, str] = {}
        self._local: tuple[Any, ...] = ()
        self._compare(take(probe, slice(0, 2)))

    def forward(self, batch: Batch, state: Mapping[str, Tensor], recorder: Recorder | None = None) -> Any:
        """Return the output for a batch with these parameters."""
        args, kwargs = clone_tensors(normalise_inputs(batch.inputs))
        frozen = {name: t.clone() if name not in self.own else state[name] for name, t in self.state.items()}
        if recorder is None:
            return functional_call(self.model, frozen, args, kwargs)
        handles = [
            self.model.get_submodule(path).register_forward_hook(
                lambda module, args, output, one=one: self._edge(recorder, one, output)
            )
            for path, one in self.attached.items()
            if one.named_parameters().keys() & set(recorder.names.values())
        ]
        try:
            with recorder:
                return functional_call(self.model, frozen, args, kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _edge(self, recorder: Recorder, one: Attachment, output: Tensor) -> Tensor:
        """Note an edge at which a layer is tried, and hand it on."""
        y = output if output.requires_grad else output.detach().requires_grad_()
        x = y.detach()

        def local(b: Tensor) -> list[tuple[Use, Tensor]]:
            # One at a time: the intermediate values of all layers together would be large.
            if not self._local or self._local[0] is not x or self._local[1] is not b:
                self._local = (x, b, one.local(x, b))
            return self._local[2]

        def rows(b: Tensor, name: str) -> Tensor:
            return torch.stack([use.rows[name](g) for use, g in local(b) if name in use.rows]).sum(0)

        use = Use(y, {name: lambda b, name=name: rows(b, name) for name in one.named_parameters()})  # type: ignore[misc]
        for name, parameter in one.named_parameters().items():
            if name.endswith(".map.weight") and parameter.ndim <= 4:
                use.linear[name] = self._linear(local, name, x, one, parameter)
        recorder.uses.append(use)
        return y.clone()

    @staticmethod
    def _linear(
        local: Callable[[Tensor], list[tuple[Use, Tensor]]], name: str, x: Tensor, one: Attachment, weight: Tensor
    ) -> Linear:
        def read() -> Tensor:
            found = [use.linear[name] for use, _ in local(torch.zeros_like(x)) if name in use.linear]
            return found[0].a()

        def write(b: Tensor) -> Tensor:
            return next(use.linear[name].b(g) for use, g in local(b) if name in use.linear)

        bias = name.removesuffix("weight") + "bias"
        return Linear(
            read, write, x.numel() // (len(x) * x.shape[one.channel]), bias if bias in one.named_parameters() else None
        )

    def losses(self, output: Any, batch: Batch) -> Tensor:
        """Return the loss of each sample, shape (samples,)."""
        count = size(batch)
        return torch.stack([
            self.loss_fn(take_samples(output, slice(i, i + 1)), take_samples(batch.target, slice(i, i + 1))).sum()
            for i in range(count)
        ])  # fmt: skip

    def recorder(self, names: set[str] | None = None) -> Recorder:
        """Return a fresh recorder of some parameters' uses, or of all."""
        return Recorder({id(t): name for name, t in self.parameters.items() if names is None or name in names})

    def uses(
        self, batch: Batch, scalars: Callable[[Any, Batch], Sequence[Tensor]], recorder: Recorder | None = None
    ) -> tuple[list[Use], list[list[Tensor]]]:
        """Return the uses of one forward and, for each scalar, the gradient at each of them.

        Args:
            batch: The samples.
            scalars: From output and batch to sums over samples of what is to be differentiated.
            recorder: Notes the uses; a fresh one if None.

        Returns:
            Uses, and for each scalar one gradient per use.
        """
        recorder = recorder or self.recorder()
        output = self.forward(batch, self.parameters, recorder)
        wanted = scalars(output, batch)
        places = [use.y for use in recorder.uses]
        if not places:
            return [], [[] for _ in wanted]
        gradients = [
            list(torch.autograd.grad(s, places, retain_graph=k + 1 < len(wanted), materialize_grads=True))
            for k, s in enumerate(wanted)
        ]
        return recorder.uses, gradients

    def single(
        self, one: Batch, names: set[str], scalars: Callable[[Any, Batch], Sequence[Tensor]]
    ) -> dict[str, list[Tensor]]:
        """Return, for one sample, the gradients of some parameters by plain backward passes, one per scalar."""
        leaves = {name: self.own[name].clone().requires_grad_() for name in sorted(names)}
        wanted = scalars(self.forward(one, {**self.own, **leaves}), one)
        result: dict[str, list[Tensor]] = {name: [] for name in leaves}
        for k, scalar in enumerate(wanted):
            found = torch.autograd.grad(
                scalar, list(leaves.values()), retain_graph=k + 1 < len(wanted), materialize_grads=True
            )
            for name, gradient in zip(leaves, found, strict=True):
                result[name].append(gradient)
        return result

    def _compare(self, probe: Batch) -> None:
        """Find the parameters whose uses do not explain their gradient."""

        def scalars(output: Any, batch: Batch) -> list[Tensor]:
            return [self.losses(output, batch).sum()]

        recorder = self.recorder()
        uses, (gradients,) = self.uses(probe, scalars, recorder)
        # The samples compared may have no gradient where others do.
        self.slow |= recorder.unknown
        rows: dict[str, Tensor] = {}
        times: dict[str, int] = {}
        for use, b in zip(uses, gradients, strict=True):
            for name, of in use.rows.items():
                times[name] = times.get(name, 0) + 1
                try:
                    mine = of(b).reshape(size(probe), *self.parameters[name].shape)
                except RuntimeError:  # samples are not along dimension 0
                    self.slow.add(name)
                    continue
                rows[name] = rows[name] + mine if name in rows else mine
        for i in range(size(probe)):
            single = self.single(take(probe, slice(i, i + 1)), set(self.own), scalars)
            for name, (true,) in single.items():
                mine = rows[name][i] if name in rows else torch.zeros_like(true)
                if (mine - true).norm() > 1e-3 * true.norm() + 1e-12:
                    self.slow.add(name)
        for use in uses:
            for name, linear in use.linear.items():
                if name not in self.slow and times[name] == 1:
                    self.positions[name] = linear.positions
                    if linear.bias is not None and linear.bias not in self.slow and times[linear.bias] == 1:
                        self.biases[name] = linear.bias


def size(batch: Batch) -> int:
    """Return the number of samples of a batch: the length of its first tensor.

    Args:
        batch: The batch.

    Returns:
        Number of samples.

    Raises:
        ConfigError: If the batch holds no tensor.
    """
    for leaf in pytree.tree_leaves(batch.inputs):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ConfigError("A batch for the expansion score must hold tensors whose first dimension is the samples.")


def take(batch: Batch, samples: slice) -> Batch:
    """Return some samples of a batch."""
    return Batch(take_samples(batch.inputs, samples), take_samples(batch.target, samples))


def take_samples(tree: Any, samples: slice) -> Any:
    """Return some samples of every tensor in a structure; tensors without dimensions stay."""
    return pytree.tree_map(lambda x: x[samples] if isinstance(x, Tensor) and x.ndim else x, tree)
