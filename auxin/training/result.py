"""``result.json``: what a run reached, at which cost, and everything needed to repeat it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from auxin.errors import CheckpointError
from auxin.training.checkpoint import write_atomically
from auxin.training.ladder import Rung
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
        training_flops: FLOPs spent so far in the run: training, scoring and surgery; 0 where it was not counted.
        energy_kwh: Electricity so far in the run; None without a meter.
        best_epoch: Epoch of highest validation accuracy at this size, counted from 1; None if it is the last one.
        best_val_accuracy: Validation accuracy of that epoch, likewise.
        best_test_accuracy: Test accuracy of that epoch, likewise.
    """

    first_epoch: int
    last_epoch: int
    parameters: int
    flops: int
    val_accuracy: float
    test_accuracy: float | None
    seconds: float
    training_flops: int = 0
    energy_kwh: float | None = None
    best_epoch: int | None = None
    best_val_accuracy: float | None = None
    best_test_accuracy: float | None = None


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        name: Name of the run.
        config: The configuration, complete.
        commit: Commit of auxin, or "unknown".
        dirty: Whether that checkout had changes outside ``results`` folders; None where there is no commit.
        seed: Seed of the run.
        hardware: Processor, cores, threads, GPUs.
        versions: Versions of Python and the packages.
        data: Origin and sizes of the image set.
        phases: One entry per size.
        events: The growth events, without what replays them (the ladder's checkpoints keep that).
        widths: For each width group or site that grew, its size in every phase.
        seconds: Time of the whole run.
        decisions: Every decision to grow or not, with its reason.
        cost: FLOPs of the whole run by kind: training, validation, scoring, surgery.
        energy: Electricity of the whole run: kwh, source (measured or modelled), note; None without a meter.
        sessions: Of a run that was resumed, each time it was trained, as ``provenance.session`` gives it; the last one
            is that of ``commit``, ``hardware`` and ``versions``. Empty, and not in the file, for other runs.
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
    decisions: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, int] = field(default_factory=dict)
    energy: dict[str, Any] | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the result as JSON, atomically.

        Args:
            path: The file.
        """
        values = asdict(self)
        if not self.sessions:
            del values["sessions"]
        write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())

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
            raise CheckpointError(
                f"{path} is damaged or not the result of an auxin run ({error}): remove it and run auxin resume, "
                "or auxin compare, which write it again."
            ) from error


def phases_of(
    found: Sequence[Rung],
    events: Sequence[Event],
    rows: Sequence[Mapping[str, Any]],
    test: Callable[[Path], float | None],
) -> list[Phase]:
    """Return the phases of a run from its ladder.

    Args:
        found: The rungs, each size's last epoch first and then its best one where that is kept.
        events: All growth events of the run.
        rows: Metrics of each epoch: they know when a phase began even where the rung before it is missing.
        test: From a checkpoint's manifest to its test accuracy.

    Returns:
        One entry per size that has a rung.
    """
    best = {rung.number: rung for rung in found if rung.best}
    times = {row["epoch"]: row.get("seconds") for row in rows}
    phases: list[Phase] = []
    seconds = 0.0
    for rung in (rung for rung in found if not rung.best):
        top = best.get(rung.number)
        first_epoch = (events[rung.number - 1].epoch or 0) + 2 if rung.number else 1
        before = times.get(first_epoch - 2)
        phases.append(
            Phase(
                first_epoch=first_epoch,
                last_epoch=rung.epoch + 1,
                parameters=rung.parameters,
                flops=rung.flops,
                val_accuracy=rung.val_accuracy,
                test_accuracy=test(rung.path),
                seconds=rung.seconds - (seconds if before is None else before),
                training_flops=rung.training_flops,
                energy_kwh=rung.energy_kwh,
                best_epoch=top.epoch + 1 if top else None,
                best_val_accuracy=top.val_accuracy if top else None,
                best_test_accuracy=test(top.path) if top else None,
            )
        )
        seconds = rung.seconds
    return phases


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
