"""Packed sequences while a model is captured: the same rows in the same places, by indices that are known.

``torch.export`` cannot follow ``pack_padded_sequence``, whose result has one row for each step of each sample. With the
number of samples at each step known, packing and padding are indices into the rows, and a recurrent layer that is given
packed rows runs on padded ones, which has the same weights and the same shapes. The numbers differ (a layer that also
runs backwards starts in the padding); a capture holds none. FLOPs of recurrent layers count the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

_RECURRENT: set[Callable[..., Any]] = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
PACKED = {torch._pack_padded_sequence, torch._pad_packed_sequence, *_RECURRENT}
"""Functions that take or make packed sequences; the recurrent ones take padded ones too."""


def is_packed(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Return whether one of ``PACKED`` is called with packed sequences, or makes them."""
    return func not in _RECURRENT or isinstance(args[3], (list, tuple))  # weights come after the rows and their counts


def samples_at_each_step(func: Callable[..., Any], args: Sequence[Any], result: Any) -> list[int]:
    """Return how many samples have each step of a packed sequence.

    Args:
        func: One of ``PACKED``.
        args: What it was called with.
        result: What it returned.

    Returns:
        From the first step to the last; the first counts all samples.
    """
    counts: Tensor = result[1] if func is torch._pack_padded_sequence else args[1]
    return [int(count) for count in counts]


def follow(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], counts: Sequence[int]) -> Any:
    """Do what a function of packed sequences does, by operators that a capture can follow.

    Args:
        func: One of ``PACKED``.
        args: What it is called with.
        kwargs: By name.
        counts: Samples at each step.

    Returns:
        What it returns, in shape.
    """
    if func is torch._pack_padded_sequence:
        return _pack(args[0], counts, bool(args[2])), torch.tensor(counts)
    if func is torch._pad_packed_sequence:
        lengths = [sum(count > sample for count in counts) for sample in range(counts[0])]
        return _pad(args[0], counts, bool(args[2]), args[4]), torch.tensor(lengths)
    y, *states = func(_pad(args[0], counts, False), *args[2:], False, **kwargs)
    return _pack(y, counts, False), *states


def _pack(x: Tensor, counts: Sequence[int], batch_first: bool) -> Tensor:
    steps = [step for step, count in enumerate(counts) for _ in range(count)]
    samples = [sample for count in counts for sample in range(count)]
    return x[samples, steps] if batch_first else x[steps, samples]


def _pad(data: Tensor, counts: Sequence[int], batch_first: bool, steps: int = 0) -> Tensor:
    starts = list(accumulate(counts, initial=0))
    rows = [[start + min(i, count - 1) for i in range(counts[0])] for start, count in zip(starts, counts, strict=False)]
    rows += [rows[-1]] * (steps - len(rows))
    index = torch.tensor(rows)
    return data[index.T if batch_first else index]
