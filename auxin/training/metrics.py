"""Metrics of each epoch, to JSON lines, CSV and TensorBoard, without a duplicate after a resume."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from auxin.errors import CheckpointError


class MetricsLog:
    """Writes one row an epoch to three places; the JSON lines are what a resume trusts.

    Args:
        path: The JSON-lines file; the CSV of the same name lies beside it.
        tensorboard: Folder of TensorBoard's event files.
        epochs_done: Epochs of the checkpoint that the run goes on from; later rows are dropped.
    """

    def __init__(self, path: Path, tensorboard: Path, epochs_done: int = 0) -> None:
        self.path = path
        self.rows = [row for row in read_rows(path) if row["epoch"] < epochs_done]
        self._rewrite(path, "".join(map(_line, self.rows)))
        self._rewrite(path.with_suffix(".csv"), _table(self.rows))
        # purge_step hides what a killed run wrote after its last checkpoint.
        self._writer = SummaryWriter(str(tensorboard), purge_step=epochs_done)

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
            # Rewritten whole: a later epoch may bring a new column.
            self._rewrite(self.path.with_suffix(".csv"), _table(self.rows))
        except OSError as error:
            raise CheckpointError(
                f"Metrics could not be written to {self.path}: {error.strerror}; make room and run auxin resume."
            ) from error
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._writer.close()

    @staticmethod
    def _rewrite(path: Path, text: str) -> None:
        draft = path.with_name(path.name + ".part")
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines metrics file, up to the first line that a kill cut short.

    Args:
        path: The file; an absent one has no rows.

    Returns:
        One mapping an epoch.
    """
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or "epoch" not in row:
            break
        rows.append(row)
    return rows


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
