"""``auxin similarity``: show how alike the neurons of a layer are."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Sequence

from auxin.analysis.curves import RunRecord, read_run
from auxin.analysis.pictures import similarity_histograms
from auxin.analysis.similarity import Distribution, of_event, of_model, table
from auxin.analysis.style import house_style, save
from auxin.cli.parser import CommandParser
from auxin.cli.picture import picture_path
from auxin.errors import ConfigError
from auxin.report import model_of
from auxin.training.checkpoint import write_atomically

_DESCRIPTION = """Draw histograms of the cosine similarities between all pairs of neurons of a layer, side by side.

Of one run: before growth, after growth and after refinement of one event. Of two runs, such as one with and one without
the similarity constraint: their newest sizes. Writes a picture and a CSV of the same name.

examples:
  auxin similarity runs/with-1 --layer features.3
  auxin similarity runs/with-1 --layer features.3 --event 1
  auxin similarity runs/with-1 runs/without-1 --layer features.3 --out compared.svg
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin similarity``.

    Returns:
        Exit code 0.
    """
    parser = CommandParser("auxin similarity", _DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run; one or two")
    parser.add_argument("--layer", help="path of a module, such as features.3; by default all layers together")
    parser.add_argument("--event", type=int, help="growth event to show, 1 is the first; by default the last")
    parser.add_argument("--rung", type=int, help="show the models at this size instead, 0 is the first")
    parser.add_argument("--out", metavar="FILE", help="a .png, .svg or .pdf; by default RUN/similarity.png")
    options = parser.parse_args(arguments)
    records = [read_run(folder) for folder in options.runs]
    path = picture_path(options.out, records[0].folder.path / "similarity.png", ".csv")
    found = distributions(records, options)
    with house_style():
        save(similarity_histograms(found, options.layer), path)
    rows = table(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path.with_suffix(".csv"), text.getvalue().encode())
    for one in found:
        print(f"{one.label:<24} {one.share_within():7.2%} of {one.pairs:,} pairs in [-0.5, 0.5]")
    print(f"{path} and {path.with_suffix('.csv')}")
    return 0


def distributions(records: Sequence[RunRecord], options: Namespace) -> list[Distribution]:
    """Return what the options ask for.

    Args:
        records: One or two runs.
        options: ``layer``, ``event`` and ``rung``.

    Returns:
        One distribution per panel.

    Raises:
        ConfigError: If there are more than two runs, or no such event.
    """
    if len(records) > 2:
        raise ConfigError(f"auxin similarity compares two runs at most, and {len(records)} were given.")
    first = records[0]
    if options.event is not None and (len(records) == 2 or options.rung is not None):
        raise ConfigError("--event is about one run's growth: give one run, and no --rung.")
    if len(records) == 1 and options.rung is None and (options.event is not None or first.similarity):
        entries = {entry["event"]: entry for entry in first.similarity}
        number = max(entries, default=0) if options.event is None else options.event
        if number not in entries:
            there = f"it has {', '.join(map(str, entries))}" if entries else "it has kept none"
            raise ConfigError(f"{first.folder.path} has no growth event {number} to show: {there}.")
        return of_event(entries[number], options.layer)
    names = [record.name for record in records]
    labels = [str(record.folder.path) for record in records] if len(set(names)) < len(names) else names
    return [
        of_model(model_of(record, options.rung), options.layer, label)
        for record, label in zip(records, labels, strict=True)
    ]
