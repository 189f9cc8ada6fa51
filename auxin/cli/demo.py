"""``auxin demo``: grow a small network on handwritten digits, in under a minute."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from auxin.cli.parser import CommandParser
from auxin.cli.train import train
from auxin.training import RunConfig, RunFolder

_DESCRIPTION = """Grow a small network on handwritten digits, in under a minute on two cores.

A network of three convolutions, 4 channels each, learns scikit-learn's 8x8 digits and grows by half four times, every
eighth epoch; nothing is downloaded. It ends with the growth timeline, the accuracy of each size and the run folder.

examples:
  auxin demo
  auxin demo --epochs 16 --out my-runs
  auxin demo --method net2net
"""

_EPOCHS_PER_PHASE = 8


def demo_config(epochs: int = 40, method: str = "random", seed: int = 0) -> RunConfig:
    """Return the demo's configuration.

    Args:
        epochs: Length of the run; it grows after every eighth, four times.
        method: How new units start.
        seed: Seed of the run.

    Returns:
        The configuration.
    """
    return RunConfig.from_dict(
        {
            "name": "demo",
            "data": {"source": "digits"},
            "model": {"name": "small_cnn", "kwargs": {"width": 4}},
            "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4},
            "schedule": {"name": "cosine", "warmup": 1},
            "train": {"epochs": epochs, "batch_size": 32, "precision": "32-true", "seed": seed, "threads": 1},
            "growth": {"method": method, "every": _EPOCHS_PER_PHASE, "times": 4, "ratio": 0.5},
        }
    )


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin demo``.

    Returns:
        Exit code 0.
    """
    parser = CommandParser("auxin demo", _DESCRIPTION)
    parser.add_argument("--epochs", type=int, default=40, help="passes over the images (default 40)")
    parser.add_argument("--method", default="random", help="how new units start: random (default) or net2net")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default 0)")
    parser.add_argument("--out", default="runs", help="folder that gets the run folder (default runs)")
    options = parser.parse_args(arguments)
    config = demo_config(options.epochs, options.method, options.seed)
    console = Console(soft_wrap=True)
    return train(config, RunFolder.make(config.name, options.out), console)
