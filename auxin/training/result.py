"""``result.json``: what a run reached, at which cost, and everything needed to repeat it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from auxin.errors import CheckpointError
from auxin.training.checkpoint import write_durably
from auxin.types import Event


@dataclass(frozen=True)
class Phase:
    """The epochs a run spent at one size.

    Attributes:
        first_epoch: Counted from 1.
        last_epoch: The same.
        parameters: Number of parameters.
        flops: FLOPs of one image's forward pass.
        val_accuracy: Validation accuracy at its end, just before the event that ended it, 0 to 1.
        test_accuracy: Test accuracy of that checkpoint, computed once after the run, 0 to 1; None without a test set.
        seconds: Time trained at this size, validation included.
    """

    first_epoch: int
    last_epoch: int
    parameters: int
    flops: int
    val_accuracy: float
    test_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        name: Name of the run.
        config: The configuration, complete.
        commit: Commit of auxin, or "unknown".
        dirty: Whether that checkout had changes; None where there is no commit.
        seed: Seed of the run.
        hardware: Processor, cores, threads, GPUs.
        versions: Versions of Python and the packages.
        data: Origin and sizes of the image set.
        phases: One entry per size.
        events: The growth events, without what replays them (the ladder's checkpoints keep that).
        widths: For each width group or site that grew, its size in every phase.
        seconds: Time of the whole run.
    """

    name: str
    config: dict[str, Any]
    commit: str
    dirty: bool | None
    seed: int
    hardware: dict[str, Any]
    versions: dict[str, str]
    data: dict[str, Any]
    phases: list[Phase]
    events: list[dict[str, Any]]
    widths: dict[str, list[int]]
    seconds: float

    def save(self, path: Path) -> None:
        """Write the result as JSON, atomically.

        Args:
            path: The file.

        Raises:
            CheckpointError: If the disk does not take it.
        """
        draft = path.with_name(path.name + ".part")
        try:
            write_durably(draft, (json.dumps(asdict(self), indent=2) + "\n").encode())
            os.replace(draft, path)
        except OSError as error:
            raise CheckpointError(f"{path} could not be written: {error.strerror}; make room and resume.") from error

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The result.

        Raises:
            CheckpointError: If it is missing or not a result.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            phases = [Phase(**phase) for phase in values.pop("phases")]
            return cls(phases=phases, **values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not the result of an auxin run ({error}).") from error


def without_structure(event: Event) -> dict[str, Any]:
    """Return an event as JSON data for people: what changed and what it cost."""
    data = event.to_dict()
    del data["structure"]
    return data


def widths_by_phase(events: Sequence[Event]) -> dict[str, list[int]]:
    """Return the size of everything that grew, in every phase.

    Args:
        events: All growth events of a run, in order.

    Returns:
        Width group or depth site → one size per phase, ``len(events) + 1`` of them.
    """
    widths: dict[str, list[int]] = {}
    for index, event in enumerate(events):
        for change in event.changes:
            sizes = widths.setdefault(change.target, [change.before] * (len(events) + 1))
            sizes[index + 1 :] = [change.after] * (len(events) - index)
    return widths
