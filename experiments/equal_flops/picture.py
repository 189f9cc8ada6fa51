"""Accuracy against depth, trained at the final size and grown to it: results/depth/depth.svg.

Made from the results of depth.yaml.

Run: python experiments/equal_flops/picture.py
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from matplotlib.ticker import FixedLocator

from auxin.analysis.style import COLOURS, Plot, house_style, new_figure, save
from auxin.compare import gather, make_plan, read_spec

HERE = Path(__file__).parent
LINES = {
    r"60 % .* to (\d+)": ("grown from eight, 56 to 58 % of the FLOPs", "green"),
    r"Fixed (\d+)": ("fixed", "vermillion"),
}


def accuracies(results: Path = HERE / "results") -> dict[str, dict[int, list[float]]]:
    """Return the test accuracies of each line: name → number of convolutions → per cent, one per seed."""
    # Results name the place of their images, the specification a hub: that may differ.
    spec = replace(read_spec(HERE / "depth.yaml"), moved=True)
    found: dict[str, dict[int, list[float]]] = {name: {} for name, _ in LINES.values()}
    for label, runs in gather(make_plan(spec, HERE / "runs", results)).items():
        for pattern, (name, _) in LINES.items():
            values = [100 * accuracy for run in runs.values() if (accuracy := run.phases[-1].test_accuracy) is not None]
            if values and (match := re.fullmatch(pattern, label)):
                found[name][int(match[1])] = values
    return found


def draw(lines: dict[str, dict[int, list[float]]]) -> Plot:
    """Draw one line through the means and a dot per seed."""
    figure = new_figure(560, 330)
    axes = figure.subplots()
    colours = {name: COLOURS[colour] for name, colour in LINES.values()}
    for name, points in lines.items():
        depths = sorted(points)
        axes.plot(depths, [fmean(points[depth]) for depth in depths], color=colours[name], label=name)
        dots = [(depth, value) for depth in depths for value in points[depth]]
        axes.plot(*zip(*dots, strict=True), "o", color=colours[name], markersize=5, markeredgecolor="white")
    axes.xaxis.set_major_locator(FixedLocator(sorted({depth for points in lines.values() for depth in points})))
    axes.set(xlabel="3×3 convolutions of the final net", ylabel="test accuracy, %")
    axes.legend(loc="lower left", frameon=False)
    return Plot(
        figure,
        "Plain nets (VGG of width 28) on CIFAR-10 (JPEG quality 75): trained at the final size for ten epochs, and "
        "with eight convolutions for 13 to 17 epochs and all of them for two. A dot is one run.",
    )


if __name__ == "__main__":
    with house_style():
        print(save(draw(accuracies()), HERE / "results" / "depth" / "depth.svg"))
