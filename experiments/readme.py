"""Put the tables of comparisons into a README: each stands between a mark that names it and an end mark.

    <!-- table: table1.yaml --recipe short --part rows --only VGG16 -->
    <!-- end of table -->

The part is rows, differences (paired by seed) or sizes; --columns keeps some, by the start of their headings; --absent
is what stands in rows without a run. The specification is looked for beside the README, its results in results/ beside
the specification. Other text is left alone.

Run: python experiments/readme.py experiments/sakai2024/README.md             (writes the tables)
     python experiments/readme.py README.md --check                           (exit code 1 if one is out of date)
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from auxin.compare import choose, gather, make_plan, make_tables, read_spec
from auxin.compare.formats import Table, markdown

END = "<!-- end of table -->"
MARK = re.compile(r"<!-- table: (.+?\.yaml.*?) -->\n.*?" + re.escape(END), re.DOTALL)
PARTS = ("rows", "differences", "sizes")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of what a mark says."""
    parser = argparse.ArgumentParser(prog="table", add_help=False)
    parser.add_argument("spec")
    parser.add_argument("--recipe")
    parser.add_argument("--part", choices=PARTS, default="rows")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--columns", help="headings to keep, by their start, with commas between them")
    parser.add_argument("--absent", default="-")
    return parser


def make_table(mark: str, folder: Path) -> Table:
    """Return the table that a mark asks for."""
    options = arguments().parse_args(shlex.split(mark))
    path = folder / options.spec
    # Results name the place of their images, the specification a hub: that may differ.
    spec = replace(read_spec(path, options.recipe), moved=True)
    plan = make_plan(spec, path.parent / "runs", path.parent / "results")
    shown = {run.row.label for run in choose(plan, options.only)}
    rows = tuple(row for row in spec.rows if row.label in shown)
    needed = shown | {row.baseline for row in rows}
    results = gather([run for run in plan if run.row.label in needed])
    main_table, *others = make_tables(replace(spec, rows=rows), results)
    differences = others[0] if len(others) == 2 else None
    found = {"rows": main_table, "differences": differences, "sizes": others[-1]}[options.part]
    if found is None:
        raise SystemExit(f"{path} has no baseline, so it has no differences.")
    cells = found.rows
    if options.absent != "-":
        cells = tuple((*row[:1], options.absent, *row[2:]) if row[1].startswith("0") else row for row in cells)
    if options.columns:
        wanted = [word.strip() for word in options.columns.split(",")]
        kept = [0, *(_index(word, found.columns, path) for word in wanted)]
        cells = tuple(tuple(row[i] for i in kept) for row in cells)
        found = replace(found, columns=tuple(found.columns[i] for i in kept))
    return replace(found, rows=cells)


def _index(word: str, columns: Sequence[str], path: Path) -> int:
    """Return the place of the first column of this heading, else of the first that begins with it."""
    fitting = [i for i, c in enumerate(columns) if i and c == word]
    fitting += [i for i, c in enumerate(columns) if i and c.startswith(word)]
    if not fitting:
        raise SystemExit(f"{path} has no column {word!r}: choose among {', '.join(columns[1:])}.")
    return fitting[0]


def renewed(text: str, folder: Path) -> str:
    """Return a README with its tables made anew; the title is left to the text around them."""

    def block(found: re.Match[str]) -> str:
        body = markdown([make_table(found[1], folder)]).partition("\n\n")[2]
        return f"<!-- table: {found[1]} -->\n{body}{END}"

    return MARK.sub(block, text)


def main() -> None:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readme", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is out of date")
    options = parser.parse_args()
    for readme in options.readme:
        text = readme.read_text(encoding="utf-8")
        if not MARK.search(text):
            sys.exit(f"{readme} has no table: it needs a line <!-- table: SPEC.yaml --> and a line {END}.")
        new = renewed(text, readme.parent)
        if not options.check:
            readme.write_text(new, encoding="utf-8")
        elif new != text:
            sys.exit(f"{readme} is out of date: run python experiments/readme.py {readme}.")


if __name__ == "__main__":
    main()
