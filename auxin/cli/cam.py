"""``auxin cam``: show where one or two runs look, in pictures and numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from auxin.analysis.curves import RunRecord, read_run
from auxin.analysis.gradcam import Attention, Estimate, attend, choose_layer, estimate, insertion_deletion, predict
from auxin.analysis.pictures import Row, cam_grid
from auxin.analysis.style import house_style, save
from auxin.cli.parser import CommandParser
from auxin.cli.picture import picture_path
from auxin.data import ImageData
from auxin.errors import ConfigError
from auxin.report import as_inputs, images_of, model_of, require_images_of
from auxin.training.checkpoint import write_atomically

_DESCRIPTION = """Draw Grad-CAM: the inputs, and one row per run with what it predicts and where it looks.

Each map explains the class that its run predicts. Beside it stand its entropy (0 is one pixel, 1 is even) and the share
of the image above half of the map's maximum. --scores adds insertion and deletion (Petsiuk et al. 2018) over many
images, with 95 % confidence intervals: good maps have a high insertion and a low deletion score. Two runs are compared
image by image. Writes a picture and a JSON of the same name.

examples:
  auxin cam runs/demo-1
  auxin cam runs/a-1 --images 3,14,15 --layer features.30
  auxin cam runs/a-1 --images class:cat --count 6
  auxin cam runs/with-1 runs/without-1 --images disagree --scores 1000
