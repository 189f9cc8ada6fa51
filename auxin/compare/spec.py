"""What a comparison is: a YAML file that lists rows, sweeps and seeds, read into one configuration per row."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonargparse

from auxin.compare.checks import closest, known_only, require
from auxin.compare.layers import arguments
from auxin.compare.metrics import DEFAULT_METRICS, METRICS
from auxin.errors import ConfigError
from auxin.training import RunConfig, load_config, make_parser
from auxin.training.yaml_file import read_yaml

_SPEC_KEYS = ("name", "title", "base", "recipes", "rows", "grid", "seeds", "baseline", "published", "source", "metrics")
_ROW_KEYS = ("label", "config", "published", "baseline", "same_as")


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration that every seed runs.

    Attributes:
        label: How the table names it: the row's own label and one word per axis of the grid.
        place: The parts of that label.
        config: Its configuration; the seed and the name are those of no run yet.
        published: Metric → published value, a number or a text such as "91.60 ± 0.21".
        source: Where they were published.
        baseline: Label of the row that the paired differences are taken to, or None.
        same_as: Folder and file name of another comparison's row whose runs these are, or None for runs of its own.
    """

    label: str
    place: tuple[str, ...]
    config: RunConfig
    published: Mapping[str, float | str] = field(default_factory=dict)
    source: str = ""
    baseline: str | None = None
    same_as: tuple[str, str] | None = None

    @property
    def slug(self) -> str:
        """The label as part of a file name."""
        return slug(self.label)


@dataclass(frozen=True)
class Spec:
    """A comparison.

    Attributes:
        name: Names its folder; the recipe's name is appended where there are recipes.
        title: Heading of its tables.
        rows: What is compared.
        seeds: Each row runs once per seed.
        metrics: Columns of the table, names of ``metrics.METRICS``.
        moved: Whether ``--data`` said where the images are, so that ``data.source`` decides nothing.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    moved: bool = False


def slug(label: str) -> str:
    """Return a label as part of a file name.

    Args:
        label: Any text.

    Returns:
        Lower-case letters, digits, dots and single dashes.

    Example:
        >>> slug("Firefly + similarity, N=15")
        'firefly-similarity-n-15'
    """
    return re.sub(r"[^\w.]+", "-", label.lower()).strip("-.")


def read_spec(path: Path, recipe: str | None = None, data: Sequence[str] = ()) -> Spec:
    """Read a specification.

    Layers apply in this order, later ones winning: base, recipe, row, grid. What a row trains is what
    ``auxin train base.yaml --config row.yaml`` trains, since the same parser reads both.

    Args:
        path: The YAML file; docs/compare.md describes it.
        recipe: One of its recipes; None takes the first.
        data: ``SOURCE`` for every row, or ``NAME=SOURCE`` for the rows whose ``data.source`` is NAME.

    Returns:
        The comparison, every configuration checked.

    Raises:
        ConfigError: If something in it is unknown, missing, or contradicts itself.
    """
    try:
        document = read_yaml(path)
    except TypeError as error:  # keys are put into a set
        raise ConfigError(f"{path} has a list or mapping as a key: give every key as a word.") from error
    require(isinstance(document, Mapping), f"{path} is not a specification: it needs rows or a grid.")
    require(
        not {"model", "train", "growth"} & document.keys(),
        f"{path} is the configuration of one run, which auxin train takes; a comparison lists rows.",
    )
    known_only(document, _SPEC_KEYS, str(path))
    require(
        bool(document.get("rows") or document.get("grid")), f"{path} compares nothing: give it rows, a grid, or both."
    )
    chosen, recipe_layer = _recipe(document.get("recipes"), recipe, path)
    name = str(document.get("name", path.stem)) + (f"-{chosen}" if chosen else "")
    require(re.fullmatch(r"\w[\w.-]*", name) is not None, f"{path}: name is {name!r}, but it names a folder.")
    rows = _with_data(_rows(document, recipe_layer, f"-{chosen}" if chosen else "", path), data)
    _check_distinct(rows, path)
    return Spec(
        name=name,
        title=str(document.get("title", document.get("name", path.stem))) + (f" ({chosen})" if chosen else ""),
        rows=tuple(rows),
        seeds=_seeds(document.get("seeds", [0]), path),
        metrics=_metrics(document.get("metrics"), path),
        moved=bool(data),
    )


def _rows(document: Mapping[str, Any], recipe: list[str], suffix: str, path: Path) -> list[Row]:
    parser = make_parser()
    base = arguments(document.get("base", {}), path, "base")
    entries = document.get("rows") or [{}]
    require(isinstance(entries, list), f"{path}: rows is a list, each entry with a label and a config.")
    axes = _axes(document.get("grid") or {}, path)
    rows: list[Row] = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, row {number}"
        require(isinstance(entry, Mapping), f"{where} is not a mapping: give it a label and a config.")
        known_only(entry, _ROW_KEYS, where)
        require("label" in entry or not document.get("rows"), f"{where} has no label.")
        require(
            not axes or "published" not in entry,
            f"{where} becomes several rows through the grid: give published values at the top, under each row's label.",
        )
        own = arguments(entry.get("config", {}), path, where)
        for point in itertools.product(*axes):
            words = [str(entry["label"])] if "label" in entry else []
            place = (*words, *(label for label, _ in point))
            layers = [*base, *recipe, *own, *(word for _, fields in point for word in arguments(fields, path, where))]
            _require_no_seed(layers, where)
            label = ", ".join(filter(None, place)).replace(", +", " +")
            require(bool(slug(label)), f"{where}: the label {label!r} needs a letter or digit.")
            require(label.splitlines() == [label], f"{where}: the label {label!r} does not fit on one line.")
            config = _config(layers, parser, f'{path}, row "{label}"')
            baseline, same_as = entry.get("baseline", document.get("baseline")), entry.get("same_as")
            require(isinstance(baseline, str | None), f"{where}: baseline is {baseline!r}: give the label of a row.")
            row = Row(label, place, config, baseline=baseline, same_as=_same_as(same_as, suffix, bool(axes), where))
            rows.append(_with_published(row, entry.get("published"), document.get("source", ""), where))
    return _with_baselines(_with_table(rows, document, path), path)


def _require_no_seed(layers: Sequence[str], where: str) -> None:
    """Refuse fields that every run gets anew; a file may have them, since ``auxin train`` reads it too."""
    for fields in (json.loads(layer) for layer in layers if layer.startswith("{")):
        seeded = isinstance(fields.get("train"), Mapping) and "seed" in fields["train"]
        require(not seeded, f"{where} sets train.seed, but each row runs once per seed: list them under seeds instead.")
        require("name" not in fields, f"{where} sets name, but a run is named after its row: give the row a label.")


def _same_as(text: Any, suffix: str, gridded: bool, where: str) -> tuple[str, str] | None:
    """Return folder and file name of the runs that stand for a row's own."""
    if text is None:
        return None
    require(not gridded, f"{where} becomes several rows through the grid, so same_as cannot name the runs of each.")
    name, slash, label = str(text).partition("/")
    require(
        bool(slash and slug(label)) and re.fullmatch(r"\w[\w.-]*", name) is not None,
        f'{where}: same_as is {text!r}: give the other comparison\'s name and its row, such as "table1/Random, VGG16".',
    )
    return name + suffix, slug(label)


