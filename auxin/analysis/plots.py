"""Figures of one run: how it grew, what it learnt, what each size is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from auxin.analysis.curves import LayerWidths, RunRecord, pareto
from auxin.analysis.similarity import EDGES, STAGES, Distribution, of_event
from auxin.analysis.style import COLOURS, Plot, bare, new_figure, ring

MOST_PANELS = 6
MOST_LAYERS = 24

STAGE_COLOURS = {
    "before growth": COLOURS["muted"],
    "after growth": COLOURS["orange"],
    "after refinement": COLOURS["blue"],
}


def short(number: float) -> str:
    """Return a number as people say it.

    Args:
        number: Not negative.

    Returns:
        Three significant digits at most and a suffix.

    Example:
        >>> short(28666), short(9_124_160), short(950)
        ('28.7k', '9.12M', '950')
    """
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.0f}"


def span(phase: Mapping[str, Any]) -> str:
    """Return the epochs of a phase.

    Args:
        phase: With first_epoch and last_epoch, from 1.

    Returns:
        Such as "epochs 4–6" or "epoch 4".

    Example:
        >>> span({"first_epoch": 4, "last_epoch": 4})
        'epoch 4'
    """
    first, last = phase["first_epoch"], phase["last_epoch"]
    return f"epoch {first}" if first == last else f"epochs {first}–{last}"


def timeline(record: RunRecord, width: float = 1000) -> Plot:
    """Draw one ribbon per layer, as thick as the layer is wide, from its first epoch to now.

    Args:
        record: The run; needs layers.
        width: Of the figure in CSS pixels.

    Returns:
        The figure.
    """
    phases, layers = record.phases, record.layers
    rows = len(layers)
    pitch = 30 if rows <= 16 else 22 if rows <= 32 else 12
    figure = new_figure(width, rows * pitch + 64)
    axes = figure.add_subplot()
    starts, end = [phase["first_epoch"] - 1 for phase in phases], phases[-1]["last_epoch"]
    scale = 0.88 / max(max(layer.widths) for layer in layers)
    for row, layer in enumerate(layers):
        _ribbon(axes, row, layer, starts, end, scale)
    for number, start in enumerate(starts[1:], 1):
        axes.axvline(start, color=COLOURS["vermillion"], linewidth=0.9, linestyle=(0, (2, 2)), zorder=3)
        if len(starts) <= 25 or number % 5 == 0:
            axes.text(start, -0.72, str(number), color=COLOURS["vermillion"], ha="center", va="bottom", fontsize=9)
    small = 9 if pitch > 12 else 7
    every = 1 if pitch > 12 else 2
    names = [_shorten(layer.name, 26 if width > 600 else 14) for layer in layers]
    axes.set_yticks(range(0, rows, every), names[::every], fontsize=small)
    for row in range(0, rows, every):
        words = _from_to(layers[row], len(phases))
        axes.text(end * 1.01, row, words, va="center", fontsize=small, color=COLOURS["muted"])
    axes.set(xlim=(0, end), ylim=(rows - 0.4, -0.75), xlabel="epochs trained")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    added = sum(1 for layer in layers if layer.widths[0] == 0)
    deeper = (
        f" {added} of the {rows} layers were inserted on the way: their ribbons begin where they did." if added else ""
    )
    events = "The dashed lines are the growth events." if len(phases) > 1 else "The net did not grow."
    return Plot(
        figure,
        f"Width of every layer, from the input (top) to the output (bottom), over {end} epochs. A ribbon is as thick "
        f"as its layer is wide; the core was there from the start, each ring came with one event. {events}{deeper}",
    )


def _ribbon(axes: Axes, row: int, layer: LayerWidths, starts: Sequence[int], end: int, scale: float) -> None:
    ramp = 0.012 * end
    sizes = layer.widths[: len(starts)]
    # The outermost ring first, the older ones over it.
    for phase in range(len(sizes) - 1, -1, -1):
        old, now = (sizes[phase - 1] if phase else 0) * scale / 2, sizes[phase] * scale / 2
        if now <= old:
            continue
        begin, full = starts[phase], starts[phase] + (ramp if phase else 0)
        first = old if phase else now
        corners = [(begin, row - first), (full, row - now), (end, row - now)]
        corners += [(x, 2 * row - y) for x, y in reversed(corners)]
        axes.add_patch(Polygon(corners, facecolor=ring(phase, len(starts)), edgecolor="none", zorder=2))


def silhouettes(record: RunRecord, width: float = 1000) -> Plot:
    """Draw the net itself at each size: one bar per layer, from input to output, as high as the layer is wide.

    Args:
        record: The run; needs layers.
        width: Of the figure in CSS pixels.

    Returns:
        The figure.
    """
    phases, layers = record.phases, record.layers
    shown = sorted({round(i) for i in np.linspace(0, len(phases) - 1, min(len(phases), MOST_PANELS))})
    columns = min(len(shown), 6 if width > 600 else 2)
    lines = -(-len(shown) // columns)
    figure = new_figure(width, lines * (185 if width > 600 else 165))
    axes = figure.add_subplot()
    bare(axes)
    widest = max(max(layer.widths) for layer in layers)
    # One pair of axes for all panels is several times faster than one each. Depth shows too: every panel has room for
    # the layers of the last, and is filled from the left.
    across, down = len(layers) * 1.12 + 1, widest * 1.45
    for panel, index in enumerate(shown):
        left, middle = panel % columns * across, -(panel // columns) * down
        present = [layer for layer in layers if layer.widths[index] > 0]
        for phase in range(index, -1, -1):
            sizes = np.array([layer.widths[phase] for layer in present], dtype=float)
            places = left + 0.5 + np.arange(len(present))
            axes.bar(places, sizes, 0.78, middle - sizes / 2, color=ring(phase, len(phases)), linewidth=0)
        size = f"{short(phases[index]['parameters'])} parameters"
        axes.text(left, middle + widest * 0.56, size, fontweight="bold", va="bottom")
        words = f"{span(phases[index])}, {len(present)} layers"
        axes.text(left, middle - widest * 0.55, words, color=COLOURS["muted"], va="top", fontsize=9)
    axes.set(xlim=(0, columns * across - 0.5), ylim=(-(lines - 1) * down - widest * 0.72, widest * 0.72))
    rest = len(phases) - len(shown)
    skipped = f" {rest} size{'s' * (rest > 1)} between them {'are' if rest > 1 else 'is'} not shown." if rest else ""
    return Plot(
        figure,
        "The net at each size, input on the left, output on the right, one bar per layer, as high as the layer is wide "
        f"(all at one scale). The rings have the colours of the timeline.{skipped}",
    )


def loss(record: RunRecord) -> Plot:
    """Draw training and validation loss over epochs."""
    plot = new_figure(480, 290)
    axes = plot.add_subplot()
    _lines(axes, record, "loss")
    axes.set_title("Loss")
    return Plot(plot, "Cross-entropy of the training images (augmented) and of the validation images." + _marks(record))


def accuracy(record: RunRecord) -> Plot:
    """Draw training, validation and test accuracy over epochs."""
    plot = new_figure(480, 290)
    axes = plot.add_subplot()
    _lines(axes, record, "accuracy")
    tested = [phase for phase in record.phases if phase.get("test_accuracy") is not None]
    if tested:
        ends, values = [p["last_epoch"] for p in tested], [p["test_accuracy"] for p in tested]
        axes.plot(ends, values, "D", color=COLOURS["green"], markersize=5.5, label="test, per size", zorder=4)
    axes.set_title("Accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    test = " Test images are seen once, after the run, by the checkpoint of each size." if tested else ""
    return Plot(plot, "Share of the images that are classified correctly." + _marks(record) + test)


def _lines(axes: Axes, record: RunRecord, metric: str) -> None:
    epochs = record.column("epoch") + 1
    for part, name, colour in (("train", "training", "blue"), ("val", "validation", "vermillion")):
        marker = "o" if len(epochs) <= 20 else None
        axes.plot(
            epochs, record.column(f"{part}_{metric}"), color=COLOURS[colour], label=name, marker=marker, markersize=3.5
        )
    for event in record.events:
        axes.axvline(event["epoch"] + 1, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    axes.set(xlabel="epochs trained", xlim=(0, max(epochs[-1], 1) * 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)


def _marks(record: RunRecord) -> str:
    return " Dashed lines: growth events." if record.events else ""


def tradeoff(record: RunRecord, cost: str) -> Plot:
    """Draw the ladder: the validation accuracy of each size, which a choice goes by, against its cost, and its front.

    Args:
        record: The run.
        cost: "parameters" or "flops".

    Returns:
        The figure.
    """
    costs = np.array([phase[cost] for phase in record.phases], dtype=float)
    scores = np.array([phase["val_accuracy"] for phase in record.phases], dtype=float)
    front = pareto(costs, scores)
    figure = new_figure(480, 290)
    axes = figure.add_subplot()
    order = np.argsort(costs[front])
    axes.step(costs[front][order], scores[front][order], where="post", color=COLOURS["green"], linewidth=1.4)
    axes.plot(costs[front], scores[front], "o", color=COLOURS["green"], markersize=7, label="on the Pareto front")
    if not front.all():
        axes.plot(
            costs[~front], scores[~front], "o", markersize=7, markerfacecolor="none", markeredgecolor=COLOURS["muted"],
            label="matched by a smaller size",
        )  # fmt: skip
    if costs.max() > 4 * costs.min():
        axes.set_xscale("log")
    ticks = _apart(costs, log=costs.max() > 4 * costs.min())
    axes.set_xticks(ticks, [short(size) for size in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.margins(0.12, 0.18)
    name = {"parameters": "parameters", "flops": "FLOPs of one forward pass"}[cost]
    axes.set(xlabel=name)
    axes.set_title(f"Accuracy against {'parameters' if cost == 'parameters' else 'FLOPs'}")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return Plot(
        figure,
        f"The ladder: validation accuracy of each size's checkpoint against its {name}. Nothing in this run is both "
        "smaller and better than a point on the Pareto front.",
    )


def _apart(costs: np.ndarray, log: bool, share: float = 0.14) -> list[float]:
    """Return the sizes that serve as ticks: the last, and those before it whose labels do not touch the next."""
    place = np.log(costs) if log else costs
    room = share * (place.max() - place.min())
    chosen: list[int] = []
    for index in np.argsort(-place):
        if not chosen or place[chosen[-1]] - place[index] >= room:
            chosen.append(int(index))
    return [float(costs[index]) for index in reversed(chosen)]


def similarity_by_layer(entry: Mapping[str, Any], width: float = 1000) -> Plot:
    """Draw for each layer how alike its neurons were before growth, after growth and after refinement.

    Args:
        entry: One event of the run's ``similarity.json``.
        width: Of the figure in CSS pixels.

    Returns:
        The figure.
    """
    names = list(entry["layers"])
    chosen = [names[round(i)] for i in np.linspace(0, len(names) - 1, min(len(names), MOST_LAYERS))]
    columns = min(5 if width > 600 else 2, len(chosen))
    lines = -(-len(chosen) // columns)
    figure = new_figure(width, lines * 125 + 40)
    axes = figure.add_subplot()
    bare(axes)
    stages: dict[str, str] = {}
    for index, name in enumerate(chosen):
        left, bottom = index % columns * 2.25, -(index // columns) * 1.4
        found = of_event(entry, name)
        _similarity_panel(axes, found, left, bottom)
        axes.text(left - 1, bottom + 1.06, _shorten(name, 22), fontsize=9.5, fontweight="bold", va="bottom")
        if index + columns >= len(chosen):
            for value, label in ((-1, "−1"), (0, "0"), (1, "1")):
                place = left + value
                axes.text(place, bottom - 0.04, label, ha="center", va="top", fontsize=9, color=COLOURS["muted"])
        stages |= {one.label: STAGE_COLOURS[one.label] for one in found}
    axes.set(xlim=(-1.05, columns * 2.25 - 1.2), ylim=(-(lines - 1) * 1.4 - 0.22, 1.3))
    lines_of_legend = [Line2D([], [], color=stages[stage]) for stage in STAGES.values() if stage in stages]
    figure.legend(
        lines_of_legend, [stage for stage in STAGES.values() if stage in stages],
        loc="outside upper left", ncols=3, frameon=False, fontsize=9, handlelength=1.2, columnspacing=1,
    )  # fmt: skip
    where = f" {len(names) - len(chosen)} layers between them are not shown." if len(chosen) < len(names) else ""
    return Plot(
        figure,
        f"Cosine similarity of every pair of neurons of a layer, from −1 to 1, around event {entry['event']} (after "
        f"epoch {entry['epoch'] + 1}). Shaded and in numbers: the share of pairs in [−0.5, 0.5].{where}",
    )


def _similarity_panel(axes: Axes, distributions: Sequence[Distribution], left: float, bottom: float) -> None:
    """Draw distributions from -1 to 1 around ``left`` and from ``bottom`` up by 1, and their shares in [-0.5, 0.5]."""
    highest = max((one.shares.max() for one in distributions), default=0) or 1
    axes.add_patch(Rectangle((left - 0.5, bottom), 1, 1, facecolor=COLOURS["empty"], linewidth=0, zorder=0))
    axes.plot([left - 1, left + 1], [bottom, bottom], color=COLOURS["muted"], linewidth=0.8)
    for index, one in enumerate(distributions):
        colour = STAGE_COLOURS[one.label]
        axes.stairs(bottom + one.shares / highest, left + EDGES, color=colour, linewidth=1.4, baseline=None)
        share = f"{one.share_within():.0%}"
        axes.text(left - 0.97, bottom + 0.96 - 0.19 * index, share, color=colour, va="top", fontsize=9, weight="bold")


def _shorten(name: str, most: int) -> str:
    return name if len(name) <= most else "…" + name[-most + 1 :]


def _from_to(layer: LayerWidths, num_phases: int) -> str:
    # A layer that has just been inserted has not been trained at any size yet.
    sizes = [size for size in layer.widths[:num_phases] if size] or [layer.widths[-1]]
    return str(sizes[-1]) if sizes[0] == sizes[-1] else f"{sizes[0]} → {sizes[-1]}"
