"""A run that was begun: the configuration that it goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from auxin.errors import ConfigError
from auxin.training import checkpoint as checkpoints
from auxin.training.config import RunConfig, load_config
from auxin.training.folder import RunFolder


def config_of(folder: RunFolder, settings: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a run: that of its newest checkpoint, or of ``config.yaml`` before the first.

    Args:
        folder: Of the run.
        settings: Command-line arguments, such as ``["--optimizer.lr", "0.05"]``, that win over it.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If there is none, it is not whole, or a setting is not known.
    """
    found = checkpoints.load(folder.last).config if folder.last.exists() else _whole(folder.config)
    return load_config(["--config", yaml.safe_dump(found), *settings])


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the settings that a resume changed.

    Args:
        before: A configuration as plain data; a setting that it lacks is newer and no change.
        now: The same, later.

    Returns:
        Such as ``{"optimizer.lr": [0.1, 0.05]}``: name → before and after.

    Example:
        >>> changes({"name": "a", "train": {"epochs": 3}}, {"name": "a", "train": {"epochs": 5, "seed": 0}})
        {'train.epochs': [3, 5]}
    """
    found = {}
    for part, values in now.items():
        for name, value in values.items() if isinstance(values, Mapping) else ():
            old = before.get(part, {}).get(name, value)
            if old != value:
                found[f"{part}.{name}"] = [old, value]
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's ``config.yaml``.

    Args:
        path: The file.

    Returns:
        Its content as plain data, with its parts.

    Raises:
        ConfigError: If it cannot be read or is damaged.
    """
    try:
        found = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: restore it, or begin a new run.") from error
    parts = ("data", "model", "train", "growth")
    if not isinstance(found, dict) or not all(isinstance(found.get(part), Mapping) for part in parts):
        raise ConfigError(f"{path} is not the configuration of a run: restore it, or begin a new run.")
    return found


def _whole(path: Path) -> dict[str, Any]:
    """Return the content of a ``config.yaml`` that lacks nothing: with a truncated one, a run would take defaults."""
    found = read_config(path)
    known = _names(found)
    missing = [name for name in _names(RunConfig().to_dict()) if name not in known]
    if missing:
        raise ConfigError(f"{path} is incomplete, since it lacks {missing[0]}: remove the folder and begin a new run.")
    return found


def _names(config: Mapping[str, Any]) -> list[str]:
    return [f"{part}.{name}" for part, values in config.items() if isinstance(values, Mapping) for name in values]
