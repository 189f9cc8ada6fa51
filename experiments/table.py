"""Write the Markdown table of a folder of results: one row per size of each run.

The table stands between two marks of the folder's README.md and is replaced there; other text is left alone.

Run: python experiments/table.py experiments/quick             (reads experiments/quick/results/*.json)
     python experiments/table.py experiments/quick --check     (exit code 1 if the table is not up to date)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from auxin.training.result import Result

BEGIN, END = "<!-- table: python experiments/table.py -->", "<!-- end of table -->"
COLUMNS = ("run", "epochs", "parameters", "MFLOPs", "val %", "test %", "seconds", "seed", "commit")


def rows(name: str, result: Result) -> list[tuple[str, ...]]:
    """Return one row per phase of a result; what belongs to the whole run stands in the first."""
    commit = result.commit[:9] + (" (changed)" if result.dirty else "")
    table = []
    for index, phase in enumerate(result.phases):
        test = "" if phase.test_accuracy is None else f"{100 * phase.test_accuracy:.2f}"
        table.append(
            (
                name if index == 0 else "",
                f"{phase.first_epoch}-{phase.last_epoch}",
                f"{phase.parameters:,}",
                f"{phase.flops / 1e6:.2f}",
                f"{100 * phase.val_accuracy:.2f}",
                test,
                f"{phase.seconds:.0f}",
                str(result.seed) if index == 0 else "",
                commit if index == 0 else "",
            )
        )
    return table


def markdown(results: dict[str, Result]) -> str:
    """Return the table, with a line below it on what the runs were made on."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for name, result in results.items():
        lines += ["| " + " | ".join(row) + " |" for row in rows(name, result)]
    if not results:
        return "No results yet."
    places = {
        f"{r.hardware['processor']}, {r.hardware['threads']} threads, torch {r.versions['torch']}"
        for r in results.values()
    }
    return "\n".join([*lines, "", "Made on: " + "; ".join(sorted(places)) + "."])


def replace_table(text: str, table: str) -> str:
    """Return a README with its table replaced, or with one appended where it has none."""
    block = f"{BEGIN}\n{table}\n{END}"
    if BEGIN not in text or END not in text:
        return f"{text.rstrip()}\n\n{block}\n".lstrip()
    head, _, rest = text.partition(BEGIN)
    return head + block + rest.partition(END)[2]


def main() -> int:
    """Run the command.

    Returns:
        Its exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if it is not up to date")
    options = parser.parse_args()
    results = {path.stem: Result.read(path) for path in sorted((options.folder / "results").glob("*.json"))}
    readme = options.folder / "README.md"
    old = readme.read_text(encoding="utf-8") if readme.exists() else ""
    new = replace_table(old, markdown(results))
    if options.check:
        return int(new != old)
    readme.write_text(new, encoding="utf-8")
    print(readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
