"""Claims: a batch of our Loader costs at most 5 % of a training step, and a tenth of what a torch DataLoader takes.

All make the same thing: batches of 128 colour images of 32×32 pixels, cropped at random from 4 pixels of zero padding,
flipped, normalised, in float32. The training step is VGG16 of width 16, forward, backward and SGD with Nesterov
momentum, in fp32 eager and in bf16 autocast with channels_last (the stricter one is held against the claim). The
DataLoader applies transforms written by hand to one sample at a time, in three common styles (numpy, torch, PIL), with
0 and with 2 workers; the fastest of the six is held against the claim, over a whole epoch, worker start included for
nobody (persistent workers). Everything runs in turns in one process; figures are medians over the rounds.

Run: python benchmarks/data_pipeline.py [--data FOLDER]     (about a minute on 2 cores; random images without --data)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from auxin.data import ImageData, Loader, load
from auxin.models import vgg16
from auxin.training.provenance import commit, hardware, versions

BATCH = 128
PADDING = 4
MAX_SHARE = 0.05
MIN_SPEEDUP = 10.0


class PerSample(Dataset):
    """What a DataLoader is usually given: one image at a time, transformed by hand in one of three styles."""

    def __init__(self, data: ImageData, style: str) -> None:
        self.images, self.labels = data.train_images, data.train_labels.tolist()
        self.arrays = np.ascontiguousarray(data.train_images.numpy().transpose(0, 2, 3, 1))
        self.mean = torch.tensor(data.mean).view(3, 1, 1)
        self.std = torch.tensor(data.std).view(3, 1, 1)
        self.mean_array = np.array(data.mean, dtype=np.float32)
        self.std_array = np.array(data.std, dtype=np.float32)
        self.transform: Callable[[int], Tensor] = getattr(self, style)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(index), self.labels[index]

    def numpy(self, index: int) -> Tensor:
        image = self.arrays[index]
        height, width, channels = image.shape
        padded = np.zeros((height + 2 * PADDING, width + 2 * PADDING, channels), dtype=np.uint8)
        padded[PADDING:-PADDING, PADDING:-PADDING] = image
        top, left = np.random.randint(0, 2 * PADDING + 1, 2)
        image = padded[top : top + height, left : left + width]
        if np.random.random() < 0.5:
            image = image[:, ::-1]
        normal = (image.astype(np.float32) / 255 - self.mean_array) / self.std_array
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))

    def torch(self, index: int) -> Tensor:
        image = nn.functional.pad(self.images[index], (PADDING,) * 4)
        top, left = torch.randint(0, 2 * PADDING + 1, (2,)).tolist()
        image = image[:, top : top + self.images.shape[2], left : left + self.images.shape[3]]
        if torch.rand(1) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - self.mean) / self.std

    def pil(self, index: int) -> Tensor:
        image = ImageOps.expand(Image.fromarray(self.arrays[index]), PADDING)
        top, left = np.random.randint(0, 2 * PADDING + 1, 2)
        image = image.crop((left, top, left + self.images.shape[3], top + self.images.shape[2]))
        if np.random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return (tensor - self.mean) / self.std


def seconds_per_batch(loader: Any) -> float:
    start = time.perf_counter()
    for _ in loader:
        pass
    return (time.perf_counter() - start) / len(loader)


class TrainingSteps:
    """Seconds of a training step on one batch that is already there."""

    def __init__(self, batch: tuple[Tensor, Tensor], *, bf16: bool, steps: int) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if bf16 else torch.contiguous_format
        self.images, self.labels = batch[0].to(memory_format=layout), batch[1] % 10
        self.model = vgg16().to(memory_format=layout)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self.bf16, self.steps = bf16, steps

    def __call__(self) -> float:
        start = time.perf_counter()
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
        return (time.perf_counter() - start) / self.steps


def read(source: str | None, num_batches: int) -> ImageData:
    """The first images of a set, or random ones."""
    if source is not None:
        whole = load(source)
        images, labels = whole.train_images[: num_batches * BATCH], whole.train_labels[: num_batches * BATCH]
        description = {"source": "cifar10" if "cifar10" in source else "user's set"}
        return ImageData(
            images,
            labels,
            images[:0],
            labels[:0],
            images[:0],
            labels[:0],
            whole.classes,
            whole.mean,
            whole.std,
            description,
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_batches * BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(images)) % 10
    names = tuple(f"class {index}" for index in range(10))
    empty = images[:0], labels[:0]
    return ImageData(images, labels, *empty, *empty, names, (0.5,) * 3, (0.25,) * 3, {"source": "random images"})


def contestants(data: ImageData, steps: int) -> dict[str, Callable[[], float]]:
    """Name → a function that runs one round and returns seconds per batch."""
    ours = Loader(data, batch_size=BATCH, padding=PADDING, flip=True)
    batch = next(iter(ours))
    made: dict[str, Callable[[], float]] = {
        "loader": lambda: seconds_per_batch(ours),
        "loader, bf16 channels_last": lambda: seconds_per_batch(
            Loader(data, batch_size=BATCH, padding=PADDING, flip=True, channels_last=True)
        ),
        "step, fp32": TrainingSteps(batch, bf16=False, steps=steps),
        "step, bf16 channels_last": TrainingSteps(batch, bf16=True, steps=steps),
    }
    for style in ("numpy", "torch", "pil"):
        for workers in (0, 2):
            loader = DataLoader(
                PerSample(data, style), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
            )
            made[f"DataLoader, {style}, {workers} workers"] = lambda loader=loader: seconds_per_batch(loader)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or hub name of a set of 32×32 colour images; random images without")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of everything in turn (default 7)")
    parser.add_argument("--batches", type=int, default=50, help="batches a round of the loaders (default 50)")
    parser.add_argument("--steps", type=int, default=10, help="training steps a round (default 10)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data_pipeline.json")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = read(options.data, options.batches)
    runs = contestants(data, options.steps)
    for run in runs.values():
        run()  # the first round warms caches and starts workers
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(run())
    medians = {name: statistics.median(values) for name, values in times.items()}
    share = max(
        medians["loader"] / medians["step, fp32"],
        medians["loader, bf16 channels_last"] / medians["step, bf16 channels_last"],
    )
    rival = min((name for name in medians if name.startswith("DataLoader")), key=medians.__getitem__)
    speedup = medians[rival] / medians["loader"]
    report = {
        "claims": {
            "share_of_a_training_step": f"<= {MAX_SHARE}",
            "times_as_fast_as_a_dataloader": f">= {MIN_SPEEDUP:g}",
        },
        "share_of_a_training_step": share,
        "times_as_fast_as_a_dataloader": speedup,
        "fastest_dataloader": rival,
        "holds": {
            "share_of_a_training_step": share <= MAX_SHARE,
            "times_as_fast_as_a_dataloader": speedup >= MIN_SPEEDUP,
        },
        "median_seconds_per_batch": medians,
        "seconds_per_batch": times,
        "config": {
            "data": data.description["source"],
            "batch_size": BATCH,
            "rounds": options.rounds,
            "batches_per_round": options.batches,
            "steps_per_round": options.steps,
        },
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, value in medians.items():
        print(f"{name:32} {value * 1e3:8.2f} ms a batch")
    print(
        f"share of a training step {share:.1%} (<= {MAX_SHARE:.0%}); {speedup:.1f} times {rival} (>= {MIN_SPEEDUP:g})"
    )


if __name__ == "__main__":
    main()
