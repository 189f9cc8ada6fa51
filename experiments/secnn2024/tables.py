"""What one grown run gives beside its sizes trained one by one: the tables of this folder's README.md.

Everything is read from results/, which ``auxin compare`` writes for table.yaml, long.yaml and goal.yaml;
finished-sS-rung-N.json is a result.json of ``auxin ladder RUN --finish``. The tables stand between two marks; other
text is left alone.

Run: python experiments/secnn2024/tables.py            (writes the tables)
     python experiments/secnn2024/tables.py --check    (exit code 1 if they are not up to date)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from auxin.training.result import Phase, Result

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: python experiments/secnn2024/tables.py -->", "<!-- end of tables -->"
PAPER = ("300", "9,024 to 13,696", "22,636 to 51,880", "83.2 to 84.6 (mean 84.1)", "40,960 to 74,564", "-", "-", "-")
"""Appolinary et al. 2024, five trials on the official images."""


def load(folder: Path, row: str) -> dict[int, Result]:
    """Return the results of one row by seed."""
    found = (Result.read(path) for path in sorted(folder.glob(f"{row}-s*.json")))
    return {result.seed: result for result in found}


def tested(phase: Phase) -> float:
    """Return the accuracy on the test images."""
    if phase.test_accuracy is None:
        raise SystemExit("A result without test accuracy: was it made by auxin compare?")
    return phase.test_accuracy


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """Return mean ± sample standard deviation, or what there is."""
    numbers = [scale * value for value in values]
    if not numbers:
        return "-"
    shown = f"{mean(numbers):,.{digits}f}"
    same = len(numbers) == 1 or not any(f"{n:.{digits}f}" != f"{numbers[0]:.{digits}f}" for n in numbers)
    return shown if same else f"{shown} ± {stdev(numbers):,.{digits}f}"


def each(values: Sequence[float | None], digits: int = 0, scale: float = 1.0, missing: str = "-") -> str:
    """Return the value of each run, in the order of the seeds."""
    return ", ".join(missing if value is None else f"{scale * value:,.{digits}f}" for value in values) or missing


def reached(result: Result, accuracy: float) -> int | None:
    """Return the parameters of the first size whose last epoch has this validation accuracy."""
    return next((phase.parameters for phase in result.phases if phase.val_accuracy >= accuracy), None)


def scoring(result: Result) -> float:
    """Return the part of all counted FLOPs that went into scores."""
    cost = result.cost or {}
    return cost.get("scoring", 0) / max(1, sum(cost.values()))


def summary(results: Sequence[Result]) -> tuple[str, ...]:
    """Return one column of the table beside the paper's."""
    last = [result.phases[-1] for result in results]
    return (
        each(sorted({phase.last_epoch for phase in last})),
        each([reached(result, 0.7) for result in results], missing="not reached"),
        each([reached(result, 0.8) for result in results], missing="not reached"),
        each([tested(phase) for phase in last], 2, 100),
        each([phase.parameters for phase in last]),
        each([phase.training_flops for phase in last], 1, 1e-12),
        each([None if phase.energy_kwh is None else phase.energy_kwh for phase in last], 1, 1000),
        each([scoring(result) for result in results], 2, 100),
    )


def beside_the_paper(columns: dict[str, Sequence[Result]]) -> list[str]:
    """Return the table of grown runs beside the paper's."""
    names = (
        "epochs", "parameters at 70 % validation", "parameters at 80 % validation", "test %, last size",
        "its parameters", "training TFLOPs", "Wh, modelled", "scoring, % of all FLOPs",
    )  # fmt: skip
    kept = {name: summary(results) for name, results in columns.items() if results}
    return [
        " | ".join(["| ", "paper", *kept]) + " |",
        "| :-- |" + " --: |" * (1 + len(kept)),
        *(
            f"| {name} | {PAPER[i]} | " + " | ".join(column[i] for column in kept.values()) + " |"
            for i, name in enumerate(names)
        ),
        "",
    ]


