"""What a comparison shows while it runs: a live table in a terminal, a line per run everywhere else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from auxin.compare.plan import Run
from auxin.training.metrics import read_rows

_EVERY = 1.0
"""Seconds between two looks at the runs' metrics."""


class Board:
    """Shows which runs are under way; used as a context manager.

    Args:
        total: Number of runs to train.
        console: Where to write; ``Console(quiet=True)`` writes nothing.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        self._running: dict[str, tuple[Run, float]] = {}
        self._finished = 0
        self._failed = 0
        self._looked = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Board:
        """Start the live table where there is a terminal.

        Returns:
            The same object.
        """
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(self._table(), console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the live table."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def started(self, run: Run, resumed: bool) -> None:
        """Say that a run begins.

        Args:
            run: The run.
            resumed: Whether it goes on from a checkpoint.
        """
        self._running[run.name] = run, time.monotonic()
        self._line(f"{'resumed' if resumed else 'started'}  {run.name}")
        self._looked = 0.0

    def ended(self, run: Run, seconds: float, reason: str | None) -> None:
        """Say how a run ended.

        Args:
            run: The run.
            seconds: Time since it was started here.
            reason: Why it failed; None if it did not.
        """
        del self._running[run.name]
        self._finished += reason is None
        self._failed += reason is not None
        how = f"finished {run.name} in {duration(seconds)}" if reason is None else f"FAILED   {run.name}: {reason}"
        self._line(f"{how}  [{self._finished + self._failed}/{self.total}]")
        self._looked = 0.0

    def update(self) -> None:
        """Refresh the live table, at most once a second."""
        if self._live is not None and time.monotonic() - self._looked >= _EVERY:
            self._looked = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        left = self.total - self._finished - self._failed - len(self._running)
        title = f"{self._finished} finished, {len(self._running)} running, {left} waiting, {self._failed} failed"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for heading in ("run", "epoch", "parameters", "validation", "time"):
            table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
        for run, since in self._running.values():
            rows = read_rows(run.folder.metrics)
            last = rows[-1] if rows else {}
            accuracy = last.get("val_accuracy")
            table.add_row(
                run.name,
                f"{len(rows)}/{run.config.train.epochs}",
                f"{int(last['parameters']):,}" if "parameters" in last else "",
                "" if accuracy is None else f"{accuracy:.2%}",
                duration(time.monotonic() - since),
            )
        return table

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return a time as people say it.

    Args:
        seconds: 0 or more.

    Returns:
        Two units at most.

    Example:
        >>> duration(42.4), duration(310), duration(7500), duration(200_000)
        ('42 s', '5 min 10 s', '2 h 5 min', '2 d 7 h')
    """
    whole = round(seconds)
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"
