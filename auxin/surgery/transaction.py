"""All or nothing: every change goes through an undo log, and the model must still run before the log is dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Transaction:
    """Makes changes and remembers how to take each of them back, newest first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def on_rollback(self, action: Callable[[], object]) -> None:
        """Run an action if the changes are taken back."""
        self._undo.append(action)

    def rollback(self) -> None:
        """Take every change back."""
        while self._undo:
            self._undo.pop()()

    def replace(self, tensor: Tensor, data: Tensor, gradient: Tensor | None = None) -> None:
        """Give a parameter or buffer new contents of another shape; the tensor object stays the same.

        Args:
            tensor: The parameter or buffer.
            data: Its new contents.
            gradient: Its new ``.grad``.
        """
        old, old_gradient = tensor.data, tensor.grad
        self.on_rollback(lambda: _set_data(tensor, old, old_gradient))
        _set_data(tensor, data, gradient)

    def set_attribute(self, module: Any, name: str, value: Any) -> None:
        """Set a (dotted) attribute of a module, or of its config."""
        owner, last = _attribute_owner(module, name)
        old = getattr(owner, last)
        self.on_rollback(lambda: setattr(owner, last, old))
        setattr(owner, last, value)

    def set_item(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Set an entry of a dictionary, such as an optimizer's state."""
        if key in mapping:
            old = mapping[key]
            self.on_rollback(lambda: mapping.__setitem__(key, old))
        else:
            self.on_rollback(lambda: mapping.pop(key, None))
        mapping[key] = value

    def clear(self, mapping: dict[Any, Any]) -> None:
        """Empty a dictionary, such as an optimizer's state."""
        old = dict(mapping)
        self.on_rollback(lambda: mapping.update(old))
        mapping.clear()


def _attribute_owner(module: Any, name: str) -> tuple[Any, str]:
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    return module, last


def _set_data(tensor: Tensor, data: Tensor, gradient: Tensor | None) -> None:
    """Replace a tensor's contents, also where an autograd graph of the old shape is still alive.

    Autograd keeps the node that accumulates a parameter's gradient, with the old shape, for as long as any graph that
    used it lives (a ``loss`` variable is enough). It forgets that node when the contents change their type, so the
    contents take another type on the way.
    """
    tensor.grad = None
    if tensor.requires_grad:
        detour = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=detour, device=tensor.device)
    tensor.data = data
    tensor.grad = gradient
