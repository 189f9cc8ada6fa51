"""The goal, net by net: the accuracy of a fixed net of the final size for at most 60 % of its training FLOPs.

For each fixed net one grown row stands for all that spent 60 % or less: of those with most seeds, the one of highest
validation accuracy, so that the choice never sees the test images. Differences are paired by seed. The table goes
between two marks in README.md here and in the one of the repository.

Run: python experiments/equal_flops/goal.py             (writes the tables)
     python experiments/equal_flops/goal.py --check     (exit code 1 if one is out of date)
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from auxin.compare import gather, make_plan, read_spec
from auxin.compare.formats import Table, markdown
from auxin.compare.metrics import METRICS
from auxin.compare.statistics import paired, summary
from auxin.compare.tables import Results, interval, spread
from auxin.training import Result

HERE = Path(__file__).parent
READMES = (HERE / "README.md", HERE.parents[1] / "README.md")
BEGIN, END = "<!-- goal: python experiments/equal_flops/goal.py -->", "<!-- end of goal -->"
LIMIT = 0.6

NETS = (
    ("VGG, 10 convolutions of width 28", "depth.yaml", "Fixed 10"),
    ("VGG16, width 28", "vgg16-28.yaml", "Fixed trapezoid"),
    ("VGG19, width 28", "vgg19-28.yaml", "Fixed, 0.5"),
    ("VGG19, width 48", "vgg19-48.yaml", "Fixed"),
    ("VGG, 22 convolutions of width 28", "depth.yaml", "Fixed 22"),
    ("VGG, 28 convolutions of width 28", "depth.yaml", "Fixed 28"),
    ("VGG16, width 28", "vgg16-28-long.yaml", "Fixed trapezoid"),
    ("VGG19, width 28", "vgg19-28-long.yaml", "Fixed"),
    ("VGG16, width 54", "vgg16-54-long.yaml", "Fixed width 54"),
    ("ResNet-56, width 8", "resnet56.yaml", "Fixed"),
    ("ResNet-20", "resnet20.yaml", "Fixed ResNet-20"),
    ("ViT, 8 layers", "vit.yaml", "Fixed"),
)
"""What the net is called, its comparison, and the row of its final size."""


def values(runs: dict[int, Result], metric: str) -> dict[int, float]:
    """Return a number of each seed, in the unit of the tables."""
    found = {seed: METRICS[metric].read(run) for seed, run in runs.items()}
    scale = METRICS[metric].scale or 1.0
    return {seed: scale * value for seed, value in found.items() if value is not None}


def share(runs: dict[int, Result], fixed: dict[int, Result]) -> float:
    """Return the training FLOPs of some runs by those of the fixed net."""
    return fmean(values(runs, "training_flops").values()) / fmean(values(fixed, "training_flops").values())


def representative(results: Results, rows: list[str], fixed: dict[int, Result]) -> str | None:
    """Return the row that stands for those of at most 60 % of the FLOPs; None where none has run."""
    cheap = [label for label in rows if results[label] and share(results[label], fixed) <= LIMIT]
    return max(
        cheap, key=lambda label: (len(results[label]), fmean(values(results[label], "val").values())), default=None
    )


def line(net: str, spec_name: str, baseline: str) -> tuple[str, ...]:
    """Return the cells of one net."""
    # Results name the place of their images, the specification a hub: that may differ.
    spec = replace(read_spec(HERE / spec_name), moved=True)
    results = gather(make_plan(spec, HERE / "runs", HERE / "results"))
    fixed = results[baseline]
    rows = [row.label for row in spec.rows if row.baseline == baseline and row.config.growth.method is not None]
    chosen = representative(results, rows, fixed)
    if chosen is None:
        sys.exit(f"{spec_name} has no run that grew to {baseline!r} for {LIMIT:.0%} of the FLOPs: run one first.")
    grown = results[chosen]
    test, val = (
        {name: values(runs, metric) for name, runs in (("fixed", fixed), ("grown", grown))}
        for metric in ("test", "val")
    )
    difference, validation = paired(test["grown"], test["fixed"]), paired(val["grown"], val["fixed"])
    parameters = summary(list(values(fixed, "parameters").values()))
    epochs = next(row.config.train.epochs for row in spec.rows if row.label == baseline)
    return (
        net,
        spread(parameters, 0, exact=True),
        str(epochs),
        f"{100 * share(grown, fixed):.0f}",
        str(difference.n if difference else 0),
        spread(summary(list(test["fixed"].values())), 2),
        spread(summary(list(test["grown"].values())), 2),
        interval(difference, 2),
        interval(validation, 2),
    )


def table() -> str:
    """Return the table as Markdown, without a title."""
    columns = (
        "net",
        "parameters",
        "epochs",
        "% of FLOPs",
        "n",
        "fixed, test %",
        "grown, test %",
        "difference",
        "on validation images",
    )
    found = Table("", columns, tuple(line(*net) for net in NETS))
    return markdown([found]).partition("\n\n")[2]


def main() -> None:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is out of date")
    options = parser.parse_args()
    made = table()
    for readme in READMES:
        text = readme.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            sys.exit(f"{readme} has no place for the table: it needs the lines {BEGIN} and {END}.")
        new = f"{before}{BEGIN}\n{made}{END}{after}"
        if not options.check:
            readme.write_text(new, encoding="utf-8")
        elif new != text:
            sys.exit(f"{readme} is out of date: run python experiments/equal_flops/goal.py.")


if __name__ == "__main__":
    main()
