"""The ladder: one usable checkpoint per size that a run passed through."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from auxin.errors import CheckpointError
from auxin.models import build
from auxin.surgery import History
from auxin.training import checkpoint as checkpoints
from auxin.training.checkpoint import Checkpoint


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
    """

    path: Path
    epoch: int
    parameters: int
    flops: int
    val_accuracy: float
    seconds: float


def rung_path(folder: Path, number: int) -> Path:
    """Return the manifest of a rung; 0 is the size the run began with."""
    return folder / f"rung-{number:02d}.json"


def rungs(folder: Path) -> list[Rung]:
    """Return the rungs of a ladder, smallest size first.

    Args:
        folder: The ``ladder`` folder of a run.

    Returns:
        One entry per size; every checkpoint is verified.

    Raises:
        CheckpointError: If one of them is damaged.
    """
    found = []
    for path in sorted(folder.glob("rung-*.json")):
        saved = checkpoints.load(path)
        found.append(
            Rung(
                path=path,
                epoch=saved.epoch,
                parameters=int(saved.metrics["parameters"]),
                flops=int(saved.metrics["flops"]),
                val_accuracy=saved.metrics["val_accuracy"],
                seconds=saved.seconds,
            )
        )
    return found


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
    model = build_base(saved.config["model"]) if base is None else copy.deepcopy(base)
    restore_model(model, saved)
    return model.eval()


def build_base(model: Mapping[str, Any]) -> nn.Module:
    """Return the model of a configuration before its first event.

    Args:
        model: ``ModelConfig`` as plain data, with ``num_classes`` and ``in_channels`` filled in.

    Returns:
        The model, freshly initialised.
    """
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
