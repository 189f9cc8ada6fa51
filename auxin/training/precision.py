"""``train.precision: auto``: bf16 where the hardware multiplies it, float32 where it would be emulated."""

from __future__ import annotations

from typing import Literal

import torch

from auxin.training.config import TrainConfig

Precision = Literal["bf16-mixed", "32-true"]

_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # the last on ARM
"""Names of :func:`torch.cpu.get_capabilities`."""


def precision_of(config: TrainConfig, begun: Precision | None = None) -> Precision:
    """Return the precision to train in.

    Args:
        config: Its ``precision`` is taken unless it is "auto".
        begun: The precision of the run that is gone on with, which "auto" then keeps.

    Returns:
        "bf16-mixed" or "32-true".
    """
    if config.precision != "auto":
        return config.precision
    return begun or ("bf16-mixed" if multiplies_bf16(config.device) else "32-true")


def multiplies_bf16(device: Literal["auto", "cpu", "cuda"]) -> bool:
    """Return whether the hardware that a run trains on has instructions for bf16.

    Without them a product of bf16 matrices is converted to float32 and back, which takes longer than float32 itself
    (``benchmarks/precision.py``).

    Args:
        device: As ``train.device`` has it.

    Returns:
        Whether it does; False where torch cannot tell.
    """
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "auto" and torch.backends.mps.is_available():
        return False
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(flag) for flag in _CPU_FLAGS)


def advice(config: TrainConfig) -> str:
    """Return a sentence if float32 would be faster than what the configuration asks for, else an empty text.

    Args:
        config: Its ``precision`` and ``device`` are read.

    Returns:
        The sentence.
    """
    if config.precision == "bf16-mixed" and not multiplies_bf16(config.device):
        return "bf16 is emulated on this hardware and slow: train.precision=auto or 32-true is faster"
    return ""
