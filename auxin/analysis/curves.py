"""A run folder as data: rows, events, sizes and the width of every layer, finished or still going on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from auxin.errors import ConfigError
from auxin.training.begun import read_config
from auxin.training.distributions import read_distributions
from auxin.training.folder import RunFolder
from auxin.training.ladder import rung_path
from auxin.training.metrics import read_rows
from auxin.training.result import Result


@dataclass(frozen=True)
class LayerWidths:
    """One layer through a run.

    Attributes:
        name: Path of the module.
        widths: Its number of neurons in each phase; 0 before it existed.
    """

    name: str
    widths: tuple[int, ...]


@dataclass(frozen=True)
class RunRecord:
    """Everything the files of a run say.

    Attributes:
        folder: Where it lies.
        config: ``config.yaml``.
        rows: One mapping an epoch, ``epoch`` from 0.
        events: Growth events as plain data, oldest first.
        phases: One mapping per size: first_epoch and last_epoch from 1, parameters, flops, val_accuracy,
            test_accuracy (None until the run is finished), seconds.
        layers: Width of every layer in every phase, in the model's order; empty where no checkpoint is left.
        result: ``result.json``; None while the run lasts.
        similarity: What ``read_distributions`` returns.
        decisions: Every decision to grow or not, where the trigger says why.
    """

    folder: RunFolder
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    events: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    layers: list[LayerWidths]
    result: dict[str, Any] | None
    similarity: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the folder, such as ``vgg16-1``."""
        return self.folder.path.resolve().name

    @property
    def finished(self) -> bool:
        """Whether the run has reached its last epoch."""
        return self.result is not None

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return int(self.config["train"]["epochs"])

    def column(self, name: str) -> np.ndarray:
        """Return one metric as (epochs,), NaN where an epoch lacks it."""
        return np.array([np.nan if row.get(name) is None else row[name] for row in self.rows], dtype=float)


def read_run(path: Path | str) -> RunRecord:
    """Read a run folder.

    Args:
        path: The folder; the run may still be going on.

    Returns:
        The record.

    Raises:
        ConfigError: If it is not the folder of a run, or no epoch is finished yet.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is not the folder of a run: it has no config.yaml.")
    rows = read_rows(folder.metrics)
    if not rows:
        raise ConfigError(f"{folder.path} has no finished epoch yet: wait for the first line of metrics.jsonl.")
    config = read_config(folder.config)
    result = asdict(Result.read(folder.result)) if folder.result.exists() else None
    last = _json(folder.last)
    events = result["events"] if result else _history(last)
    events = [event for event in events if event.get("epoch") is not None]
    phases = result["phases"] if result else _phases(rows, events)
    return RunRecord(
        folder=folder,
        config=config,
        rows=rows,
        events=events,
        phases=phases,
        layers=_layers(folder, len(events) + 1) or _layers_of_events(events),
        result=result,
        similarity=read_distributions(folder.similarity),
        decisions=read_rows(folder.decisions),
    )


def pareto(costs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return which points no other point beats at both cost and score.

    Args:
        costs: Lower is better.
        scores: Higher is better.

    Returns:
        A mask over the points.

    Example:
        >>> pareto([1, 2, 3], [0.5, 0.4, 0.6]).tolist()
        [True, False, True]
    """
    cost, score = np.asarray(costs, dtype=float), np.asarray(scores, dtype=float)
    as_good = (cost[:, None] >= cost) & (score[:, None] <= score)
    better = (cost[:, None] > cost) | (score[:, None] < score)
    return np.asarray(~(as_good & better).any(1))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _history(last: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    document = last or {}
    # A run that starts from a rung of another has that run's events first.
    inherited = document.get("run", {}).get("inherited", 0)
    events = [dict(event) for event in document.get("history", [])[inherited:]]
    for event in events:
        # A checkpoint spells a number that JSON has no word for as {"$float": "inf"}.
        if isinstance(event.get("max_change"), dict):
            event["max_change"] = float(event["max_change"]["$float"])
    return events


def _phases(rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the phases of a run that is not finished, from its rows and events."""
    ends = [event["epoch"] for event in events] + [rows[-1]["epoch"]]
    by_epoch = {row["epoch"]: row for row in rows}
    phases, first, seconds = [], 0, 0.0
    for end in ends:
        row = by_epoch.get(end)
        if row is None or end < first:  # the last event has only just happened
            break
        kept = {key: row[key] for key in ("parameters", "flops", "val_accuracy")}
        spent = row["seconds"] - seconds
        phases.append(
            {"first_epoch": first + 1, "last_epoch": end + 1, **kept, "test_accuracy": None, "seconds": spent}
        )
        first, seconds = end + 1, row["seconds"]
    return phases


def _layers(folder: RunFolder, num_phases: int) -> list[LayerWidths]:
    """Read the width of every layer in every phase from the headers of the checkpoints."""
    found: list[dict[str, int]] = []
    for number in range(num_phases):
        sizes = _sizes(rung_path(folder.ladder, number))
        if not sizes and number == num_phases - 1:
            sizes = _sizes(folder.last)
        if not sizes:
            return []
        found.append(sizes)
    # The last phase has every layer; its order is the model's.
    return [LayerWidths(name, tuple(sizes.get(name, 0) for sizes in found)) for name in found[-1]]


def _sizes(manifest: Path) -> dict[str, int]:
    """Return layer → neurons of one checkpoint; its tensors are not read."""
    document = _json(manifest)
    if document is None:
        return {}
    sizes: dict[str, int] = {}
    try:
        with safetensors.safe_open(manifest.with_name(document["tensors"]["file"]), framework="numpy") as file:
            for name, entry in document["model"].items():
                if not name.endswith("weight"):
                    continue
                shape = file.get_slice(entry["$tensor"]).get_shape()
                if len(shape) >= 2:
                    sizes[name.removesuffix(".weight")] = int(shape[0])
    except (OSError, KeyError, TypeError, safetensors.SafetensorError):
        return {}
    return sizes


def _layers_of_events(events: Sequence[Mapping[str, Any]]) -> list[LayerWidths]:
    """Return the widths of what grew, for a run whose checkpoints are gone."""
    sizes: dict[str, list[int]] = {}
    for index, event in enumerate(events):
        for change in event["changes"]:
            line = sizes.setdefault(change["target"], [change["before"]] * (len(events) + 1))
            line[index + 1 :] = [change["after"]] * (len(events) - index)
    return [LayerWidths(name, tuple(line)) for name, line in sizes.items()]
