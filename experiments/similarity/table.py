"""Write the Markdown table of the results into README.md, between two marks; other text is left alone.

Run: python experiments/similarity/table.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- table: python experiments/similarity/table.py -->", "<!-- end of table -->"
COLUMNS = (
    "growth",
    "refinement, 15 iterations",
    "μ, all pairs",
    "μ, pairs with a moved neuron",
    "moved",
    "max abs Δ output",
    "acc. right after",
    "acc. norms re-estimated",
    "acc. one epoch later",
    "μ one epoch later",
)


def table(reports: list[dict[str, Any]]) -> str:
    """Return the table: means over seeds, and ± the sample standard deviation for accuracies."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    order = {(row["method"], row["row"]): None for report in reports for row in report["rows"]}
    names = [name for _, name in order]
    for method, name in sorted(order, key=lambda key: (key[0] != "random", _rank(key[1], names))):
        rows = [r for report in reports for r in report["rows"] if (r["method"], r["row"]) == (method, name)]
        cells = (
            method,
            name,
            _arrow(rows, "mean_similarity"),
            _arrow(rows, "moved_pairs"),
            f"{100 * _mean(rows, 'moved'):.0f} %",
            f"{max(row['max_change'] for row in rows):.1g}",
            _accuracy(rows, "accuracy"),
            _accuracy(rows, "accuracy_norms"),
            _accuracy(rows, "accuracy_epoch"),
            f"{_mean(rows, 'mean_similarity_epoch'):.3f}"
            if any("mean_similarity_epoch" in row for row in rows)
            else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    before = ", ".join(f"{100 * report['accuracy_before']:.1f}" for report in reports)
    hosts = {(r["hardware"]["processor"], r["hardware"]["threads"], r["versions"]["torch"]) for r in reports}
    places = "; ".join(f"{name}, {threads} thread(s), torch {torch}" for name, threads, torch in sorted(hosts))
    seeds = ", ".join(str(report["seed"]) for report in reports)
    note = f"Seeds {seeds}; validation accuracy before growth: {before} %. Made on: {places}."
    return "\n".join([*lines, "", note])


def _rank(name: str, names: list[str]) -> tuple[int, str]:
    for place, start in enumerate(("none", "new,", "new and", "all, lr", "all, plain")):
        if name.startswith(start):
            return place + ("ω" in name) * 10, name
    return len(names), name


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows if key in row)


def _arrow(rows: list[dict[str, Any]], key: str) -> str:
    before, after = (statistics.mean(row[key][i] for row in rows) for i in (0, 1))
    return f"{before:.3f} → {after:.3f}"


def _accuracy(rows: list[dict[str, Any]], key: str) -> str:
    values = [100 * row[key] for row in rows if key in row]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    """Run the command."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "results").glob("seed-*.json"))]
    readme = HERE / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{head}{BEGIN}\n{table(reports)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
