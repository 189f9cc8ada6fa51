"""Pictures for a few images or a few distributions: what the commands ``auxin cam`` and ``auxin similarity`` save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from torch import Tensor
from torch.nn import functional

from auxin.analysis.plots import STAGE_COLOURS
from auxin.analysis.similarity import EDGES, Distribution
from auxin.analysis.style import COLOURS, Plot, bare, new_figure

TILE = 96
"""Smallest side of a drawn image in pixels; smaller images are enlarged by a whole factor, without smoothing."""

_HEAT = matplotlib.colormaps["inferno"]


@dataclass(frozen=True, eq=False)
class Row:
    """What one run makes of some images.

    Attributes:
        label: Name of the run.
        maps: Grad-CAM, (N, H, W), 0 to 1.
        predicted: Names of the predicted classes.
        entropy: Spread of each map, (N,).
        area: Share of the image above half of the maximum, (N,).
    """

    label: str
    maps: Tensor
    predicted: Sequence[str]
    entropy: np.ndarray
    area: np.ndarray


def tile(image: Tensor, cam: Tensor | None = None) -> np.ndarray:
    """Return an image as RGB pixels, with a Grad-CAM laid over it where one is given.

    Args:
        image: uint8, (C, H, W), grey or colour.
        cam: (H, W), 0 to 1.

    Returns:
        uint8, (height, width, 3), at least ``TILE`` pixels a side.
    """
    factor = max(1, -(-TILE // min(image.shape[1:])))
    pixels = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2).permute(1, 2, 0).cpu().numpy() / 255
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    if cam is not None:
        smooth = functional.interpolate(cam[None, None].float(), size=pixels.shape[:2], mode="bilinear")[0, 0]
        heat = smooth.clamp(0, 1).cpu().numpy()
        grey = pixels.mean(2, keepdims=True) * 0.75
        pixels = grey * 0.5 + _HEAT(heat)[..., :3] * (0.2 + 0.4 * heat[..., None])
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)


def cam_grid(images: Tensor, numbers: Sequence[int], true: Sequence[str], rows: Sequence[Row], caption: str) -> Plot:
    """Draw inputs on top and one row of Grad-CAMs per run below.

    Args:
        images: uint8, (N, C, H, W).
        numbers: Index of each image in its set.
        true: Names of the true classes.
        rows: One per run.
        caption: What the grid shows.

    Returns:
        The figure.
    """
    count = len(images)
    figure = new_figure(max(130 * count + 40, 480), 145 + 185 * len(rows) + 50)
    grid = figure.subplots(len(rows) + 1, count, squeeze=False)
    for column, (image, number, name) in enumerate(zip(images, numbers, true, strict=True)):
        axes = grid[0][column]
        bare(axes)
        axes.imshow(tile(image), interpolation="nearest")
        axes.set_title(f"{name} ({number})", loc="center")
    for axes_row, row in zip(grid[1:], rows, strict=True):
        for column, axes in enumerate(axes_row):
            bare(axes)
            axes.imshow(tile(images[column], row.maps[column]), interpolation="nearest")
            right = row.predicted[column] == true[column]
            axes.set_title(
                f"{'✓' if right else '✗'} {row.predicted[column]}",
                loc="center",
                color=COLOURS["blue" if right else "vermillion"],
            )
            axes.set_xlabel(_numbers(row.entropy[column], row.area[column]), fontsize=8.5)
    for axes_row, label in zip(grid, ["input", *(row.label for row in rows)], strict=True):
        axes_row[0].set_ylabel(label, fontsize=9.5, color=COLOURS["ink"])
    return Plot(figure, caption)


def _numbers(entropy: float, area: float) -> str:
    return "empty map" if np.isnan(entropy) else f"entropy {entropy:.2f}\narea {area:.0%}"


def similarity_histograms(distributions: Sequence[Distribution], layer: str | None) -> Plot:
    """Draw distributions of pairwise similarities side by side, at one scale.

    Args:
        distributions: One panel each.
        layer: Name of the layer; None where all layers are taken together.

    Returns:
        The figure.
    """
    figure = new_figure(max(320 * len(distributions), 480), 330)
    grid = figure.subplots(1, len(distributions), squeeze=False, sharey=True)[0]
    spare = [COLOURS["blue"], COLOURS["vermillion"], COLOURS["green"]]
    for index, (axes, distribution) in enumerate(zip(grid, distributions, strict=True)):
        colour = STAGE_COLOURS.get(distribution.label) or spare[index % 3]
        axes.axvspan(-0.5, 0.5, color=COLOURS["empty"], linewidth=0, zorder=0)
        axes.stairs(distribution.shares, EDGES, fill=True, color=colour)
        axes.set_title(distribution.label)
        axes.text(
            0.03, 0.97, f"{distribution.share_within():.1%} in [−0.5, 0.5]", transform=axes.transAxes, va="top",
            fontweight="bold",
        )  # fmt: skip
        axes.set(xlim=(-1, 1), xlabel="cosine similarity of a pair")
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
        axes.margins(y=0.18)
    grid[0].set_ylabel("share of pairs")
    what = f"layer {layer}" if layer else "all layers but the classifier"
    pairs = ", ".join(f"{distribution.pairs:,}" for distribution in distributions)
    return Plot(
        figure,
        f"Cosine similarity of every pair of neurons of {what} ({pairs} pairs). The shaded band is [−0.5, 0.5]; the "
        "bars of a panel add up to 1.",
    )
