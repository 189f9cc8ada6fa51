"""Metrics of each epoch, to JSON lines, CSV and TensorBoard, without a duplicate after a resume."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from auxin.errors import CheckpointError
from auxin.training.checkpoint import not_written, write_atomically


class MetricsLog:
    """Writes one row an epoch to three places; the JSON lines are what a resume trusts.

    Args:
        path: The JSON-lines file; the CSV of the same name lies beside it.
        tensorboard: Folder of TensorBoard's event files.
        epochs_done: Epochs of the checkpoint that the run goes on from; later rows are dropped.

    Attributes:
        rows: All rows so far.
        note: Which file keeps the lines that could not be read, or an empty text.
    """

    def __init__(self, path: Path, tensorboard: Path, epochs_done: int = 0) -> None:
        self.path = path
        self.note = _keep_damaged(path)
        self.rows = [row for row in read_rows(path) if row["epoch"] < epochs_done]
        write_atomically(path, "".join(map(_line, self.rows)).encode())
        write_atomically(path.with_suffix(".csv"), _table(self.rows).encode())
        # purge_step hides what a killed run wrote after its last checkpoint.
        self._writer = SummaryWriter(str(tensorboard), purge_step=epochs_done)
        self._tensorboard = tensorboard

    def append(self, row: Mapping[str, float]) -> None:
        """Add the row of one epoch.

        Args:
            row: Metric name → value; ``epoch`` is 0 for the first.

        Raises:
            CheckpointError: If the disk does not take it.
        """
        self.rows.append(dict(row))
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise CheckpointError(f"{not_written(self.path, error)} and run auxin resume.") from error
        # Rewritten whole: a later epoch may bring a new column.
        write_atomically(self.path.with_suffix(".csv"), _table(self.rows).encode())
        try:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, int(row["epoch"]))
            self._writer.flush()
        except OSError as error:
            raise CheckpointError(f"{not_written(self._tensorboard, error)} and run auxin resume.") from error

    def close(self) -> None:
        """Close TensorBoard's file; what could not be written to it was an error of ``append``."""
        with contextlib.suppress(OSError):
            self._writer.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines metrics file, without damaged lines, such as one that a kill cut short.

    Args:
        path: The file; an absent one has no rows.

    Returns:
        One mapping an epoch.
    """
    return [row for row in _rows_or_none(path) if row is not None]


def _rows_or_none(path: Path) -> list[dict[str, Any] | None]:
    """Return one row a line, None where the line is damaged."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [_row(line) for line in lines]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("epoch"), int) else None


def _keep_damaged(path: Path) -> str:
    """Copy a file that has damaged lines, and say so; a last line that a kill cut short is no loss."""
    damaged = _rows_or_none(path)[:-1].count(None)
    if not damaged:
        return ""
    copy = path.with_name(path.name + ".bak")
    write_atomically(copy, path.read_bytes())
    return f"{path} has damaged lines, which are left out ({damaged}); {copy.name} beside it keeps the file as it was"


def _line(row: Mapping[str, float]) -> str:
    return json.dumps({key: _finite(value) for key, value in row.items()}) + "\n"


def _finite(value: float | None) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
