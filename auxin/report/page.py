"""``report.html``: everything about a run on one page that opens from disk, complete or while the run lasts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from auxin.analysis import plots
from auxin.analysis.curves import RunRecord, pareto, read_run
from auxin.analysis.similarity import of_event
from auxin.analysis.style import Plot, house_style
from auxin.data import ImageData
from auxin.errors import AuxinError
from auxin.report.facts import duration, facts, headline
from auxin.report.gallery import Gallery, make_gallery
from auxin.report.models import images_of
from auxin.report.svg import inline
from auxin.training.checkpoint import write_atomically

WIDE, NARROW = 1000.0, 400.0
"""Widths in CSS pixels of figures that have a variant for phones; the others are drawn at 480 for both."""

REFRESH_SECONDS = 15
"""How often the page of a running training asks for itself again."""


@dataclass(frozen=True)
class Figure:
    """A figure on the page.

    Attributes:
        pictures: Its SVG elements, one per variant.
        caption: What it shows.
    """

    pictures: list[Markup]
    caption: str


@dataclass
class Section:
    """A part of the page.

    Attributes:
        figures: What it shows.
        missing: Why it shows nothing, as a sentence; empty where it does.
        content: What else its template needs.
    """

    figures: list[Figure] = field(default_factory=list)
    missing: str = ""
    content: Any = None


def write_report(
    path: Path | str, *, data: ImageData | None = None, source: str | None = None, gallery: bool = True
) -> Path:
    """Write the page of a run into its folder, in one atomic step.

    Args:
        path: The run folder.
        data: The run's images, where they are at hand.
        source: Where the images are, if they have moved.
        gallery: Whether to compute the Grad-CAM gallery, which needs images and a model; without it the page takes a
            fraction of a second.

    Returns:
        The path of the page.

    Raises:
        ConfigError: If there is no such run, or no epoch of it is finished.
    """
    record = read_run(path)
    sections = {
        "growth": _growth(record),
        "learning": _figures(lambda: plots.loss(record), lambda: plots.accuracy(record), names=("loss", "accuracy")),
        "ladder": _ladder(record),
        "similarity": _similarity(record),
        "gradcam": _gradcam(record, data, source) if gallery else Section(missing=_later(record)),
    }
    template = _environment().get_template("page.html")
    text = template.render(
        record=record,
        sections=sections,
        headline=headline(record),
        facts=facts(record),
        config=yaml.safe_dump(record.config, sort_keys=False),
        refresh=None if record.finished else REFRESH_SECONDS,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    write_atomically(record.folder.report, text.encode())
    return record.folder.report


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("auxin.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "short": plots.short,
        "duration": duration,
        "percent": lambda value: "–" if value is None else f"{value:.2%}",
        "share": lambda value: f"{value:.1%}",
        "number": lambda value: f"{value:,}",
        "change": lambda value: f"{value:.1e}" if math.isfinite(value) else "not finite",
    }
    return environment


def _later(record: RunRecord) -> str:
    if record.finished:
        return f"Not drawn for this page; auxin report {record.name} draws it."
    return "Drawn when the run has reached its last epoch."


def _figures(*draw: Callable[[], Plot], names: tuple[str, ...], kind: str = "") -> Section:
    return Section([_figure(name, one, kind=kind) for name, one in zip(names, draw, strict=True)])


def _figure(name: str, *variants: Callable[[], Plot], kind: str = "") -> Figure:
    """Draw the variants of one figure: the first for wide screens, the second, if any, for phones."""
    pictures, caption = [], ""
    for index, draw in enumerate(variants):
        with house_style():
            plot = draw()
        caption = caption or plot.caption
        fits = ("wide", "narrow")[index] if len(variants) > 1 else kind
        pictures.append(Markup(inline(plot, f"{name}{index}", fits)))
    return Figure(pictures, caption)


def _both(name: str, draw: Callable[[float], Plot]) -> Figure:
    return _figure(name, lambda: draw(WIDE), lambda: draw(NARROW))


def _growth(record: RunRecord) -> Section:
    if not record.layers:
        if record.events:
            return Section(missing="The run's checkpoints are gone, so the width of its layers is not known.")
        return Section(missing="The net did not grow, and no checkpoint of it is left to read its layers from.")
    return Section(
        [
            _both("silhouettes", lambda width: plots.silhouettes(record, width)),
            _both("timeline", lambda width: plots.timeline(record, width)),
        ]
    )


def _ladder(record: RunRecord) -> Section:
    scores = [phase["val_accuracy"] for phase in record.phases]  # what a choice goes by
    section = _figures(
        lambda: plots.tradeoff(record, "parameters"), lambda: plots.tradeoff(record, "flops"), names=("by-p", "by-f")
    )
    on_front = pareto([phase["parameters"] for phase in record.phases], scores)
    section.content = [
        {**phase, "front": bool(front), "growing": not record.finished and index == len(record.phases) - 1}
        for index, (phase, front) in enumerate(zip(record.phases, on_front, strict=True))
    ]
    return section


def _similarity(record: RunRecord) -> Section:
    if not record.events:
        return Section(missing="The net has not grown, so there is nothing to compare before and after growth.")
    if not record.similarity:
        return Section(missing="The run was made by an auxin that did not keep similarities at its growth events.")
    section = Section([_similarity_figure(json.dumps(record.similarity[-1]))])
    section.content = [
        (known["event"], known["epoch"] + 1, {d.label: d.share_within() for d in of_event(known)})
        for known in record.similarity
    ]
    return section


@lru_cache(maxsize=4)
def _similarity_figure(entry: str) -> Figure:
    # The slowest figure, and it changes at events only.
    return _both("similarity", lambda width: plots.similarity_by_layer(json.loads(entry), width))


def _gradcam(record: RunRecord, data: ImageData | None, source: str | None) -> Section:
    if not record.finished:
        return Section(missing=_later(record))
    last = len(record.events)
    shown = {0, last} if len(record.phases) == last + 1 else {last}  # a damaged rung is left out
    sizes = {rung: plots.short(record.phases[rung if rung != last else -1]["parameters"]) for rung in sorted(shown)}
    try:
        found: Gallery = make_gallery(record, data if data is not None else images_of(record, source), sizes)
    except AuxinError as error:
        if source:
            raise
        return Section(missing=str(error))
    return Section(content=found)
