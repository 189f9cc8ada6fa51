"""Runs ``auxin`` with the arguments given and kills it with SIGKILL at a chosen place: python killed.py PLACE WORDS.

The places are patched in from here, so that the product holds no hooks for its tests.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from auxin.cli import main

EPOCH_STEPS = 5


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(number: int, act: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the original, with ``act`` in place of its ``number``-th call (1 is the first)."""
    calls = 0

    def replacement(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return act(*args, **kwargs) if calls == number else original(*args, **kwargs)

    return replacement


def patch(place: str) -> None:
    if place == "epoch":
        progress = importlib.import_module("auxin.training.progress").EpochProgress
        progress.advance = on_call(3 * EPOCH_STEPS + 2, lambda self: die(), progress.advance)
    elif place == "surgery":
        surgery = importlib.import_module("auxin.surgery.apply")
        original = surgery.widen_model
        # The second group of the second event, after it was widened: model and optimizer are half grown.
        surgery.widen_model = on_call(5, lambda *a, **k: (original(*a, **k), die()), original)
    else:
        checkpoint = importlib.import_module("auxin.training.checkpoint")
        write = checkpoint.write_durably

        def half(path: Path, data: bytes) -> None:
            write(path, data[: len(data) // 2])
            die()

        def whole(path: Path, data: bytes) -> None:
            write(path, data)
            die()

        # Each save of the newest checkpoint is two calls, tensors then manifest: two epochs, an event, the third epoch.
        save = {"half of the tensors": 7, "between tensors and manifest": 7, "before the manifest counts": 8}[place]
        counted = on_call(save, half if place.startswith("half") else whole, write)

        def write_counted(path: Path, data: bytes) -> None:
            (counted if path.parent.name == "checkpoints" else write)(path, data)

        checkpoint.write_durably = write_counted


if __name__ == "__main__":
    patch(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
