"""``auxin ladder``: every size of a run, the Pareto front, the best within a limit, and finishing them all."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from auxin.budgets import parse_number
from auxin.cli import Interrupted
from auxin.cli.parser import CommandParser
from auxin.errors import CheckpointError, ConfigError
from auxin.training import RunFolder
from auxin.training.finish import finish
from auxin.training.selection import Choice, Wish, choices, pareto, select

_DESCRIPTION = """Show every size that a run passed through, or choose one.

One row per checkpoint: the last epoch of each size, its best one where that was another, and the finished one after
--finish. A mark shows the Pareto front of validation accuracy against parameters (P) and against FLOPs (F). Seconds,
FLOPs spent and kWh are those of the run so far, smaller sizes included.

--finish trains every rung on at its own size, with a learning rate that falls to zero, below RUN/finished; interrupted,
the same command goes on.

examples:
  auxin ladder runs/vgg16-1
  auxin ladder runs/vgg16-1 --max-params 60k          the most accurate with at most 60,000 parameters
  auxin ladder runs/vgg16-1 --min-accuracy 0.8 --json the smallest that reaches 80 percent
  auxin ladder runs/vgg16-1 --max-latency-ms 5        one image, one thread, this machine
  auxin ladder runs/vgg16-1 --finish 5
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin ladder``.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: If options do not go together.
    """
    parser = CommandParser("auxin ladder", _DESCRIPTION)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    add_selectors(parser)
    parser.add_argument("--finish", type=int, metavar="EPOCHS", help="train every rung on for so many epochs")
    parser.add_argument("--lr", type=_finite, help="top learning rate of --finish (default: a tenth of the run's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.lr is not None and options.finish is None:
        raise ConfigError("--lr belongs to --finish: give both.")
    folder, wish = RunFolder(options.run), wish_of(options)
    console = Console(soft_wrap=True)
    if options.finish is not None:
        finish_all(folder, options.finish, options.lr, Console(soft_wrap=True, stderr=options.json))
    found = choices(folder, report_damage)
    if wish.given:
        chosen = select(found, wish)
        print(json.dumps(chosen.to_dict(), indent=2) if options.json else _lines(chosen))
    elif options.json:
        print(json.dumps({"run": str(folder.path), "rungs": _marked(found)}, indent=2))
    else:
        # A pipe has no width of its own; nothing may be cut off.
        console.width = max(console.width, 110)
        console.print(ladder_table(found))
    return 0


def report_damage(error: CheckpointError) -> None:
    """Tell of a rung that is left out, where it does not disturb what a script reads.

    Args:
        error: What is wrong with it.
    """
    print(f"auxin: a rung is left out. {error}", file=sys.stderr)


def add_selectors(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose one checkpoint of a run.

    Args:
        parser: Of the command.
    """
    parser.add_argument("--rung", metavar="N", help="the rung of this name, such as 2, 2-best or 2-finished")
    parser.add_argument("--max-params", type=parse_number, metavar="N", help="at most so many parameters, such as 60k")
    parser.add_argument("--max-flops", type=parse_number, metavar="N", help="at most so many FLOPs an image")
    parser.add_argument("--max-latency-ms", type=_finite, metavar="MS", help="at most so many milliseconds an image")
    parser.add_argument(
        "--min-accuracy", type=_finite, metavar="A", help="the smallest of this validation accuracy, 0-1"
    )


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a number such as 0.8")
    return number


def wish_of(options: argparse.Namespace) -> Wish:
    """Return what the options of ``add_selectors`` ask for.

    Args:
        options: What the parser returned.
    """
    return Wish(options.rung, options.max_params, options.max_flops, options.max_latency_ms, options.min_accuracy)


def finish_all(folder: RunFolder, epochs: int, lr: float | None, console: Console) -> None:
    """Train every rung of a run on.

    Args:
        folder: Of the run.
        epochs: Length of each finish.
        lr: Top learning rate, or None for the default.
        console: Where progress goes.

    Raises:
        Interrupted: At Ctrl-C, with how to go on.
    """
    choices(folder)  # says so if this is no run
    # Fabric announces its precision at every start.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        finish(folder, epochs, lr, console=console)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; the same command goes on.") from error


def ladder_table(found: Sequence[Choice]) -> Table:
    """Return one row per checkpoint, with a mark for each Pareto front it is on."""
    table = Table(title="Ladder", title_justify="left", box=None, pad_edge=False)
    table.add_column("rung", no_wrap=True)
    for name in ("parameters", "MFLOPs", "val", "test", "seconds", "FLOPs spent", "kWh"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Pareto", no_wrap=True)
    fronts = {"P": pareto(found, "parameters"), "F": pareto(found, "flops")}
    for one in found:
        table.add_row(
            one.name,
            f"{one.parameters:,}",
            f"{one.flops / 1e6:.2f}",
            f"{one.val_accuracy:.2%}",
            "" if one.test_accuracy is None else f"{one.test_accuracy:.2%}",
            f"{one.seconds:.1f}",
            f"{one.training_flops:.2e}" if one.training_flops else "",
            "" if one.energy_kwh is None else f"{one.energy_kwh:.4g}",
            " ".join(mark for mark, names in fronts.items() if one.name in names),
        )
    return table


def _marked(found: Sequence[Choice]) -> list[dict[str, object]]:
    parameters, flops = pareto(found, "parameters"), pareto(found, "flops")
    return [
        {**one.to_dict(), "pareto_parameters": one.name in parameters, "pareto_flops": one.name in flops}
        for one in found
    ]


def _lines(one: Choice) -> str:
    # The path first: a script takes the first line.
    test = "" if one.test_accuracy is None else f", test accuracy {one.test_accuracy:.2%}"
    latency = "" if one.latency_ms is None else f", {one.latency_ms:.3g} ms an image"
    spent = f", {one.training_flops:.2e} FLOPs" if one.training_flops else ""
    energy = "" if one.energy_kwh is None else f", {one.energy_kwh:.4g} kWh"
    return (
        f"{one.path}\n"
        f"  rung {one.name}: {one.parameters:,} parameters, {one.flops:,} FLOPs an image{latency}\n"
        f"  validation accuracy {one.val_accuracy:.2%}{test}\n"
        f"  spent so far: {one.seconds:.1f} s{spent}{energy}"
    )
