"""How long the runs that are missing will take, and what that guess rests on."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from auxin.compare.plan import Run, threads_of
from auxin.data import ImageData
from auxin.errors import AuxinError
from auxin.grower import Grower
from auxin.planned import Planned
from auxin.training import DataConfig, RunConfig, RunFolder, Trainer
from auxin.training.cost import num_flops
from auxin.training.images import load_images, with_shapes
from auxin.training.ladder import build_base
from auxin.training.metrics import read_rows

_PROBE_BATCHES = 4
_PROBE_EVENTS = 8
"""A run that grows more often is taken to keep the size it then has."""


@dataclass(frozen=True)
class Estimate:
    """A guess of the time a run still takes.

    Attributes:
        seconds: The time; None where nothing is known.
        basis: What it rests on.
    """

    seconds: float | None
    basis: str


def estimate(runs: Sequence[Run], plan: Sequence[Run], threads: int) -> dict[str, Estimate]:
    """Guess the time that each unfinished run still takes.

    From its own epochs so far, else from the finished runs of the same row, else from another row's, else from one
    short probe; all but the second are scaled by the FLOPs of training.

    Args:
        runs: The runs that are asked about.
        plan: The whole plan, so that finished runs of other rows can be learnt from.
        threads: Cores that each run may have.

    Returns:
        Name of the run → estimate; one entry per unfinished run.
    """
    results = [(run, result) for run in plan if (result := run.result()) is not None]
    times: dict[str, list[float]] = {}
    for run, result in results:
        times.setdefault(run.row.label, []).append(result.seconds)
    reference: tuple[Run, float, str] | None = None
    if results:
        reference = results[0][0], results[0][1].seconds, f'"{results[0][0].row.label}"'
    found: dict[str, Estimate] = {}
    for run in runs:
        if run.state == "done":
            continue
        if run.state == "begun" and (rows := read_rows(run.folder.metrics)):
            cost = epoch_costs(run.config)
            so_far = sum(row["epoch_seconds"] for row in rows) / sum(cost[: len(rows)])
            found[run.name] = Estimate(so_far * sum(cost[len(rows) :]), f"its epochs so far: {len(rows)}")
            continue
        seconds = times.get(run.row.label)
        if seconds:
            whole = Estimate(statistics.fmean(seconds), f"finished runs of the row: {len(seconds)}")
        else:
            try:
                if reference is None:
                    reference = run, probe(run.config, threads_of(run.config, threads)), "a short probe"
                scale = training_work(run.config) / training_work(reference[0].config)
                same = run.row.label == reference[0].row.label
                whole = Estimate(reference[1] * scale, reference[2] + ("" if same else " x FLOPs"))
            except AuxinError as error:
                whole = Estimate(None, f"nothing: {error}")
        found[run.name] = whole
    return found


def epoch_costs(config: RunConfig) -> list[float]:
    """Return the FLOPs of each epoch, the first being 1, as far as the configuration tells.

    With every neuron count growing by the share r, FLOPs grow by (1 + r)²; where r is of parameters or FLOPs, by
    1 + r; by a plan, as it says. A trigger that waits for a plateau is taken to fire at even distances, and a fixed
    count not to matter.

    Args:
        config: The run.

    Returns:
        One number per epoch.

    Example:
        >>> epoch_costs(RunConfig.from_dict({"train": {"epochs": 4}, "growth": {"every": 2, "ratio": 0.5}}))
        [1.0, 1.0, 2.25, 2.25]
    """
    growth, epochs = config.growth, config.train.epochs
    after = event_epochs(config)
    if growth.trigger == "planned" and after:
        sizes = _planned_flops(config)
    else:
        factor = (1 + growth.ratio) ** (2 if growth.of == "neurons" else 1) if growth.budget == "ratio" else 1.0
        sizes = [factor**number for number in range(len(after) + 1)]
    return [sizes[sum(epoch >= event for event in after)] / sizes[0] for epoch in range(epochs)]


def event_epochs(config: RunConfig) -> list[int]:
    """Return the epochs after which the model is taken to grow, counted from 1.

    Args:
        config: The run.

    Returns:
        In order; the last epoch is never among them.
    """
    growth, epochs = config.growth, config.train.epochs
    if growth.method is None:
        return []
    if growth.trigger == "planned":
        return sorted(step.after for step in growth.plan if step.after < epochs)
    if growth.trigger == "every":
        events = list(range(growth.start or growth.every, epochs, growth.every))
        return events if growth.times is None else events[: growth.times]
    times = growth.times or 0
    return sorted({number * epochs // (times + 1) for number in range(1, times + 1)} - {0})


def training_work(config: RunConfig) -> float:
    """Return a number in proportion to the FLOPs of a whole run: those of one image, images, epochs, growth.

    Args:
        config: The run.

    Returns:
        Forward FLOPs, summed over all training images.
    """
    return _image_flops(config) * len(_images(config).train_labels) * sum(epoch_costs(config))


def _image_flops(config: RunConfig) -> int:
    model, images = _base(config)
    return max(1, num_flops(model, images[:1]))


def _planned_flops(config: RunConfig) -> list[float]:
    """Return the FLOPs of an image at each size that a planned run passes through."""
    model, images = _base(config)
    grower = Grower(model, None, images, trigger=Planned(config.growth.plan))
    flops = [float(num_flops(model, images[:1]))]
    for after in event_epochs(config):
        grower.step(after - 1)
        flops.append(float(num_flops(model, images[:1])))
    return flops


def _base(config: RunConfig) -> tuple[nn.Module, Tensor]:
    """Return the model that a run starts from, and two images of noise."""
    data = _images(config)
    whole = with_shapes(config, data).model
    with torch.random.fork_rng(devices=[]):
        model = build_base({"name": whole.name, "kwargs": whole.kwargs})
    generator = torch.Generator().manual_seed(0)
    return model, torch.randn(2, data.channels, *data.image_size, generator=generator)


def _images(config: RunConfig) -> ImageData:
    return _load(json.dumps(asdict(config.data)))


@cache
def _load(data: str) -> ImageData:
    return load_images(DataConfig(**json.loads(data)))


def probe(config: RunConfig, threads: int) -> float:
    """Train two epochs of a few batches at each size that a run passes through, growth included, and time them.

    Args:
        config: The run.
        threads: CPU threads.

    Returns:
        Seconds that the whole run would take, by the times of those epochs.
    """
    data, events, growth = _images(config), event_epochs(config)[:_PROBE_EVENTS], config.growth
    if growth.trigger == "planned":
        steps = Planned(growth.plan).steps[:_PROBE_EVENTS]
        growth = replace(growth, plan=[replace(step, after=2 * i + 2) for i, step in enumerate(steps)])
    else:
        growth = replace(growth, trigger="every", every=2, start=None)
    share = min(1.0, _PROBE_BATCHES * config.train.batch_size / len(data.train_labels))
    short = replace(
        config,
        name="probe",
        train=replace(config.train, epochs=2 * len(events) + 2, threads=threads),
        growth=growth,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = RunFolder(Path(folder))
        result = Trainer(short, place, data=_part(data, share), console=Console(quiet=True)).fit()
        seconds = [row["epoch_seconds"] for row in read_rows(place.metrics)]
    # The first epoch of a size also warms up; what is neither epoch is growth.
    epochs = [min(pair) for pair in zip(seconds[::2], seconds[1::2], strict=True)]
    lengths = [end - begin for begin, end in pairwise([0, *events, config.train.epochs])]
    growing = max(0.0, result.seconds - sum(seconds))
    return growing + sum(length * epoch / share for length, epoch in zip(lengths, epochs, strict=True))


def _part(data: ImageData, share: float) -> ImageData:
    def few(split: str) -> int:
        return max(1, round(share * len(getattr(data, f"{split}_labels"))))

    return replace(
        data,
        **{
            f"{split}_{kind}": getattr(data, f"{split}_{kind}")[: few(split)]
            for split in ("train", "val", "test")
            for kind in ("images", "labels")
        },
    )
