"""The tables of a comparison: means over seeds, paired differences, and what each size reached."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from auxin.compare.formats import Table, latex, markdown
from auxin.compare.metrics import METRICS, Metric, of_phase
from auxin.compare.plan import Run
from auxin.compare.spec import Row, Spec
from auxin.compare.statistics import Difference, Summary, paired, summary
from auxin.training import Result
from auxin.training.checkpoint import write_durably

Results = dict[str, dict[int, Result]]
"""Row label → seed → result."""

_NONE = "-"


def gather(runs: Sequence[Run]) -> Results:
    """Return the results that are there.

    Args:
        runs: The runs of a comparison.

    Returns:
        One entry per row, empty where nothing is finished.
    """
    found: Results = {run.row.label: {} for run in runs}
    for run in runs:
        result = run.result()
        if result is not None:
            found[run.row.label][run.seed] = result
    return found


def make_tables(spec: Spec, results: Results) -> list[Table]:
    """Return the tables of a comparison: rows, paired differences where there is a baseline, sizes.

    Args:
        spec: The comparison.
        results: What ``gather`` returned; rows without results keep their place.

    Returns:
        Two or three tables.
    """
    tables = [_main(spec, results)]
    if any(row.baseline for row in spec.rows):
        tables.append(_differences(spec, results))
    return [*tables, _sizes(spec, results)]


def write_tables(spec: Spec, results: Results, folder: Path) -> list[Path]:
    """Write ``table.md`` and ``table.tex``, each in one step.

    Args:
        spec: The comparison.
        results: What ``gather`` returned.
        folder: Where; made where absent.

    Returns:
        The two paths.
    """
    tables = make_tables(spec, results)
    written = []
    for name, text in (("table.md", markdown(tables)), ("table.tex", latex(tables))):
        path = folder / name
        draft = path.with_name(name + ".part")
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(draft, text.encode())
        os.replace(draft, path)
        written.append(path)
    return written


def _main(spec: Spec, results: Results) -> Table:
    columns, cells = ["", "n"], [[row.label, _count(results[row.label], spec)] for row in spec.rows]
    for name in spec.metrics:
        metric = METRICS[name]
        found = {row.label: _values(results[row.label], metric) for row in spec.rows}
        everything = [value for values in found.values() for value in values.values()]
        published = any(name in row.published for row in spec.rows)
        if name == "energy" and not everything and not published:
            continue  # only runs with a meter have it
        factor, heading = metric.unit(everything)
        columns += [heading, "published"] if published else [heading]
        for row, line in zip(spec.rows, cells, strict=True):
            line.append(spread(summary([factor * v for v in found[row.label].values()]), metric.digits, metric.exact))
            if published:
                line.append(_published(row, name))
    return Table(spec.title, tuple(columns), tuple(map(tuple, cells)), tuple(_notes(spec, results)))


def _count(found: dict[int, Result], spec: Spec) -> str:
    return str(len(found)) if len(found) == len(spec.seeds) else f"{len(found)} of {len(spec.seeds)}"


def _values(found: dict[int, Result], metric: Metric) -> dict[int, float]:
    read = {seed: metric.read(result) for seed, result in found.items()}
    return {seed: value for seed, value in read.items() if value is not None}


def _published(row: Row, name: str) -> str:
    value = row.published.get(name)
    if value is None or isinstance(value, str):
        return value or _NONE
    return f"{value:,}"


def spread(found: Summary | None, digits: int, exact: bool = False) -> str:
    """Return mean ± sample standard deviation as a table shows them.

    Args:
        found: The summary; None gives a dash.
        digits: Decimals.
        exact: Leave out a spread of zero.

    Returns:
        The text of a cell.

    Example:
        >>> spread(Summary(3, 91.234, 0.5), 2), spread(Summary(1, 1234.0, None), 0), spread(None, 2)
        ('91.23 ± 0.50', '1,234', '-')
    """
    if found is None:
        return _NONE
    mean = f"{found.mean:,.{digits}f}"
    if found.std is None or (exact and found.std <= 1e-9 * abs(found.mean)):
        return mean
    return f"{mean} ± {found.std:,.{digits}f}"


def _differences(spec: Spec, results: Results) -> Table:
    names = [name for name in spec.metrics if METRICS[name].paired]
    columns, cells = ["row - baseline", "n"], []
    columns += [METRICS[name].heading for name in names]
    for row in spec.rows:
        if row.baseline is None:
            continue
        line, counts = [], []
        for name in names:
            metric = METRICS[name]
            factor, _ = metric.unit([])
            ours, theirs = (
                {seed: factor * value for seed, value in _values(results[label], metric).items()}
                for label in (row.label, row.baseline)
            )
            difference = paired(ours, theirs)
            counts.append(difference.n if difference else 0)
            line.append(interval(difference, metric.digits))
        cells.append((f"{row.label} - {row.baseline}", str(max(counts, default=0)), *line))
    notes = (
        "Mean difference of runs that share a seed, with Student's 95 % confidence interval in brackets; "
        "not corrected for the number of comparisons.",
    )
    return Table(f"{spec.title}: paired differences", tuple(columns), tuple(cells), notes)


def interval(found: Difference | None, digits: int) -> str:
    """Return a difference with its confidence interval as a table shows them.

    Args:
        found: The difference; None gives a dash.
        digits: Decimals.

    Returns:
        The text of a cell; a single pair has no interval.

    Example:
        >>> interval(Difference(3, 0.96, -0.2, 2.12), 2)
        '+0.96 [-0.20, +2.12]'
    """
    if found is None:
        return _NONE
    mean = _signed(found.mean, digits)
    if found.low is None or found.high is None:
        return mean
    return f"{mean} [{_signed(found.low, digits)}, {_signed(found.high, digits)}]"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+,.{digits}f}"  # adding 0 turns -0 into +0


def _sizes(spec: Spec, results: Results) -> Table:
    names = {"parameters": "parameters", "flops": "flops", "val": "val_accuracy", "test": "test_accuracy"}
    phases = [phase for found in results.values() for result in found.values() for phase in result.phases]
    units = {name: METRICS[name].unit([of_phase(p, names[name]) or 0.0 for p in phases]) for name in names}
    cells = []
    for row in spec.rows:
        runs = list(results[row.label].values())
        for index in range(max((len(run.phases) for run in runs), default=0)):
            here = [run.phases[index] for run in runs if index < len(run.phases)]
            epochs = {f"{phase.first_epoch}-{phase.last_epoch}" for phase in here}
            line = [row.label if index == 0 else "", str(len(here)), epochs.pop() if len(epochs) == 1 else "various"]
            for name, attribute in names.items():
                values = [units[name][0] * v for p in here if (v := of_phase(p, attribute)) is not None]
                line.append(spread(summary(values), METRICS[name].digits, METRICS[name].exact))
            line.append(spread(summary([phase.seconds for phase in here]), 0))
            cells.append(tuple(line))
    columns = ("", "n", "epochs", *(heading for _, heading in units.values()), "seconds")
    return Table(f"{spec.title}: every size", columns, tuple(cells))


def _notes(spec: Spec, results: Results) -> list[str]:
    runs = [result for found in results.values() for result in found.values()]
    notes = [f"Mean ± sample standard deviation over seeds {', '.join(map(str, spec.seeds))}; n is the number of runs."]
    sources = sorted({row.source for row in spec.rows if row.published and row.source})
    if sources:
        notes.append(f"Published: {'; '.join(sources)}.")
    if not runs:
        return [*notes, "No run is finished yet."]
    origins = sorted({str(run.data.get("origin") or run.data.get("source", "unknown")) for run in runs})
    remarks = sorted({str(note) for run in runs for note in run.data.get("notes", [])})
    notes.append(f"Images: {'; '.join(origins)}. {' '.join(remarks)}".rstrip())
    made = [one for run in runs for one in _sessions(run)]
    places = sorted({_place(one) for one in made})
    commits = sorted({one["commit"][:9] + (" (changed)" if one["dirty"] else "") for one in made})
    notes.append(f"Made on: {'; '.join(places)}. Commit: {', '.join(commits)}.")
    return notes


def _sessions(run: Result) -> list[dict[str, Any]]:
    last = {"commit": run.commit, "dirty": run.dirty, "hardware": run.hardware, "versions": run.versions}
    return run.sessions or [last]


def _place(session: Mapping[str, Any]) -> str:
    machine, gpus = session["hardware"], ", ".join(session["hardware"].get("gpus", []))
    device = gpus or f"{machine.get('processor', 'unknown')}, threads: {machine.get('threads', '?')}"
    return f"{device}, torch {session['versions'].get('torch', 'unknown')}"
