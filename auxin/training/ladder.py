"""The ladder: one usable checkpoint per size that a run passed through."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from auxin.errors import CheckpointError
from auxin.models import build
from auxin.models.table import seeded
from auxin.surgery import History
from auxin.training import checkpoint as checkpoints
from auxin.training.account import Account
from auxin.training.checkpoint import Checkpoint
from auxin.training.folder import RunFolder


@dataclass(frozen=True)
class Rung:
    """One size of a run.

    Attributes:
        path: Manifest of its checkpoint.
        epoch: Last epoch trained at this size; 0 is the first of the run.
        parameters: Number of parameters.
        flops: FLOPs of one image's forward pass.
        val_accuracy: Validation accuracy after that epoch, 0 to 1.
        seconds: Time trained so far, smaller sizes included.
        number: 0 for the size the run began with.
        best: Whether it is the epoch of highest validation accuracy at this size, kept because it was not the last.
        training_flops: FLOPs spent so far in the run: training, scoring and surgery; 0 where it was not counted.
        energy_kwh: Electricity so far in kWh; None without a meter.
    """

    path: Path
    epoch: int
    parameters: int
    flops: int
    val_accuracy: float
    seconds: float
    number: int = 0
    best: bool = False
    training_flops: int = 0
    energy_kwh: float | None = None

    @property
    def name(self) -> str:
        """Such as ``2``, or ``2-best``."""
        return f"{self.number}-best" if self.best else str(self.number)


def rung_path(folder: Path, number: int, best: bool = False) -> Path:
    """Return the manifest of a rung; 0 is the size the run began with."""
    return folder / f"rung-{number:02d}{'-best' if best else ''}.json"


def rungs(folder: Path, best: bool = False, damaged: Callable[[CheckpointError], object] | None = None) -> list[Rung]:
    """Return the rungs of a ladder, smallest size first.

    Args:
        folder: The ``ladder`` folder of a run.
        best: Whether also the best epoch of each size, where it was not the last; it follows the last one.
        damaged: Called for each damaged rung, which is then left out.

    Returns:
        One entry per size; every checkpoint is verified.

    Raises:
        CheckpointError: If one of them is damaged, and ``damaged`` is not given.
    """
    matches = (re.fullmatch(r"rung-(\d+)(-best)?\.json", path.name) for path in folder.glob("rung-*.json"))
    found = []
    for number, is_best in sorted((int(match[1]), bool(match[2])) for match in matches if match):
        if is_best and not best:
            continue
        try:
            found.append(_rung(folder, number, is_best))
        except CheckpointError as error:
            if damaged is None:
                raise
            damaged(error)
    return found


def _rung(folder: Path, number: int, best: bool) -> Rung:
    path = rung_path(folder, number, best)
    saved = checkpoints.load(path)
    account = Account(saved.run.get("spent"))
    return Rung(
        path=path,
        epoch=saved.epoch,
        parameters=int(saved.metrics["parameters"]),
        flops=int(saved.metrics["flops"]),
        val_accuracy=saved.metrics["val_accuracy"],
        seconds=saved.seconds,
        number=number,
        best=best,
        training_flops=account.training_flops,
        energy_kwh=saved.run.get("spent", {}).get("energy_kwh"),
    )


class LadderWriter:
    """Puts the newest checkpoint of a run on its ladder: each size's last epoch, and its best one.

    Args:
        folder: Of the run.
        best: The best epoch of this size so far, as a checkpoint remembers it; None for a fresh size.

    Attributes:
        best: Its ``epoch`` and ``val_accuracy``.
    """

    def __init__(self, folder: RunFolder, best: dict[str, float] | None = None) -> None:
        self.folder = folder
        self.best = best

    def keep_best(self, row: Mapping[str, float], number: int) -> None:
        """Take in an epoch, before its checkpoint is saved; the best one is copied only when a worse one replaces it.

        Args:
            row: The epoch's metrics.
            number: Of the rung.
        """
        if self.best is None or row["val_accuracy"] >= self.best["val_accuracy"]:
            self.best = {"epoch": row["epoch"], "val_accuracy": row["val_accuracy"]}
        elif self.best["epoch"] == row["epoch"] - 1:
            self._copy(rung_path(self.folder.ladder, number, best=True))

    def keep(self, number: int) -> Checkpoint:
        """Make the newest checkpoint the last one of its size.

        Args:
            number: Of the rung.

        Returns:
            That checkpoint.
        """
        saved = self._copy(rung_path(self.folder.ladder, number))
        if self.best is not None and self.best["epoch"] == saved.epoch:
            checkpoints.remove(rung_path(self.folder.ladder, number, best=True))
        return saved

    def _copy(self, place: Path) -> Checkpoint:
        # Read back, so it is known to be whole.
        saved = checkpoints.load(self.folder.last)
        checkpoints.save(saved, place)
        return saved


def load_model(manifest: Path | str, base: nn.Module | None = None) -> nn.Module:
    """Return the model of a checkpoint: the base model, grown by its history, with its weights.

    Args:
        manifest: A rung, or ``checkpoints/last.json``.
        base: A fresh model as it was before the first event, left as it is; None builds the one that the run's
            configuration names.

    Returns:
        The model in eval mode on the CPU.

    Raises:
        CheckpointError: If the checkpoint is damaged, or the base model is not the one it was trained from.
    """
    saved = checkpoints.load(Path(manifest))
    model = build_base(saved.config["model"], saved.config["train"]["seed"]) if base is None else copy.deepcopy(base)
    restore_model(model, saved)
    return model.eval()


def build_base(model: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Return the model of a configuration before its first event.

    Args:
        model: ``ModelConfig`` as plain data, with ``num_classes`` and ``in_channels`` filled in.
        seed: Seed of the run: a factory of the user's own may draw its shape too.

    Returns:
        The model, freshly initialised.
    """
    with seeded(seed):
        return build(model["name"], **model["kwargs"])


def restore_model(model: nn.Module, saved: Checkpoint) -> History:
    """Grow a base model to a checkpoint's size and give it the checkpoint's weights, in place.

    Args:
        model: As it was before the first event.
        saved: The checkpoint.

    Returns:
        The history that was replayed.

    Raises:
        CheckpointError: If the model is not the one the checkpoint was trained from.
    """
    history = History.from_json(saved.history)
    try:
        history.replay(model)
        model.load_state_dict(dict(saved.model))
    except (RuntimeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The checkpoint does not fit the model, so give the model it was trained from ({reason})."
        ) from error
    return history