def _recipe(recipes: Any, wanted: str | None, path: Path) -> tuple[str | None, list[str]]:
    if not recipes:
        require(wanted is None, f"{path} has no recipes, so leave --recipe out.")
        return None, []
    require(isinstance(recipes, Mapping), f"{path}: recipes maps a name to fields, such as short: {{train.epochs: 9}}.")
    recipes = {str(name): layer for name, layer in recipes.items()}  # YAML reads the name 60 as a number
    name = next(iter(recipes)) if wanted is None else wanted
    require(name in recipes, f"{path} has no recipe {name!r}: choose one of {', '.join(recipes)}.")
    return name, arguments(recipes[name] or {}, path, f"recipe {name}")


def _axes(grid: Any, path: Path) -> list[list[tuple[str, Mapping[str, Any]]]]:
    """Return, for each axis, the labels of its points and the fields that each sets."""
    require(isinstance(grid, Mapping), f"{path}: grid maps a field, or a name of your own, to its values.")
    axes: list[list[tuple[str, Mapping[str, Any]]]] = []
    for name, values in grid.items():
        if isinstance(values, list) and values:
            short = str(name).rsplit(".", 1)[-1]
            axes.append([(v if isinstance(v, str) else f"{short}={json.dumps(v)}", {str(name): v}) for v in values])
        else:
            require(
                isinstance(values, Mapping) and len(values) > 0,
                f"{path}: grid.{name} is empty or no list: give values of a field, or labels with the fields they set.",
            )
            axes.append([("" if label is None else str(label), fields or {}) for label, fields in values.items()])
    return axes


