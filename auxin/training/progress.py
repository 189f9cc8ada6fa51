"""What a run shows while it trains: a bar in a terminal, one line an epoch everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class EpochProgress:
    """Shows epochs, steps and events; used as a context manager around the training loop.

    Args:
        epochs: Length of the run.
        console: Where to write; ``Console(quiet=True)`` writes nothing.

    Attributes:
        label: What stands before each epoch, for one of several runs.
    """

    def __init__(self, epochs: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.epochs = epochs
        self.label = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> EpochProgress:
        """Start the bar where there is a terminal.

        Returns:
            The same object.
        """
        if self.console.is_terminal and not self.console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, epoch: int, steps: int) -> None:
        """Start an epoch.

        Args:
            epoch: 0 for the first.
            steps: Number of steps it takes.
        """
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(f"{self.label}epoch {epoch + 1}/{self.epochs}", total=steps)

    def advance(self) -> None:
        """Count one step."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    def end(self, row: Mapping[str, float]) -> None:
        """Print the line of a finished epoch.

        Args:
            row: Its metrics.
        """
        self.line(
            f"{self.label}epoch {int(row['epoch']) + 1:>3}/{self.epochs}  "
            f"train {row['train_loss']:.4f} {row['train_accuracy']:6.2%}  "
            f"val {row['val_loss']:.4f} {row['val_accuracy']:6.2%}  "
            f"{int(row['parameters']):,} parameters  {row['epoch_seconds']:.1f} s"
        )

    def line(self, text: str) -> None:
        """Print one line, above the bar where there is one.

        Args:
            text: The line, without markup.
        """
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
