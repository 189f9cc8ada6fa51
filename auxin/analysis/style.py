"""The house style of every figure: Okabe-Ito colours, one typeface size, no box around the data."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from auxin.training.checkpoint import write_atomically

COLOURS = {
    "ink": "#1d2621",
    "muted": "#66726b",
    "grid": "#dde3df",
    "empty": "#eef1ef",
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "vermillion": "#d55e00",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "ring0": "#00432f",
    "ring1": "#00664a",
    "ring2": "#0b8f6b",
    "ring3": "#45b592",
    "ring4": "#84d0b3",
    "ring5": "#b5e3d0",
}
"""Role → colour on white. The names are those of the page's CSS variables; every value occurs once, so that a figure
drawn with them can be given a dark mode afterwards. The hues are Okabe and Ito's, which all kinds of colour vision tell
apart; the rings are one hue by lightness."""

NUM_RINGS = 6

_SETTINGS: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "auxin",  # equal figures are equal files
}


@dataclass(frozen=True)
class Plot:
    """A figure and the sentence that says what it shows.

    Attributes:
        figure: The figure.
        caption: What it shows, for the page, the printed picture and people who cannot see it.
    """

    figure: Figure
    caption: str


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style while the context lasts."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; it belongs to no window and needs no closing.

    Args:
        width: In CSS pixels, 100 to the inch.
        height: The same.

    Returns:
        The figure, which arranges its axes itself.
    """
    return Figure(figsize=(width / 100, height / 100), layout="constrained")


def ring(index: int, num_rings: int) -> str:
    """Return the colour of a growth ring.

    Args:
        index: 0 is the core, what was there from the start.
        num_rings: Number of rings; more than six share colours with their neighbours.

    Returns:
        A colour of ``COLOURS``.
    """
    step = index if num_rings <= NUM_RINGS else round(index * (NUM_RINGS - 1) / (num_rings - 1))
    return COLOURS[f"ring{step}"]


def bare(axes: Axes) -> None:
    """Take spines, ticks and grid away."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def save(plot: Plot, path: Path) -> Path:
    """Write a figure with its caption underneath, as the file's suffix says.

    Args:
        plot: The figure; its caption becomes part of it.
        path: Such as ``cam.png`` or ``similarity.svg``.

    Returns:
        The path.
    """
    width = plot.figure.get_size_inches()[0]
    plot.figure.supxlabel(
        textwrap.fill(plot.caption, int(width * 15)), x=0.01, ha="left", fontsize=8.5, color=COLOURS["muted"]
    )
    file = io.BytesIO()
    with house_style():
        metadata = {"Date": None} if path.suffix == ".svg" else None
        plot.figure.savefig(file, format=path.suffix[1:], metadata=metadata, facecolor="white")
    write_atomically(path, file.getvalue())
    return path