def rung_by_rung(grown: dict[int, Result], fixed: dict[str, dict[int, Result]]) -> list[str]:
    """Return the table of sizes, grown against trained by themselves, paired by seed."""
    lines = [
        "| size | seeds | parameters, grown | fixed | epochs, grown | fixed | test %, grown | fixed | grown - fixed |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, results in fixed.items():
        pairs = [
            (min(grown[s].phases, key=lambda p: abs(p.parameters - r.phases[-1].parameters)), r.phases[-1])
            for s, r in results.items()
            if s in grown
        ]
        mine, other = [p for p, _ in pairs], [q for _, q in pairs]
        gaps = [tested(p) - tested(q) for p, q in pairs]
        cells = (
            name, str(len(pairs)),
            spread([p.parameters for p in mine], 0), spread([q.parameters for q in other], 0),
            spread([p.last_epoch for p in mine], 0), spread([q.last_epoch for q in other], 0),
            spread([tested(p) for p in mine], scale=100), spread([tested(q) for q in other], scale=100),
            spread(gaps, scale=100),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def cost_of_all(grown: dict[int, Result], fixed: dict[str, dict[int, Result]]) -> list[str]:
    """Return the table of what every size costs."""
    one = next((r.phases[-1] for results in fixed.values() for r in results.values()), None)
    if one is None:
        return []
    per = one.training_flops / (one.flops * one.last_epoch)
    costs = [run.phases[-1].training_flops for run in grown.values()]
    alone = [sum(p.flops * run.phases[-1].last_epoch * per for p in run.phases) for run in grown.values()]
    ratio = [other / cost for other, cost in zip(alone, costs, strict=True)]
    return [
        "| | seeds | training TFLOPs |",
        "| :-- | --: | --: |",
        f"| one grown run | {len(grown)} | {spread(costs, 1, 1e-12)} |",
        f"| each of its sizes by itself for as many epochs (counted) | {len(grown)} | {spread(alone, 1, 1e-12)} |",
        f"| ratio | {len(grown)} | {spread(ratio)} |",
        "",
    ]


def finished_rungs(folder: Path, grown: dict[int, Result]) -> list[str]:
    """Return the table of rungs that were trained on at their own size."""
    lines: list[str] = []
    for seed, run in grown.items():
        results = [Result.read(path) for path in sorted(folder.glob(f"finished-s{seed}-rung-*.json"))]
        for result in results:
            last = result.phases[-1]
            before = next(p for p in run.phases if p.parameters == last.parameters)
            lines.append(
                f"| {seed} | {last.parameters:,} | {100 * tested(before):.2f} | {100 * tested(last):.2f} "
                f"| {last.last_epoch} | {last.training_flops / 1e12:.1f} |"
            )
    if not lines:
        return []
    head = ["| seed | parameters | test %, as passed | finished | more epochs | their TFLOPs |"]
    return [*head, "| --: | --: | --: | --: | --: | --: |", *lines, ""]


def tables(results: Path) -> str:
    """Return all tables."""
    folder = results / "secnn"
    grown = load(folder, "natural-expansion")
    if not grown:
        raise SystemExit(f"No results of the grown net in {folder}; run auxin compare first (see README.md).")
    fixed = {
        "rung 1": load(folder, "fixed-size-of-rung-1"),
        "rung 3": load(folder, "fixed-size-of-rung-3"),
        "last, same training FLOPs": load(folder, "fixed-same-training-flops"),
        "last, same epochs": load(folder, "fixed-same-epochs"),
    }
    columns = {
        title: list(load(results / name, "natural-expansion").values())
        for title, name in {"table.yaml": "secnn", "long.yaml": "secnn-long", "goal.yaml": "secnn-goal"}.items()
    }
    parts = {
        "Grown runs beside the paper's, one value per seed.": beside_the_paper(columns),
        "Sizes of the grown run against nets of those sizes trained by themselves: mean ± sample standard deviation, "
        "paired by seed. Epochs of a rung are those of the run up to there.": rung_by_rung(grown, fixed),
        "What all sizes cost.": cost_of_all(grown, fixed),
        "Sizes trained on by `auxin ladder RUN --finish`.": finished_rungs(folder, grown),
    }
    return "\n".join("\n".join([title, "", *lines]) for title, lines in parts.items() if lines)


def replaced(text: str, block: str) -> str:
    """Return a README with its tables replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md has no place for the tables: it needs the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{block}{END}{after}"


def main() -> None:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the tables are out of date")
    options = parser.parse_args()
    readme = options.folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = replaced(text, tables(options.folder / "results"))
    if not options.check:
        readme.write_text(new, encoding="utf-8")
    elif new != text:
        sys.exit(f"{readme} is out of date: run python experiments/secnn2024/tables.py.")


if __name__ == "__main__":
    main()
