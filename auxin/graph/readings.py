"""What a forward reads from its tensors while it decides what to do, known while it is captured.

``if h.max() > 10``, ``assert torch.isfinite(h).all()``, ``(expert == 3).nonzero()`` and ``x[mask]`` need numbers, and
in a capture tensors have none. So the forward runs once with the example, what it reads is noted with the line that
reads it, and the capture is given the same at the same lines: it follows what the forward does for the example. How
these numbers come from the units is not followed; where they change with growth, the check before and after sees it.
Gradients that the forward takes of itself are among what a capture cannot compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from auxin.graph.lines import running_line
from auxin.graph.packed import PACKED, follow, is_packed, samples_at_each_step

_NUMBERS = {
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__complex__, Tensor.__index__, Tensor.__contains__),
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__format__),
    *(Tensor.is_nonzero, Tensor.equal, Tensor.allclose, torch.is_nonzero, torch.equal, torch.allclose),
}  # fmt: skip
_PLACES = {
    *(Tensor.nonzero, Tensor.argwhere, Tensor.unique, Tensor.unique_consecutive, Tensor.bincount),
    *(torch.nonzero, torch.argwhere, torch.unique, torch.unique_consecutive, torch.bincount),
}  # fmt: skip
"""Functions whose result has a size that depends on the data."""

_REPEATED = {Tensor.repeat_interleave, torch.repeat_interleave}
_MASKED = {Tensor.__getitem__, Tensor.__setitem__}
_MAKERS = {torch.zeros, torch.ones, torch.empty}


class Reading(NamedTuple):
    """What a forward took out of its tensors at one place.

    Attributes:
        reader: The function that took it, such as ``Tensor.item``.
        line: The line of the user's code that called it.
        value: What it gave; of an index with masks, where each mask is true; of packed sequences, the samples at each
            step; of a new tensor whose size a tensor gives, its shape; of a repetition, which entry comes where.
    """

    reader: Callable[..., Any]
    line: str
    value: Any


class NoteReadings(TorchFunctionMode):
    """Note what a forward reads from its tensors.

    Attributes:
        readings: What it read, in its order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[Reading] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not _is_reading(func, args, kwargs or {}):
            return func(*args, **(kwargs or {}))
        places = _places(args[1]) if func in _MASKED else []
        value = func(*args, **(kwargs or {}))
        noted: Any = value
        if func in PACKED:
            noted = samples_at_each_step(func, args, value)
        elif func in _MASKED:
            noted = places
        elif func in _MAKERS:
            noted = value.shape
        elif func in _REPEATED:
            noted = torch.repeat_interleave(_repeats(args, kwargs or {}))
        self.readings.append(Reading(func, running_line(), noted))
        return value


class RepeatReadings(TorchFunctionMode):
    """Give a forward what it read before, at the lines that read it.

    What a capture does not ask for is passed over: libraries leave out their checks there.

    Attributes:
        given: What was given.
    """

    def __init__(self, readings: Iterable[Reading]) -> None:
        super().__init__()
        self._left = deque(readings)
        self.given: list[Reading] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        place = (func, running_line()) if _is_reading(func, args, kwargs or {}) else None
        if place is None or not any(reading[:2] == place for reading in self._left):
            return func(*args, **(kwargs or {}))
        while (reading := self._left.popleft())[:2] != place:
            pass
        self.given.append(reading)
        noted = reading.value
        if func in PACKED:
            return follow(func, args, kwargs or {}, noted)
        if func in _MAKERS:
            return func(noted, **(kwargs or {}))
        if func in _MASKED:
            return func(args[0], _without_masks(args[1], noted), *args[2:])
        if func in _REPEATED:
            dim = args[2] if len(args) > 2 else (kwargs or {}).get("dim")
            return args[0].flatten()[noted] if dim is None else args[0].index_select(dim, noted)
        if func is torch.autograd.grad:
            return _gradients(args[0], args[1])
        return noted


def _is_reading(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call needs to know what a tensor holds."""
    if func in _MASKED:
        return any(map(_is_mask, _parts(args[1])))
    if func in _MAKERS:
        return any(isinstance(size, Tensor) for size in _parts(*args))
    if func in PACKED:
        return is_packed(func, args)
    if func in _REPEATED:
        return isinstance(_repeats(args, kwargs), Tensor)
    if func is torch.where:
        return len(args) + len(kwargs) == 1
    if func is torch.autograd.grad:
        return True
    return func in _NUMBERS or (func in _PLACES and not args[0].is_floating_point())


def _repeats(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return how often each entry is repeated: a number, a tensor, or None where it is all there is."""
    return args[1] if len(args) > 1 else kwargs.get("repeats")


def _gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what stands for gradients in a capture: tensors of the inputs' shapes that need the outputs.

    Where new units leave the outputs as they are, for all inputs, they leave the gradients as they are.
    """
    needed = torch.stack([output.sum() for output in outputs]).sum()
    return tuple(torch.zeros_like(one) + 0 * needed for one in inputs)


def _parts(*given: Any) -> tuple[Any, ...]:
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool and part.ndim > 0


def _places(index: Any) -> list[tuple[Tensor, ...]]:
    """Return where each mask of an index is true, as one tensor of positions per dimension."""
    return [part.nonzero(as_tuple=True) for part in _parts(index) if _is_mask(part)]


def _without_masks(index: Any, places: Sequence[tuple[Tensor, ...]]) -> tuple[Any, ...]:
    """Return an index with positions for masks."""
    left = deque(places)
    return tuple(one for part in _parts(index) for one in (left.popleft() if _is_mask(part) else (part,)))
