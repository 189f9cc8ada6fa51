"""Runs that repeat bit for bit: deterministic kernels, and one seed per epoch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import seed_everything

from auxin.training.config import TrainConfig


def seed_stage(seed: int, epoch: int, stage: str) -> None:
    """Seed Python, NumPy and torch for one part of one epoch.

    A run that resumes at that part draws what an uninterrupted run draws there, whatever came before.

    Args:
        seed: Seed of the run.
        epoch: 0 for the first.
        stage: Such as "train" or "growth".
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{stage}".encode()).digest()
    seed_everything(int.from_bytes(digest[:4], "big"), verbose=False)


def prepare(config: TrainConfig) -> None:
    """Set what CUDA reads only when it starts; call it before anything touches a GPU.

    Args:
        config: Its ``deterministic`` is used.
    """
    if config.deterministic:
        # Without it cuBLAS has no deterministic matrix product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def reproducible(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Set torch's process-wide switches for a run, and put them back afterwards.

    On a GPU an operation without a deterministic kernel warns instead of stopping the run; bit-equality is promised
    on the CPU.

    Args:
        config: Its ``deterministic`` and ``threads`` are used.
        device: Where the model runs.

    Yields:
        None, with the switches set.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
        # Writing NaN into every new tensor only helps to find reads of unset memory; it takes a tenth of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not config.deterministic
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
