"""The folder of a run: which file lies where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from auxin.errors import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files.

    Attributes:
        path: The folder itself.
    """

    path: Path

    @classmethod
    def make(cls, name: str, parent: Path | str = "runs") -> RunFolder:
        """Make the next free folder ``parent/name-n``, n from 1; an existing run is never touched.

        Args:
            name: Start of the folder's name.
            parent: Folder of all runs; made where absent.

        Returns:
            The new, empty folder.

        Raises:
            ConfigError: If the parent is not a folder, such as a link to nowhere.
        """
        try:
            Path(parent).mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise ConfigError(f"{parent} is not a folder: choose another one for the runs.") from error
        number = 1
        while True:
            folder = Path(parent) / f"{name}-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return cls(folder)

    @property
    def config(self) -> Path:
        """The configuration as YAML."""
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        """Manifest of the newest checkpoint."""
        return self.path / "checkpoints" / "last.json"

    @property
    def ladder(self) -> Path:
        """Folder of the checkpoints of each size."""
        return self.path / "ladder"

    def finished(self, number: int) -> RunFolder:
        """Return the folder of the run that trained a rung on, where there is one."""
        return RunFolder(self.path / "finished" / f"rung-{number:02d}")

    @property
    def metrics(self) -> Path:
        """Metrics of each epoch as JSON lines; a CSV of the same name lies beside it."""
        return self.path / "metrics.jsonl"

    @property
    def decisions(self) -> Path:
        """Every decision to grow or not, as JSON lines; absent where the trigger does not say why."""
        return self.path / "decisions.jsonl"

    @property
    def similarity(self) -> Path:
        """How alike the neurons were before and after each event, as JSON."""
        return self.path / "similarity.json"

    @property
    def report(self) -> Path:
        """The page about the run: one HTML file, rewritten while the run lasts."""
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def result(self) -> Path:
        """What a finished run leaves: its claim, and how it came about."""
        return self.path / "result.json"

    @property
    def records(self) -> set[Path]:
        """Those of its files that are there and that nothing else may replace."""
        found = (
            self.config,
            self.metrics,
            self.metrics.with_suffix(".csv"),
            self.decisions,
            self.similarity,
            self.result,
        )
        return {path for path in found if self.config.exists() and path.exists()}
