"""The layers of a configuration: files and fields, as arguments of the one parser that reads every configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from auxin.compare.checks import require

Layer = str | Mapping[str, Any] | Sequence[Any]
"""Part of a configuration: a file beside the specification, fields (``growth.method`` or nested), or a list of both."""


def arguments(layer: Layer, path: Path, where: str) -> list[str]:
    """Return a layer as arguments of ``auxin train``'s parser.

    Args:
        layer: The layer.
        path: The specification, beside which files are looked for.
        where: What to call the layer in an error.

    Returns:
        One ``--config`` for each of its files and fields.

    Raises:
        ConfigError: If a file is missing, or it is no layer at all.
    """
    if isinstance(layer, str):
        file = path.parent / layer
        require(file.is_file(), f"{where} names {layer}, which is no file beside {path.name}: check the path.")
        return ["--config", str(file)]
    if isinstance(layer, Mapping):
        # One by one, so that the parser merges fields of the same part.
        return [word for name, value in layer.items() for word in ("--config", json.dumps(nested(str(name), value)))]
    require(isinstance(layer, list), f"{where}: a config is a file, fields, or a list of these, not {layer!r}.")
    return [word for part in layer for word in arguments(part, path, where)]


def nested(name: str, value: Any) -> Any:
    """Return a field with a dotted name as the nested mapping that a configuration file holds.

    Args:
        name: Such as ``growth.method``.
        value: Its value.

    Returns:
        One mapping per part of the name.

    Example:
        >>> nested("growth.method", "random")
        {'growth': {'method': 'random'}}
    """
    for part in reversed(name.split(".")):
        value = {part: value}
    return value
