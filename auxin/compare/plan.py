"""Which runs a comparison needs, and which of them are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from auxin.compare.spec import Row, Spec, slug
from auxin.errors import ConfigError
from auxin.training import Result, RunConfig, RunFolder, load_config, make_parser
from auxin.training.begun import read_config
from auxin.training.growth import written_out

State = Literal["done", "begun", "missing"]

_NEVER_COMPARED = frozenset({"name", "train.threads", "train.device", "train.energy"})
"""Settings that say who computes and what is measured, not what is trained; a result tells its own hardware."""

_FILLED_IN = ("num_classes", "in_channels", "image_size")
"""Arguments of a model that a run takes from its images."""

_BEFORE: Mapping[str, Mapping[str, Any]] = {name: {"asymmetry": 0.0} for name in ("net2net", "splitting", "firefly")}
"""Settings of growth methods that came later, with the value that means what the method did without them."""


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Attributes:
        row: The row.
        config: Its configuration, name and seed included.
        folder: The run's folder; ``auxin resume`` understands it.
        kept: Where the result is copied to, or None.
        moved: Whether ``data.source`` may differ from what the result says.
    """

    row: Row
    config: RunConfig
    folder: RunFolder
    kept: Path | None
    moved: bool = False

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.train.seed

    @property
    def name(self) -> str:
        """Name of the run's folder and of its result."""
        return self.config.name

    @property
    def finished(self) -> Path | None:
        """Its result: the kept one where there is one, else that of the run's folder, else None."""
        return next((path for path in (self.kept, self.folder.result) if path is not None and path.exists()), None)

    @property
    def state(self) -> State:
        """Whether it is finished, can be gone on with, or must start."""
        if self.finished:
            return "done"
        return "begun" if self.folder.last.exists() else "missing"

    def result(self) -> Result | None:
        """Return what it reached, or None as long as it is not finished."""
        path = self.finished
        return Result.read(path) if path else None


def make_plan(spec: Spec, out: Path, results: Path | None = None) -> list[Run]:
    """List the runs of a comparison, seed by seed, so that whole tables with few seeds come first.

    Args:
        spec: The comparison.
        out: Folder of all runs; these go to ``out/NAME/ROW-sSEED``, NAME and ROW those of ``same_as`` if given.
        results: Folder that results are copied to, as ``results/NAME/ROW-sSEED.json``.

    Returns:
        Every run, finished or not.

    Raises:
        ConfigError: If a run that is there was made with another configuration.
    """
    runs = []
    for seed in spec.seeds:
        for row in spec.rows:
            home, stem = row.same_as or (spec.name, row.slug)
            name = f"{stem}-s{seed}"
            config = replace(row.config, name=name, train=replace(row.config.train, seed=seed))
            kept = results / home / f"{name}.json" if results else None
            runs.append(Run(row, config, RunFolder(out / home / name), kept, spec.moved))
    for run in runs:
        check(run)
    return runs


def threads_of(config: RunConfig, share: int) -> int:
    """Return the CPU threads of a run: its share of the cores, or ``train.threads`` if that is fewer.

    Args:
        config: The run.
        share: Cores that it may have.

    Returns:
        At least 1.
    """
    return min(share, config.train.threads or share)


def once(runs: Sequence[Run]) -> list[Run]:
    """Return each run once, where rows share it through ``same_as``.

    Args:
        runs: Of any rows.

    Returns:
        The first of those with one folder.
    """
    first: dict[Path, Run] = {}
    for run in runs:
        first.setdefault(run.folder.path, run)
    return list(first.values())


def choose(runs: Sequence[Run], only: Sequence[str], seeds: Sequence[int] = ()) -> list[Run]:
    """Return the runs of some rows and seeds.

    Args:
        runs: All.
        only: Labels, slugs, or single words of labels; none of them chooses all.
        seeds: Seeds; none chooses all.

    Returns:
        Those that one of the words means, with one of the seeds.

    Raises:
        ConfigError: If a word or a seed means none.
    """
    for word in only:
        if not any(_means(word, run.row) for run in runs):
            labels = ", ".join(dict.fromkeys(f'"{run.row.label}"' for run in runs))
            raise ConfigError(f"--only {word} means no row: choose among {labels}.")
    known = sorted({run.seed for run in runs})
    for seed in seeds:
        if seed not in known:
            raise ConfigError(f"--seed {seed} means no run: the comparison has the seeds {', '.join(map(str, known))}.")
    named = [run for run in runs if not only or any(_means(word, run.row) for word in only)]
    return [run for run in named if not seeds or run.seed in seeds]


def _means(word: str, row: Row) -> bool:
    return word in (row.label, *row.place) or slug(word) == row.slug


def check(run: Run) -> None:
    """Compare the configuration of a run that is there with the one that is wanted.

    Args:
        run: The run.

    Raises:
        ConfigError: If they differ, with the first field that does.
    """
    path = run.finished
    if path is not None:
        found = _as_it_was(Result.read(path).config)
    elif run.folder.config.exists():
        path = run.folder.config
        found = read_config(path)
    else:
        return
    difference = first_difference(run.config, found, ignore_source=run.moved)
    if difference:
        raise ConfigError(
            f"{path} was made with another configuration ({difference}): remove it, "
            "or give the changed comparison another name."
        )


def _as_it_was(config: dict[str, Any]) -> dict[str, Any]:
    """Name what a method did before it had a setting whose default does something; newer results name it themselves."""
    growth = config.get("growth", {})
    before = _BEFORE.get(growth.get("method"), {})
    return {**config, "growth": {**growth, "kwargs": {**before, **growth.get("kwargs", {})}}}


def first_difference(wanted: RunConfig, found: Mapping[str, Any], ignore_source: bool = False) -> str | None:
    """Return the first field in which a run differs from what is wanted.

    Args:
        wanted: What the specification says.
        found: The run's configuration as plain data; fields that came later have their defaults, and so have settings
            of the growth method that are not named.
        ignore_source: Whether ``data.source`` may differ.

    Returns:
        Such as "train.epochs is 3 and should be 4", or None if the two are the same run.
    """
    try:
        known = load_config(["--config", json.dumps(found)], _parser())
    except ConfigError as error:
        return str(error).rstrip(".")
    ours, theirs = (_flat(replace(config, growth=written_out(config.growth)).to_dict()) for config in (wanted, known))
    for name in _FILLED_IN:
        if f"model.kwargs.{name}" not in ours:
            theirs.pop(f"model.kwargs.{name}", None)
    if ours["train.precision"] == "auto":
        theirs["train.precision"] = "auto"  # it has become what its hardware is fast at
    ignored = _NEVER_COMPARED | ({"data.source"} if ignore_source else set())
    for name in (*ours, *theirs):
        if name not in ignored and ours.get(name) != theirs.get(name):
            return f"{name} is {json.dumps(theirs.get(name))} and should be {json.dumps(ours.get(name))}"
    return None


@cache
def _parser() -> jsonargparse.ArgumentParser:
    return make_parser()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