"""

_NAMES = {
    "entropy": "entropy",
    "area": "area above half",
    "insertion": "insertion",
    "deletion": "deletion",
    "correct": "accuracy",
}


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin cam``.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: If the runs cannot be compared.
    """
    parser = CommandParser("auxin cam", _DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run; one or two")
    parser.add_argument(
        "--images",
        default="first",
        metavar="WHICH",
        help="test images: numbers such as 3,14,15; class:NAME; disagree (two runs); first (default)",
    )
    parser.add_argument("--count", type=int, default=8, help="how many, where no numbers are given (default 8)")
    parser.add_argument("--layer", help="a convolution; by default the last whose map has 4x4 cells")
    parser.add_argument("--rung", type=int, help="size of the runs, 0 is the first; by default the newest")
    parser.add_argument(
        "--scores", type=int, default=0, metavar="N", help="also take the numbers over N test images, such as 1000"
    )
    parser.add_argument("--data", metavar="SOURCE", help="where the images are; by default where the run had them")
    parser.add_argument("--out", metavar="FILE", help="a .png, .svg or .pdf; by default RUN/cam.png")
    options = parser.parse_args(arguments)
    records = [read_run(folder) for folder in options.runs]
    path = picture_path(options.out, records[0].folder.path / "cam.png", ".json")
    _check(records, options.count, options.scores, options.data)
    models = [model_of(record, options.rung) for record in records]
    data = images_of(records[0], options.data)
    for record in records[1:]:
        require_images_of(record, data)
    numbers = choose(options.images, options.count, models, data)
    names = [record.name for record in records]
    labels = [str(record.folder.path) for record in records] if len(set(names)) < len(names) else names
    images, true = data.test_images[numbers], data.test_labels[numbers]
    inputs = as_inputs(images, data)
    layers = [choose_layer(model, inputs[:1], options.layer) for model in models]
    found = [attend(model, inputs, layer) for model, layer in zip(models, layers, strict=True)]
    rows = [
        Row(label, one.maps, [data.classes[i] for i in one.predicted], one.entropy, one.area)
        for label, one in zip(labels, found, strict=True)
    ]
    caption = (
        f"Grad-CAM at {' and '.join(dict.fromkeys(layers))} for the class that each run predicts; bright is where the "
        "evidence lies. On top the true class and the number of the test image. Entropy: 0 is one pixel, 1 is even. "
        "Area: share of the image above half of the maximum."
    )
    with house_style():
        save(cam_grid(images, numbers, [data.classes[i] for i in true], rows, caption), path)
    measured = [_shown(one, true) for one in found]
    if options.scores:
        measured = [_scored(model, layer, data, options.scores) for model, layer in zip(models, layers, strict=True)]
    over, means = len(measured[0]["entropy"]), summary(labels, measured)
    document = {"images": numbers, "layers": layers, "over": over, "numbers": means}
    write_atomically(path.with_suffix(".json"), (json.dumps(document, indent=2) + "\n").encode())
    Console(soft_wrap=True).print(_table(means, over))
    print(f"{path} and {path.with_suffix('.json')}")
    return 0


def choose(which: str, count: int, models: Sequence[nn.Module], data: ImageData) -> list[int]:
    """Return the numbers of the test images to show.

    Args:
        which: ``first``, ``disagree``, ``class:NAME``, or numbers with commas.
        count: How many, where there are no numbers.
        models: The models that may disagree.
        data: The images.

    Returns:
        At least one number.

    Raises:
        ConfigError: If there is no such image or class, or nothing to disagree about.
    """
    labels = data.test_labels
    total = len(labels)
    if total == 0:
        raise ConfigError("The data set has no test images: Grad-CAM has nothing to look at.")
    if which == "first":
        return list(range(min(count, total)))
    if which.startswith("class:"):
        name = which.removeprefix("class:")
        if name not in data.classes:
            raise ConfigError(f"There is no class {name!r}; choose one of {', '.join(data.classes)}.")
        places = (labels == data.classes.index(name)).nonzero().flatten()
    elif which == "disagree":
        if len(models) < 2:
            raise ConfigError("--images disagree needs two runs: name a second one.")
        inputs = as_inputs(data.test_images, data)
        places = (predict(models[0], inputs) != predict(models[1], inputs)).nonzero().flatten()
        print(f"the runs disagree on {len(places)} of {total} test images")
    else:
        return _numbers(which, total)
    if len(places) == 0:
        raise ConfigError(f"No test image fits --images {which}.")
    return [int(place) for place in places[:count]]


def _numbers(which: str, total: int) -> list[int]:
    try:
        numbers = [int(word) for word in which.split(",")]
    except ValueError:
        raise ConfigError(
            f"--images {which!r} is not understood: give numbers such as 3,14,15, class:NAME, disagree or first."
        ) from None
    for number in numbers:
        if not 0 <= number < total:
            raise ConfigError(f"There is no test image {number}: they are numbered from 0 to {total - 1}.")
    return numbers


def _check(records: Sequence[RunRecord], count: int, scores: int, source: str | None) -> None:
    if len(records) > 2:
        raise ConfigError(f"auxin cam compares two runs at most, and {len(records)} were given.")
    if count < 1:
        raise ConfigError(f"--count {count}: show at least one image.")
    if scores < 0 or scores == 1:
        raise ConfigError(f"--scores {scores}: give at least 2 images, such as 1000.")
    sources = [record.config["data"]["source"] for record in records]
    if len(set(sources)) > 1 and source is None:
        raise ConfigError(f"The runs learnt from {' and '.join(sources)}: if these are the same images, pass --data.")


def _shown(found: Attention, true: Tensor) -> dict[str, np.ndarray]:
    correct = (found.predicted == true).double().numpy()
    return {"correct": correct, "entropy": found.entropy, "area": found.area}


def _scored(model: nn.Module, layer: str, data: ImageData, count: int) -> dict[str, np.ndarray]:
    """Return the numbers over a random sample, the same for every run."""
    order = torch.randperm(len(data.test_labels), generator=torch.Generator().manual_seed(0))[:count]
    inputs, true = as_inputs(data.test_images[order], data), data.test_labels[order]
    found = attend(model, inputs, layer)
    insertion, deletion = insertion_deletion(model, inputs, found)
    return {**_shown(found, true), "insertion": insertion, "deletion": deletion}


def summary(labels: Sequence[str], measured: Sequence[dict[str, np.ndarray]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return means with confidence intervals, and of two runs the difference image by image.

    Args:
        labels: Names of the runs.
        measured: For each run, number → values per image.

    Returns:
        Run, or "difference" (second minus first) → number → mean, low, high, num_images.
    """
    found = {
        label: {name: estimate(values) for name, values in run.items()}
        for label, run in zip(labels, measured, strict=True)
    }
    if len(measured) == 2:
        found["difference"] = {name: estimate(measured[1][name] - measured[0][name]) for name in measured[0]}
    return {label: {name: asdict(one) for name, one in numbers.items()} for label, numbers in found.items()}


def _table(numbers: dict[str, dict[str, dict[str, float]]], over: int) -> Table:
    table = Table(
        title=f"Mean and 95 % confidence interval over {over} test images",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    for label in numbers:
        table.add_column(label, justify="right", overflow="fold")
    for name in _NAMES:
        if name in next(iter(numbers.values())):
            cells = [str(Estimate(**row[name])) for row in numbers.values()]  # type: ignore[arg-type]
            table.add_row(_NAMES[name], *cells)
    return table
