"""What one grown run costs beside its sizes trained one by one, and how good its sizes are: results/secnn/ladder.md.

Everything is read from results/secnn/*.json, which ``auxin compare experiments/secnn2024/table.yaml`` writes.

Run: python experiments/secnn2024/ladder.py            (writes the page)
     python experiments/secnn2024/ladder.py --check    (exit code 1 if it is not up to date)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from auxin.training.result import Phase, Result

HERE = Path(__file__).parent / "results" / "secnn"
PAPER = {
    "70": "9,024 to 13,696",
    "80": "22,636 to 51,880",
    "best": "83.2 to 84.6 (mean 84.1)",
    "size": "40,960 to 74,564",
}
"""Appolinary et al. 2024, five trials of 300 epochs on the official images; the best size is beside its accuracy."""


def load(folder: Path, row: str) -> dict[int, Result]:
    """Return the results of one row by seed."""
    found = (Result.read(path) for path in sorted(folder.glob(f"{row}-s*.json")))
    return {result.seed: result for result in found}


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """Return mean ± sample standard deviation, or what there is."""
    numbers = [scale * value for value in values]
    if not numbers:
        return "-"
    shown = f"{mean(numbers):,.{digits}f}"
    return f"{shown} ± {stdev(numbers):,.{digits}f}" if len(numbers) > 1 else shown


def reached(result: Result, accuracy: float) -> int | None:
    """Return the parameters of the first size whose last epoch has this validation accuracy."""
    return next((phase.parameters for phase in result.phases if phase.val_accuracy >= accuracy), None)


def counts(values: Sequence[int | None]) -> str:
    """Return the parameters of each run, in the order of the seeds."""
    return ", ".join("not reached" if value is None else f"{value:,}" for value in values) or "-"


def one_by_one(grown: Result, per_epoch_and_flop: float) -> float:
    """Return the FLOPs of training every size of a run from scratch for as many epochs as the whole run had."""
    epochs = grown.phases[-1].last_epoch
    return sum(phase.flops * epochs * per_epoch_and_flop for phase in grown.phases)


def nearest(result: Result, parameters: int) -> Phase:
    """Return the size of a run closest to a number of parameters."""
    return min(result.phases, key=lambda phase: abs(phase.parameters - parameters))


def page(folder: Path) -> str:
    """Return the Markdown page."""
    grown = load(folder, "natural-expansion")
    fixed = {
        "rung 1": load(folder, "fixed-size-of-rung-1"),
        "rung 3": load(folder, "fixed-size-of-rung-3"),
        "last, same training FLOPs": load(folder, "fixed-same-training-flops"),
        "last, same epochs": load(folder, "fixed-same-epochs"),
    }
    runs = list(grown.values())
    if not runs:
        raise SystemExit(f"No results of the grown net in {folder}; run auxin compare first (see README.md).")
    lines = ["# One grown run", "", "Made by `python experiments/secnn2024/ladder.py` from the JSON files here.", ""]

    final = [run.phases[-1] for run in runs]
    tests = [phase.test_accuracy or 0.0 for phase in final]
    lines += [
        "| | paper, 300 epochs | here, 40 epochs |",
        "| :-- | --: | --: |",
        f"| parameters at 70 % validation | {PAPER['70']} | {counts([reached(run, 0.7) for run in runs])} |",
        f"| parameters at 80 % validation | {PAPER['80']} | {counts([reached(run, 0.8) for run in runs])} |",
        f"| test % of the last size | {PAPER['best']} | {', '.join(f'{100 * t:.2f}' for t in tests)} |",
        f"| its parameters | {PAPER['size']} | {counts([phase.parameters for phase in final])} |",
        f"| share of scoring in all FLOPs, % | - | {', '.join(f'{100 * share(run):.2f}' for run in runs)} |",
        "",
    ]

    lines += [
        "## Rung by rung against a net of that size trained by itself",
        "",
        "| size | seeds | parameters, grown | fixed | epochs, grown | fixed | test %, grown | fixed | grown - fixed |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, results in fixed.items():
        pairs = [(nearest(grown[s], r.phases[-1].parameters), r.phases[-1]) for s, r in results.items() if s in grown]
        if not pairs:
            lines.append(f"| {name} | 0 | - | - | - | - | - | - | - |")
            continue
        mine, other = [p for p, _ in pairs], [q for _, q in pairs]
        gaps = [(p.test_accuracy or 0.0) - (q.test_accuracy or 0.0) for p, q in pairs]
        lines.append(
            f"| {name} | {len(pairs)} | {spread([p.parameters for p in mine], 0)} | {other[0].parameters:,} "
            f"| {spread([p.last_epoch for p in mine], 0)} | {other[0].last_epoch} "
            f"| {spread([p.test_accuracy or 0.0 for p in mine], scale=100)} "
            f"| {spread([q.test_accuracy or 0.0 for q in other], scale=100)} | {spread(gaps, scale=100)} |"
        )
    lines += [
        "",
        "Paired by seed, mean ± sample standard deviation. Epochs of a rung are those of the run up to there.",
        "",
    ]

    some = next((r.phases[-1] for results in fixed.values() for r in results.values()), None)
    if some is not None:
        per = some.training_flops / (some.flops * some.last_epoch)
        costs = [run.phases[-1].training_flops for run in runs]
        others = [one_by_one(run, per) for run in runs]
        lines += [
            "## Cost of all sizes",
            "",
            "| | seeds | training TFLOPs |",
            "| :-- | --: | --: |",
            f"| one grown run | {len(runs)} | {spread(costs, 1, 1e-12)} |",
            f"| each of its sizes trained by itself for 40 epochs | {len(runs)} | {spread(others, 1, 1e-12)} |",
            f"| ratio | {len(runs)} | {spread([o / c for o, c in zip(others, costs, strict=True)], 2)} |",
            "",
            f"The second row is counted, not run: FLOPs of one image, times the {per:,.0f} that an epoch of a fixed "
            "run takes for each of them (forward and backward of 45,000 images).",
            "",
        ]
    return "\n".join(lines)


def share(result: Result) -> float:
    """Return the part of all counted FLOPs that went into scores."""
    cost = result.cost or {}
    return cost.get("scoring", 0) / max(1, sum(cost.values()))


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    options = parser.parse_args()
    target, text = options.folder / "ladder.md", page(options.folder)
    if not options.check:
        target.write_text(text, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        sys.exit(f"{target} is out of date: run python experiments/secnn2024/ladder.py.")


if __name__ == "__main__":
    main()
