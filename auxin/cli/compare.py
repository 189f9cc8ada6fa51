"""``auxin compare``: run a comparison and write its tables."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from auxin.cli import Interrupted
from auxin.cli.parser import CommandParser
from auxin.compare import Run, choose, gather, make_plan, once, read_spec, run_all, threads_of, write_tables
from auxin.compare.board import duration
from auxin.compare.estimate import estimate
from auxin.errors import ConfigError
from auxin.training import Result

_DESCRIPTION = """Run a comparison: rows (methods, models, data, any setting) times seeds, and write its tables.

SPEC is a YAML file; docs/compare.md describes it. What is finished is skipped, what was begun is resumed, so that the
same command goes on after Ctrl-C, a crash or kill -9. Each run is a folder OUT/NAME/ROW-sSEED like any other.
table.md and table.tex hold mean and standard deviation over seeds, published values, and paired differences.

examples:
  auxin compare methods.yaml --dry-run                    the plan, with an estimate of the time
  auxin compare methods.yaml --jobs 4 --results results   four runs at a time; results and tables kept in results/
  auxin compare methods.yaml --recipe short --only Random --only Firefly
  auxin compare methods.yaml --only Firefly --seed 0      one run
  auxin compare methods.yaml --data path/to/cifar10
  auxin compare methods.yaml --results results --table-only
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin compare``.

    Returns:
        Exit code 0, or 1 if a run failed.

    Raises:
        Interrupted: At Ctrl-C, with how to go on.
    """
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True)
    spec = read_spec(Path(options.spec), options.recipe, options.data)
    jobs, threads = _share(options.jobs, options.cores)
    if options.table_only:
        spec = replace(spec, moved=True)  # the tables say themselves where the images were
    plan = make_plan(spec, Path(options.out), options.results and Path(options.results))
    tables = Path(options.results or options.out) / spec.name
    chosen = choose(plan, options.only, options.seed)
    if options.dry_run:
        _show_plan(chosen, plan, jobs, threads, console)
        return 0
    missing = [] if options.table_only else [run for run in once(chosen) if run.state != "done"]
    _make_folders([tables, *(path.parent for run in missing for path in (run.folder.path, run.kept) if path)])
    _keep(plan)
    try:
        failed = run_all(missing, jobs=jobs, threads=threads, console=console, finished=lambda run: _keep([run]))
    except KeyboardInterrupt as error:
        done = sum(run.state == "done" for run in plan)
        raise Interrupted(
            f"interrupted with {done} of {len(plan)} runs finished; go on with: "
            f"{shlex.join(['auxin', 'compare', *arguments])}"
        ) from error
    finally:
        written = write_tables(spec, gather(plan), tables)
    console.print(written[0].read_text(encoding="utf-8"), markup=False, highlight=False)
    done = sum(run.state == "done" for run in plan)
    console.print(f"{done} of {len(plan)} runs finished. Tables: {', '.join(map(str, written))}", highlight=False)
    for name, reason in failed.items():
        console.print(f"failed: {name}: {reason}", markup=False, highlight=False)
    return 1 if failed else 0


def _parser() -> CommandParser:
    parser = CommandParser("auxin compare", _DESCRIPTION)
    parser.add_argument("spec", metavar="SPEC", help="the YAML file")
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at a time (default 1)")
    parser.add_argument("--cores", type=_positive, default=_cores(), help="CPU cores to share among them (default all)")
    parser.add_argument("--recipe", help="one of the specification's recipes (default its first)")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="train this row only; repeatable")
    parser.add_argument(
        "--seed", action="append", type=int, default=[], metavar="N", help="train this seed only; repeatable"
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="SOURCE",
        help="where the images are; NAME=SOURCE, repeatable, where rows differ in data.source",
    )
    parser.add_argument("--out", default="runs", help="folder of all runs (default runs)")
    parser.add_argument("--results", metavar="FOLDER", help="copy results and write tables to FOLDER/NAME")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan with an estimate of the time; train nothing"
    )
    parser.add_argument("--table-only", action="store_true", help="write the tables of what is finished; train nothing")
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return number


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(jobs: int, cores: int) -> tuple[int, int]:
    if jobs > cores:
        raise ConfigError(f"--jobs {jobs} is more than the {cores} cores there are: give at most {cores}.")
    return jobs, cores // jobs


def _make_folders(paths: Iterable[Path]) -> None:
    """Make folders now, since one that cannot be made would be found out when a run has ended."""
    for path in paths:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The folder {path} cannot be made ({error.strerror}): give --out and --results other folders."
            ) from error


def _keep(runs: Sequence[Run]) -> None:
    for run in runs:
        # What is kept is the record; it is never written over.
        if run.kept is not None and run.folder.result.exists() and not run.kept.exists():
            run.kept.parent.mkdir(parents=True, exist_ok=True)
            Result.read(run.folder.result).save(run.kept)


def _show_plan(chosen: Sequence[Run], plan: Sequence[Run], jobs: int, threads: int, console: Console) -> None:
    chosen = once(chosen)
    estimates = estimate(chosen, plan, threads)
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "time left", "estimated from"):
        table.add_column(heading, justify="right" if heading == "time left" else "left")
    for run in chosen:
        guess = estimates.get(run.name)
        time = "-" if guess is None or guess.seconds is None else duration(guess.seconds)
        table.add_row(run.name, run.state, time, guess.basis if guess else "")
    console.print(table)
    left = [estimates[run.name].seconds for run in chosen if run.name in estimates]
    known = [seconds for seconds in left if seconds is not None]
    at_least = "at least " if len(known) < len(left) else "about "
    total = max(sum(known) / jobs, *known, 0.0)
    each = " or ".join(map(str, sorted({threads_of(run.config, threads) for run in chosen})))
    console.print(
        f"{len(chosen) - len(left)} of {len(chosen)} runs are finished; the others take {at_least}{duration(total)} "
        f"with --jobs {jobs} ({each} {'thread' if each == '1' else 'threads'} each).",
        highlight=False,
    )
