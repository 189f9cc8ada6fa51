"""Write the Markdown table of ``draw.py``'s results into README.md, between two marks; other text is left alone.

Run: python experiments/similarity/draw_table.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- table: python experiments/similarity/draw_table.py -->", "<!-- end of table of draws -->"
COLUMNS = (
    "growth",
    "refinement",
    "μ, pairs with a new neuron",
    "seconds of the event",
    "max abs Δ output",
    "acc. right after",
    "acc. one epoch later",
    "minus random",
)


def table(reports: list[dict[str, Any]]) -> str:
    """Return the table: means over seeds, and ± the sample standard deviation for accuracies."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    rows = [
        [r for report in reports for r in report["rows"] if _key(r) == key] for key in map(_key, reports[0]["rows"])
    ]
    for of_way in rows:
        gains = [100 * (a["accuracy_epoch"] - b["accuracy_epoch"]) for a, b in zip(of_way, rows[0], strict=False)]
        cells = (
            *_key(of_way[0]),
            f"{statistics.mean(r['new_pairs'] for r in of_way):.3f}",
            f"{statistics.mean(r['seconds'] for r in of_way):.2f}",
            f"{max(r['max_change'] for r in of_way):.1g}",
            _spread([100 * r["accuracy"] for r in of_way]),
            _spread([100 * r["accuracy_epoch"] for r in of_way]),
            "" if of_way is rows[0] else ", ".join(f"{gain:+.1f}" for gain in gains),
        )
        lines.append("| " + " | ".join(cells) + " |")
    before = ", ".join(f"{100 * report['accuracy_before']:.1f}" for report in reports)
    hosts = {(r["hardware"]["processor"], r["hardware"]["threads"], r["versions"]["torch"]) for r in reports}
    places = "; ".join(f"{name}, {threads} thread(s), torch {torch}" for name, threads, torch in sorted(hosts))
    seeds = ", ".join(str(report["seed"]) for report in reports)
    note = f"Seeds {seeds}; validation accuracy before growth: {before} %. Made on: {places}."
    return "\n".join([*lines, "", note])


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["method"], row["row"]


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    """Run the command."""
    paths = sorted((HERE / "results").glob("draw-*.json"))
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    readme = HERE / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{head}{BEGIN}\n{table(reports)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
