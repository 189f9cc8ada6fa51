"""A pretended GPU: CPU tensors that say they are on cuda:0, and an error where they meet tensors that are not.

It finds what fails on a machine that has a GPU (a tensor made on the CPU, an optimizer's state left there) on one that
has none. It knows nothing of CUDA's kernels, their speed or their rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning_fabric
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

GPU = torch.device("cuda", 0)
_MARK = "_on_pretended_gpu"
# These take tensors of both kinds: copies, and an index on the CPU.
_MIXED = (
    "aten.copy_", "aten._to_copy", "aten.index.Tensor", "aten.index_put", "aten._index_put_impl", "aten.set_",
    "aten.threshold_backward",  # reads what autograd saved, which comes back without its mark
)  # fmt: skip


class PretendedError(Exception):
    """What would fail on a GPU; not a RuntimeError, which some code expects and handles."""


def on_gpu(tensor: Tensor) -> bool:
    return _MARK in vars(tensor)


def _marked(tree: Any, here: bool = True) -> Any:
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            vars(leaf).pop(_MARK, None)
            if here:
                vars(leaf)[_MARK] = True
    return tree


def _means_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Operators(TorchDispatchMode):
    """Outputs are where the inputs are; inputs from two places are an error, but for CPU scalars."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [x for x in tensors if on_gpu(x)]
        there = [x for x in tensors if not on_gpu(x) and x.ndim]
        if here and there and not name.startswith(_MIXED):
            raise PretendedError(f"{name} of {[tuple(x.shape) for x in here]} and {[tuple(x.shape) for x in there]}")
        index = name.startswith(("aten.index.Tensor", "aten.index_put", "aten._index_put_impl"))
        if index and here and not on_gpu(args[0]):
            raise PretendedError(f"{name}: a CPU tensor indexed by one on the GPU")
        first = index or name.startswith("aten.copy_")
        out = func(*args, **kwargs)
        return _marked(out) if (on_gpu(args[0]) if first else here) else out


class _Requests(TorchFunctionMode):
    """Answers where a tensor is, and moves it, by marks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        this = args[0] if args and isinstance(args[0], Tensor) else None
        here = this is not None and on_gpu(this)
        if func == Tensor.device.__get__:
            return GPU if here else func(*args)
        if func == Tensor.is_cuda.__get__:
            return here
        if func == Tensor.data.__set__:
            func(*args)
            _marked(this, on_gpu(args[1]))
            return None
        if name in ("numpy", "__array__") and here:
            raise PretendedError("a tensor on the GPU has no NumPy array")
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._move(this, func, args[1:], kwargs)
        generator = kwargs.get("generator")
        to_gpu = name != "_parse_to" and _means_gpu(kwargs.get("device"))
        if generator is not None and (to_gpu or here):
            raise PretendedError(f"{name} on the GPU with a generator of the CPU")
        if to_gpu:
            kwargs["device"] = "cpu"
        out = func(*args, **kwargs)
        keeps = func in (Tensor.grad.__get__, Tensor.data.__get__) or name == "__deepcopy__"
        like = (name.endswith("_like") or name.startswith("new_")) and kwargs.get("device") is None
        return _marked(out) if to_gpu or (here and (keeps or like)) else out

    @staticmethod
    def _move(this: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        here = on_gpu(this)
        to_gpu = {Tensor.cuda: True, Tensor.cpu: False}.get(func, here)
        words = [*args, kwargs.get("device"), kwargs.get("other"), kwargs.get("dtype")] if func is Tensor.to else []
        dtype = this.dtype
        for word in words:
            if isinstance(word, Tensor):
                to_gpu, dtype = on_gpu(word), word.dtype
            elif isinstance(word, torch.dtype):
                dtype = word
            elif isinstance(word, (str, torch.device)):
                to_gpu = _means_gpu(word)
        copy = bool(kwargs.get("copy")) or to_gpu != here
        options = {"memory_format": kwargs["memory_format"]} if "memory_format" in kwargs else {}
        moved = this.to(dtype=dtype, copy=copy, **options)
        return moved if moved is this else _marked(moved, to_gpu)


class _Fabric(lightning_fabric.Fabric):
    def __init__(self, accelerator: str = "auto", devices: int = 1, precision: Any = None) -> None:
        super().__init__(accelerator="cpu", devices=devices, precision=precision)

    device = property(lambda self: GPU)

    def to_device(self, obj: Any) -> Any:
        return obj.to(GPU)


@contextmanager
def _paused() -> Iterator[None]:
    stack = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    try:
        with _disable_current_modes():
            yield
    finally:
        for mode in reversed(stack):
            torch._C._push_on_torch_function_stack(mode)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Give this process a GPU that is none; ``auxin.training`` then trains on it."""
    import auxin.training.trainer

    trace = sys.modules["auxin.graph.trace"]  # the package gives its function this name
    fork, capture, new = torch.random.fork_rng, trace.capture, nn.Parameter.__new__

    def new_parameter(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        parameter = new(cls, data, requires_grad)
        return _marked(parameter) if data is not None and on_gpu(data) else parameter

    def capture_on_cpu(*args: Any) -> Any:
        with _paused():  # torch.export makes tensors of its own
            return capture(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.random, "fork_rng", lambda devices=None, **kwargs: fork(devices=[], **kwargs))
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(nn.Parameter, "__new__", new_parameter)
        patch.setattr(trace, "capture", capture_on_cpu)
        patch.setattr(auxin.training.trainer, "Fabric", _Fabric)
        with _Requests(), _Operators():
            yield
