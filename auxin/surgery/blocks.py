"""Blocks that start as the identity, and the hook that runs them after the module they follow."""

from __future__ import annotations

import math
import sys
from collections.abc import Container, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from auxin.graph.capture import copied
from auxin.graph.naming import GROWN
from auxin.surgery.numbers import number_copy
from auxin.surgery.transaction import Transaction
from auxin.types import Deepen

CONVOLUTIONS: dict[str, type[nn.Module]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
NORMS: dict[str, type[nn.Module]] = {"conv1d": nn.BatchNorm1d, "conv2d": nn.BatchNorm2d, "conv3d": nn.BatchNorm3d}


FRESH = 0.5
"""Share of the weights of a second copy of one module that is drawn anew: equal ones get equal gradients at first."""


class Blend(nn.Module):
    """An activation that starts as the identity: y = x + a·(f(x) − x), with a learnt and 0 at first.

    For activations that are not idempotent (LeakyReLU, GELU, SiLU, ...), and for edges whose values are not yet
    activated.
    """

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.amount = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the blend of x and f(x)."""
        return x + self.amount * (self.function(x) - x)


class IdentityBlock(nn.Module):
    """Linear map, batch norm, activation, all starting as the identity.

    The convolution is a Dirac kernel (a linear layer: the identity matrix); the norm is calibrated so that
    scale = sqrt(variance + eps) and shift = mean of what enters; the activation is idempotent on its own output, or a
    ``Blend``. See Net2Net (Chen et al. 2016), section 3.2, and SECNN (2024).

    Args:
        kind: ``conv1d``, ``conv2d``, ``conv3d`` or ``linear``.
        channels: Width of the edge.
        kernel_size: Odd size of the convolution's kernel.
        norm: Whether to normalise.
        activation: Name of an activation in ``torch.nn``.
        arguments: Its keyword arguments.
        blend: Whether the activation must be blended in.
        bias: Whether the linear map has a bias where no norm follows.
    """

    def __init__(
        self,
        kind: str,
        channels: int,
        kernel_size: int = 3,
        norm: bool = False,
        activation: str = "ReLU",
        arguments: Mapping[str, float | str] | None = None,
        blend: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        bias = bias and not norm
        if kind == "linear":
            self.map: nn.Module = nn.Linear(channels, channels, bias=bias)
            self.norm: nn.Module = nn.BatchNorm1d(channels) if norm else nn.Identity()
        else:
            self.map = CONVOLUTIONS[kind](channels, channels, kernel_size, padding=kernel_size // 2, bias=bias)
            self.norm = NORMS[kind](channels) if norm else nn.Identity()
        function = getattr(nn, activation)(**(arguments or {}))
        if activation == "PReLU":
            nn.init.ones_(function.weight)  # slope one is the identity
            blend = False
        self.activation: nn.Module = Blend(function) if blend else function
        self._start_as_identity()

    def _start_as_identity(self) -> None:
        weight = self.map.weight
        with torch.no_grad():
            if isinstance(self.map, nn.Linear):
                nn.init.eye_(weight)  # type: ignore[arg-type]
            else:
                nn.init.dirac_(weight)  # type: ignore[arg-type]
            if self.map.bias is not None:
                self.map.bias.zero_()  # type: ignore[operator]

    def calibrate(self, mean: Tensor, variance: Tensor) -> None:
        """Make the norm the identity for inputs with these statistics per channel, each of shape (channels,)."""
        if isinstance(self.norm, nn.Identity):
            return
        norm: Any = self.norm
        with torch.no_grad():
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            # A unit that is off must stay off: rounded upwards, x = 0 would pass ReLU's gradient, at random.
            eps = torch.finfo(norm.bias.dtype).eps
            margin = 0.0 if isinstance(self.activation, Blend) else eps * (8 if eps < 1e-6 else 1)
            norm.bias.copy_(mean - margin * mean.abs())
            norm.weight.copy_((variance + norm.eps).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(norm(map(x))), of x's shape."""
        y = self.map(x)
        if isinstance(self.norm, nn.BatchNorm1d) and isinstance(self.map, nn.Linear) and y.dim() > 2:
            y = self.norm(y.flatten(0, -2)).reshape_as(y)  # of tokens: BatchNorm1d would take them for channels
        else:
            y = self.norm(y)
        return self.activation(y)


def nearest_parameter(model: nn.Module, path: str) -> Tensor:
    """Return a floating parameter of the module at a path, or else the last one before it, whose type a block takes."""
    modules = [name for name, _ in model.named_modules()]
    place = modules.index(path)
    found = [(n.rpartition(".")[0], p) for n, p in model.named_parameters() if p.is_floating_point()]
    own = [p for name, p in found if name == path or name.startswith(f"{path}.")]
    before = [p for name, p in found if modules.index(name) < place]
    fitting = own or before or [p for _, p in found]
    return fitting[-1] if fitting else torch.zeros(())


def build_block(like: Tensor, **options: Any) -> IdentityBlock:
    """Return a plain block of another tensor's device and type; torch's own random state is not touched."""
    with torch.random.fork_rng(devices=[]):
        return IdentityBlock(**options).to(device=like.device, dtype=like.dtype)


def copy_block(host: nn.Module, neutral: Mapping[str, float]) -> nn.Module:
    """Return a copy of a residual block as it was before anything was inserted after it, with some values given."""
    # The parts go on reading the model's config, in which the copy is counted.
    configs = [config for part in host.modules() if (config := vars(part).get("config")) is not None]
    block = copied(host, shared=configs)
    take_blocks(block)
    for parameter in block.parameters():
        parameter.grad = None
    with torch.no_grad():
        for name, value in neutral.items():
            block.get_parameter(name).fill_(value)
    return block


@torch.no_grad()
def renew(block: nn.Module, neutral: Container[str], op: Deepen, number: int) -> None:
    """Draw a share s of a copy's matrices and kernels anew: w ← sqrt(1 − s²)·w + s·rms(w)·ξ, ξ standard normal.

    Left out are what starts at zero, and vectors: scales and shifts, which say how large things are.

    Args:
        block: The copy.
        neutral: Names of what starts at zero.
        op: The insertion: its share, its seed and its site.
        number: Copies that the module has already.
    """
    share = op.fresh if op.fresh is not None else FRESH * bool(number)
    generator = torch.Generator().manual_seed(crc32(f"{op.seed} {op.site} {number}".encode()))
    for name, weight in block.named_parameters() if share else ():
        learnt = weight.is_floating_point() or weight.is_complex()
        if learnt and name not in neutral and weight.numel() > max(weight.shape, default=1):
            kind = torch.complex64 if weight.is_complex() else torch.float32
            numbers = torch.randn(weight.shape, generator=generator, dtype=kind).to(weight)
            size = weight.abs().square().mean().sqrt()
            weight.mul_(math.sqrt(1 - share**2)).add_(share * size * numbers)


def make_block(model: nn.Module, path: str, options: Mapping[str, Any], change: Transaction) -> nn.Module:
    """Return the block that options describe: a copy of the module at a path if they say how it starts, or a plain one.

    Args:
        model: The model.
        path: Path of the module that the block will follow.
        options: ``neutral``, or the keyword arguments of ``IdentityBlock``.
        change: Where to record what changes in the model's config, if that counts its layers, and in an encoder.

    Returns:
        The block, in the module's mode; in a copy each part keeps that of its original.
    """
    host = model.get_submodule(path)
    for around in (module for name, module in model.named_modules() if path.startswith(f"{name}." if name else "")):
        if isinstance(around, nn.TransformerEncoder):  # with padding it would hand nested tensors to the block
            change.set_attribute(around, "use_nested_tensor", False)
    if "neutral" in options:
        block = copy_block(host, options["neutral"])
        number_copy(model, path, block, change)
        return block
    return build_block(nearest_parameter(model, path), **options).train(host.training)


def run_grown(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Forward hook: pass a module's output through the blocks inserted after it.

    A copy of the module is called as the module was, with the output in place of the first argument. Where the module
    returns a tuple, the copies work on the first entry; the others stay the module's own.

    Args:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned.

    Returns:
        What the last block returned.
    """
    y, *others = output if isinstance(output, tuple) else (output,)
    for block in module._modules[GROWN]:  # type: ignore[union-attr]
        if isinstance(block, IdentityBlock):
            y = block(y)
        elif args:
            y = block(y, *args[1:], **kwargs)
        else:
            y = block(**{**kwargs, next(iter(kwargs)): y})
        y = y[0] if isinstance(y, tuple) else y
    return (y, *others) if isinstance(output, tuple) else y


def attach(host: nn.Module, block: nn.Module) -> None:
    """Append a block after a module; names of existing parameters do not change."""
    if GROWN not in host._modules:
        host.add_module(GROWN, nn.Sequential())
        host.register_forward_hook(run_grown, with_kwargs=True)
    sequence = host._modules[GROWN]
    assert isinstance(sequence, nn.Sequential)
    sequence.append(block)
    _forget_compiled()


def detach_last(host: nn.Module) -> None:
    """Take the last inserted block away again."""
    sequence = host._modules[GROWN]
    assert isinstance(sequence, nn.Sequential)
    del sequence[-1]
    if not len(sequence):
        take_blocks(host)
    _forget_compiled()


def take_blocks(host: nn.Module) -> list[nn.Module]:
    """Take away and return all blocks inserted after a module."""
    hooks = [key for key, hook in host._forward_hooks.items() if hook is run_grown]
    for key in hooks:
        del host._forward_hooks[key]
        host._forward_hooks_with_kwargs.pop(key, None)
    return list(host._modules.pop(GROWN).children()) if hooks else []  # type: ignore[union-attr]


def _forget_compiled() -> None:
    """Let ``torch.compile`` start anew: it does not notice that a module has got a hook."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
