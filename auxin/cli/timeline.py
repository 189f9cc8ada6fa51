"""What a finished run prints: how it grew, and what each size reached."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from auxin.training import Result, RunFolder

_BAR = 24


def show_result(result: Result, folder: RunFolder, console: Console) -> None:
    """Print the growth timeline, the accuracy of each size, and where the files are.

    Args:
        result: Of a finished run.
        folder: Of that run.
        console: Where to print.
    """
    console.print()
    if not console.is_terminal:  # a pipe has no width of its own; nothing may be cut off
        console.width = max(console.width, 1000)
    console.print(growth_table(result))
    console.print()
    console.print(accuracy_table(result))
    console.print(f"\nRun folder: {folder.path}", highlight=False, markup=False)
    if folder.report.exists():
        console.print(
            f"  report.html: open it in a browser, file://{folder.report.resolve()}", highlight=False, markup=False
        )
    console.print(
        "  config.yaml, metrics.csv, metrics.jsonl, tensorboard/, ladder/ (one checkpoint per size), result.json",
        highlight=False,
        markup=False,
    )


def growth_table(result: Result) -> Table:
    """Return one row per layer that grew, one column per phase, and a bar of the last width."""
    table = _table("Growth timeline: units of each layer, by epochs")
    table.add_column("layer", no_wrap=True)
    for phase in result.phases:
        table.add_column(f"{phase.first_epoch}-{phase.last_epoch}", justify="right", no_wrap=True)
    table.add_column("")
    widest = max((sizes[-1] for sizes in result.widths.values()), default=1)
    for name, sizes in result.widths.items():
        table.add_row(name, *map(str, sizes), _bar(sizes, widest))
    if not result.widths:
        table.add_row("(nothing grew)", *[""] * len(result.phases), "")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _bar(sizes: list[int], widest: int) -> str:
    # The part that was there from the start is darker.
    old, new = (max(1, round(_BAR * size / widest)) for size in (sizes[0], sizes[-1]))
    return "█" * old + "▒" * (new - old)


def accuracy_table(result: Result) -> Table:
    """Return one row per size: parameters, FLOPs, validation and test accuracy, seconds."""
    table = _table("Accuracy per size")
    for name in ("epochs", "parameters", "MFLOPs", "val", "test", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in result.phases:
        table.add_row(
            f"{phase.first_epoch}-{phase.last_epoch}",
            f"{phase.parameters:,}",
            f"{phase.flops / 1e6:.2f}",
            f"{phase.val_accuracy:.2%}",
            "" if phase.test_accuracy is None else f"{phase.test_accuracy:.2%}",
            f"{phase.seconds:.1f}",
        )
    return table
