"""Figure 6 and the Grad-CAM comparison: nets grown with and without the constraint, paired by seed.

For each method and seed of Table 1 (VGG16) whose two runs are finished: the share of pairs of neurons of the second
convolution whose cosine lies in [-0.5, 0.5] (the paper's figure 6) and the numbers of Grad-CAM over some test images.
Adds to results/pictures.json and writes results/figure6-METHOD[-full].svg; the table in README.md is made from the
former.

Run: python experiments/sakai2024/pictures.py runs/table1-short --data path/to/cifar10     (looks at the nets)
     python experiments/sakai2024/pictures.py                                             (only writes the table)
     python experiments/sakai2024/pictures.py --check                                     (exit code 1 if out of date)
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from auxin.analysis.curves import read_run
from auxin.analysis.gradcam import attend, choose_layer, estimate, insertion_deletion
from auxin.analysis.pictures import similarity_histograms
from auxin.analysis.similarity import of_model
from auxin.analysis.style import house_style, save
from auxin.report import as_inputs, images_of, model_of

HERE = Path(__file__).parent
RESULTS = HERE / "results"
LAYER = "features.3"
METHODS = {"Random": "random", "SSD": "ssd", "Firefly": "firefly"}
NUMBERS = {
    "share": "pairs in [-0.5, 0.5], %",
    "entropy": "Grad-CAM entropy",
    "area": "area above half, %",
    "insertion": "insertion, %",
    "deletion": "deletion, %",
}
BEGIN, END = "<!-- pictures: python experiments/sakai2024/pictures.py -->", "<!-- end of pictures -->"


def look(folder: Path, source: str | None, images: int) -> tuple[dict[str, float], Any]:
    """Return the numbers of one finished run, and the cosines of its layer."""
    record = read_run(folder)
    model = model_of(record)
    found = of_model(model, LAYER, record.name)
    data = images_of(record, source)
    order = torch.randperm(len(data.test_labels), generator=torch.Generator().manual_seed(0))[:images]
    inputs = as_inputs(data.test_images[order], data)
    maps = attend(model, inputs, choose_layer(model, inputs[:1]))
    insertion, deletion = insertion_deletion(model, inputs, maps)
    values = {"entropy": maps.entropy, "area": maps.area, "insertion": insertion, "deletion": deletion}
    return {"share": found.share_within(), **{name: estimate(v).mean for name, v in values.items()}}, found


def collect(runs: Path, source: str | None, images: int) -> list[dict[str, Any]]:
    """Return one entry per method and seed, and draw figure 6 of each method's first seed here."""
    entries, drawn, recipe = [], set(), runs.resolve().name.rpartition("-")[2]
    for title, method in METHODS.items():
        for plain in sorted(runs.glob(f"{method}-vgg16-s*")):
            other = plain.with_name(plain.name.replace(f"{method}-", f"{method}-similarity-"))
            if not all((run / "result.json").exists() for run in (plain, other)):
                continue
            (without, first), (with_, second) = (look(run, source, images) for run in (plain, other))
            seed = int(plain.name.rpartition("-s")[2])
            entry = {"recipe": recipe, "method": title, "seed": seed, "images": images}
            entries.append({**entry, "without": without, "with": with_})
            print(f"{title}, seed {seed}: {100 * without['share']:.2f} % and {100 * with_['share']:.2f} % of pairs")
            if title not in drawn:
                drawn.add(title)
                name = f"figure6-{method}" + ("" if recipe == "short" else f"-{recipe}")
                with house_style():
                    save(similarity_histograms([first, second], LAYER), RESULTS / f"{name}.svg")
    return entries


def merge(kept: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all entries, one per recipe, method and seed, in order; a new one replaces the one that was kept."""
    found = {(entry["recipe"], entry["method"], entry["seed"]): entry for entry in (*kept, *new)}
    return [found[key] for key in sorted(found)]


def spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Return mean ± sample standard deviation."""
    text = f"{mean(values):{sign}.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values):.{digits}f}"


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: with minus without, paired by seed."""
    if not entries:
        return "No pair of runs is finished yet.\n"
    lines = ["| method | n | number | without | with | with - without |", "| :-- | --: | :-- | --: | --: | --: |"]
    for recipe, title in itertools.product(sorted({e["recipe"] for e in entries}, reverse=True), METHODS):
        found = [entry for entry in entries if (entry["recipe"], entry["method"]) == (recipe, title)]
        for index, (name, heading) in enumerate(NUMBERS.items() if found else ()):
            factor = 100 if heading.endswith("%") else 1
            plain, other = ([factor * entry[key][name] for entry in found] for key in ("without", "with"))
            digits = 3 if factor == 1 else 2
            gaps = [b - a for a, b in zip(plain, other, strict=True)]
            first = (f"{title}, {recipe}", str(len(found))) if index == 0 else ("", "")
            cells = (*first, heading, spread(plain, digits), spread(other, digits), spread(gaps, digits, "+"))
            lines.append("| " + " | ".join(cells) + " |")
    count = sorted({entry["images"] for entry in entries})
    lines += [
        "",
        f"Mean ± sample standard deviation over seeds; Grad-CAM over {', '.join(map(str, count))} test images.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, help="folder of Table 1's runs")
    parser.add_argument("--data", help="where the images are; by default where the runs had them")
    parser.add_argument("--images", type=int, default=500, help="test images for Grad-CAM's numbers (default 500)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the table is out of date")
    options = parser.parse_args()
    kept = RESULTS / "pictures.json"
    if options.runs:
        if not options.runs.is_dir():
            sys.exit(f"There is no folder {options.runs}: give the one that auxin compare made for Table 1.")
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
        entries = merge(known, collect(options.runs, options.data, options.images))
        kept.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    entries = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{readme} has no place for the table: it needs the lines {BEGIN} and {END}.")
    new = f"{before}{BEGIN}\n{table(entries)}{END}{after}"
    if not options.check:
        readme.write_text(new, encoding="utf-8")
    elif new != text:
        sys.exit(f"{readme} is out of date: run python experiments/sakai2024/pictures.py.")


if __name__ == "__main__":
    main()
