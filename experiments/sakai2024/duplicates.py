"""How alike the neurons of Table 1's nets (VGG16) are before and after each growth event.

For every finished run and event, averaged over the thirteen convolutions: the share of pairs of neurons with a cosine
outside [-0.5, 0.5], before growth, after it and after refinement. Read from the similarity.json of each run's folder,
added to results/duplicates.json; the table in README.md is made from that.

Run: python experiments/sakai2024/duplicates.py runs/table1-short     (reads the runs)
     python experiments/sakai2024/duplicates.py                       (only writes the table)
     python experiments/sakai2024/duplicates.py --check               (exit code 1 if out of date)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from auxin.analysis.similarity import of_event

HERE = Path(__file__).parent
KEPT = HERE / "results" / "duplicates.json"
STAGES = ("before_growth", "after_growth", "after_refinement")
BEGIN, END = "<!-- duplicates: python experiments/sakai2024/duplicates.py -->", "<!-- end of duplicates -->"


def shares(entry: Mapping[str, Any]) -> list[float | None]:
    """Return the share outside [-0.5, 0.5] at each stage of an event, averaged over layers."""
    layers = [of_event(entry, name) for name in entry["layers"]]
    stages = min(len(found) for found in layers)
    outside = [mean(1 - found[stage].share_within() for found in layers) for stage in range(stages)]
    return [*outside, *[None] * (len(STAGES) - stages)]


def collect(runs: Path) -> list[dict[str, Any]]:
    """Return one entry per finished VGG16 run."""
    entries, recipe = [], runs.resolve().name.rpartition("-")[2]
    for folder in sorted(runs.glob("*-vgg16-s*")):
        if (folder / "result.json").exists():
            events = json.loads((folder / "similarity.json").read_text(encoding="utf-8"))["events"]
            row, _, seed = folder.name.rpartition("-s")
            row += "" if recipe == "short" else f", {recipe}"
            entries.append({"row": row, "seed": int(seed), "events": [shares(event) for event in events]})
    return entries


def merge(kept: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all entries, one per row and seed, in order; a new one replaces the one that was kept."""
    found = {(entry["row"], entry["seed"]): entry for entry in (*kept, *new)}
    return [found[key] for key in sorted(found)]


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table: percent of pairs, mean over seeds."""
    rows = list(dict.fromkeys(entry["row"] for entry in entries))
    lines = [
        "| row | n | event | before growth, % | after growth, % | after refinement, % |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        found = [entry["events"] for entry in entries if entry["row"] == row]
        for event in range(len(found[0])):
            columns = list(zip(*(events[event] for events in found), strict=True))
            cells = ["-" if None in column else f"{100 * mean(column):.2f}" for column in columns]
            first = (row, str(len(found))) if event == 0 else ("", "")
            lines.append("| " + " | ".join((*first, str(event + 1), *cells)) + " |")
    return (
        "\n".join([*lines, "", "Pairs of neurons with a cosine outside [-0.5, 0.5], mean over layers and seeds."])
        + "\n"
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, help="folder of Table 1's runs")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the table is out of date")
    options = parser.parse_args()
    if options.runs:
        if not options.runs.is_dir():
            sys.exit(f"There is no folder {options.runs}: give the one that auxin compare made for Table 1.")
        entries = merge(json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else [], collect(options.runs))
        KEPT.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{readme} has no place for the table: it needs the lines {BEGIN} and {END}.")
    new = f"{before}{BEGIN}\n{table(json.loads(KEPT.read_text(encoding='utf-8')))}{END}{after}"
    if not options.check:
        readme.write_text(new, encoding="utf-8")
    elif new != text:
        sys.exit(f"{readme} is out of date: run python experiments/sakai2024/duplicates.py.")


if __name__ == "__main__":
    main()
