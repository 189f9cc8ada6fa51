"""Claim: a step of the Trainer is at least 1.5 times as fast as one of a plain hand-written fp32 eager loop.

VGG16 of width 16 on 32×32 colour images, batch 128, SGD with Nesterov momentum. The Trainer's step (bf16 autocast,
channels_last, its defaults) includes crop, flip, accuracy and the learning-rate schedule. The plain loop does the
forward pass, loss, backward pass and step, on images that are already cropped, flipped and normalised. Both run in
turns in one process; the figure is the ratio of the medians.

Run: python benchmarks/trainer.py            (under a minute on 2 cores; writes benchmarks/results/trainer.json)
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from auxin.data import ImageData, Loader
from auxin.models import build
from auxin.training import RunConfig, Trainer
from auxin.training.loop import train_epoch
from auxin.training.provenance import commit, hardware, versions
from auxin.training.schedules import cosine

BATCH = 128
WIDTH = 16
CLAIM = 1.5


def make_images(num_batches: int) -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return images, torch.randint(0, 10, (count,), generator=generator)

    (train, train_labels), (held, held_labels) = part(num_batches * BATCH), part(BATCH)
    names = tuple(f"class {index}" for index in range(10))
    return ImageData(
        train, train_labels, held, held_labels, held, held_labels, names, (0.5,) * 3, (0.25,) * 3, {"source": "noise"}
    )


class TrainerSteps:
    """Epochs of the Trainer's own inner loop, set up as the Trainer sets it up."""

    def __init__(self, data: ImageData, folder: str) -> None:
        parts = {
            "model": {"kwargs": {"width": WIDTH}},
            "train": {"precision": "bf16-mixed"},
            "growth": {"method": None},
        }
        config = RunConfig.from_dict(parts)
        self.trainer = Trainer(config, folder, data=data, console=Console(quiet=True))

    def __call__(self, epoch: int) -> float:
        trainer = self.trainer
        start = time.perf_counter()
        train_epoch(
            trainer.forward,
            trainer.stepper,
            trainer.train_loader,
            fabric=trainer.fabric,
            epoch=epoch,
            schedule=cosine(1000),
            lr=0.01,
        )
        return (time.perf_counter() - start) / len(trainer.train_loader)


class PlainSteps:
    """What most people write: fp32, eager, contiguous tensors."""

    def __init__(self, data: ImageData) -> None:
        self.batches = list(Loader(data, "train", batch_size=BATCH, channels_last=False))
        self.model = build("vgg16", width=WIDTH)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

    def __call__(self, epoch: int) -> float:
        self.model.train()
        start = time.perf_counter()
        for images, labels in self.batches:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
        return (time.perf_counter() - start) / len(self.batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of both loops in turn (default 7)")
    parser.add_argument("--steps", type=int, default=20, help="steps a round (default 20)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trainer.json")
    options = parser.parse_args()
    data = make_images(options.steps)
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = TrainerSteps(data, folder), PlainSteps(data)
        ours(0), plain(0)  # the first round warms caches and kernels
        pairs = [(ours(index), plain(index)) for index in range(1, options.rounds + 1)]
    seconds_ours, seconds_plain = (statistics.median(times) for times in zip(*pairs, strict=True))
    report = {
        "claim": f"Trainer >= {CLAIM}x a plain fp32 eager loop, VGG16 width {WIDTH}, batch {BATCH}",
        "trainer_seconds_per_step": seconds_ours,
        "plain_seconds_per_step": seconds_plain,
        "ratio": seconds_plain / seconds_ours,
        "holds": seconds_plain / seconds_ours >= CLAIM,
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "pairs": pairs,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(
        f"Trainer {seconds_ours * 1e3:.1f} ms a step, plain {seconds_plain * 1e3:.1f} ms: {report['ratio']:.2f} times"
    )


if __name__ == "__main__":
    main()