def _config(layers: list[str], parser: jsonargparse.ArgumentParser, where: str) -> RunConfig:
    try:
        return load_config(layers, parser)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _with_published(row: Row, published: Any, source: str, where: str) -> Row:
    if not published:
        return row
    require(isinstance(published, Mapping), f"{where}: published maps a metric to its value.")
    known_only(published, (*METRICS, "source"), f"{where}, published")
    values = {str(key): value for key, value in published.items() if key != "source"}
    for name, value in values.items():
        require(type(value) in (int, float, str), f"{where}: published {name} is {value!r}: give a number or a text.")
    return replace(row, published=values, source=str(published.get("source", source)))


def _with_table(rows: list[Row], document: Mapping[str, Any], path: Path) -> list[Row]:
    published, source = document.get("published") or {}, document.get("source", "")
    require(isinstance(published, Mapping), f"{path}: published maps a row's label to its published values.")
    known_only(published, [row.label for row in rows], f"{path}, published")
    return [
        _with_published(row, published[row.label], source, f"{path}, {row.label}") if row.label in published else row
        for row in rows
    ]


def _with_baselines(rows: list[Row], path: Path) -> list[Row]:
    """Replace each row's baseline, a label or one word of it, by the label of the row that it means."""
    labels = {row.place: row.label for row in rows}
    known = set(labels.values()) | {word for row in rows for word in row.place}
    for row in rows:
        wanted = row.baseline
        require(wanted is None or wanted in known, f"{path}: there is no baseline {wanted!r}{closest(wanted, known)}")
        axes = {index for other in rows for index, word in enumerate(other.place) if word == wanted}
        require(len(axes) < 2, f"{path}: the baseline {wanted!r} is a word of two axes: give one of them another.")
    return [replace(row, baseline=_baseline(row, labels)) for row in rows]


def _baseline(row: Row, labels: Mapping[tuple[str, ...], str]) -> str | None:
    wanted = row.baseline
    if wanted is None or wanted == row.label or wanted in row.place:
        return None
    swapped = [(*row.place[:index], wanted, *row.place[index + 1 :]) for index in range(len(row.place))]
    same_but_one = next((labels[place] for place in swapped if place in labels), None)
    return same_but_one or (wanted if wanted in labels.values() else None)


def _with_data(rows: list[Row], data: Sequence[str]) -> list[Row]:
    """Replace ``data.source`` as ``--data`` says: ``SOURCE`` for all rows, or ``NAME=SOURCE`` for some."""
    names = sorted({row.config.data.source for row in rows})
    plain = [word for word in data if "=" not in word]
    require(
        not plain or (len(data) == 1 and len(names) == 1),
        f"--data SOURCE stands for one image set, and there are {', '.join(names)}: give --data NAME=SOURCE for each.",
    )
    moved = {names[0]: plain[0]} if plain else dict(word.split("=", 1) for word in data)
    known_only(moved, names, "--data")
    return [
        replace(row, config=replace(row.config, data=replace(row.config.data, source=moved[row.config.data.source])))
        if row.config.data.source in moved
        else row
        for row in rows
    ]


def _check_distinct(rows: list[Row], path: Path) -> None:
    slugs: dict[str, str] = {}
    configs: dict[str, Row] = {}
    for row in rows:
        other = slugs.get(row.slug)
        require(other is None, f'{path}: the rows "{other}" and "{row.label}" would share a folder: relabel one.')
        slugs[row.slug] = row.label
        text = json.dumps(row.config.to_dict() | {"name": ""}, sort_keys=True)
        same = configs.setdefault(text, row)
        shared = row.same_as is not None and row.same_as == same.same_as
        require(
            same is row or shared,
            f'{path}: the rows "{same.label}" and "{row.label}" are one and the same run; '
            "if that is meant, give both the same same_as.",
        )


def _seeds(seeds: Any, path: Path) -> tuple[int, ...]:
    seeds = list(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    whole = isinstance(seeds, list) and seeds and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    require(
        bool(whole) and len(set(seeds)) == len(seeds),
        f"{path}: seeds is {seeds!r}: give a list of different whole numbers, or how many.",
    )
    return tuple(seeds)


def _metrics(metrics: Any, path: Path) -> tuple[str, ...]:
    if metrics is None:
        return DEFAULT_METRICS
    require(isinstance(metrics, list) and len(metrics) > 0, f"{path}: metrics is a list of {', '.join(METRICS)}.")
    known_only(metrics, tuple(METRICS), f"{path}, metrics")
    return tuple(metrics)
