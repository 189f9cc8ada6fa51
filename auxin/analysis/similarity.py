"""Pairwise cosine similarities of neurons as arrays: values, histograms, shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from auxin.errors import ConfigError
from auxin.similarity import BINS, Layer, find_layers, histograms

EDGES = np.linspace(-1, 1, BINS + 1)
"""Edges of the bins."""

STAGES = {"before_growth": "before growth", "after_growth": "after growth", "after_refinement": "after refinement"}
"""Moments of an event, in order, as the run's file and as people call them."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """How the similarities of one or more layers are distributed.

    Attributes:
        label: What it belongs to.
        counts: Pairs of neurons per bin, (BINS,).
    """

    label: str
    counts: np.ndarray

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return int(self.counts.sum())

    @property
    def shares(self) -> np.ndarray:
        """Share of the pairs in each bin, (BINS,); zeros without pairs."""
        return self.counts / max(self.pairs, 1)

    def share_within(self, limit: float = 0.5) -> float:
        """Return the share of pairs in [-limit, limit), a multiple of the bins' width; NaN without pairs.

        Args:
            limit: From 0 to 1.

        Returns:
            From 0 to 1.

        Example:
            >>> counts = np.zeros(BINS); counts[20] = 3; counts[39] = 1
            >>> Distribution("a", counts).share_within(0.5)
            0.75
        """
        inside = (EDGES[:-1] >= -limit - 1e-9) & (EDGES[1:] <= limit + 1e-9)
        return float(self.counts[inside].sum() / self.pairs) if self.pairs else float("nan")


def of_model(model: nn.Module, layer: str | None, label: str) -> Distribution:
    """Return the distribution of one layer of a model, or of all layers together.

    Args:
        model: Any module.
        layer: Path of a module; None takes all pairs of all layers but the classifier.
        label: What to call it.

    Returns:
        The distribution.

    Raises:
        ConfigError: If there is no such layer, or none at all.
    """
    layers = _choose(find_layers(model, classifier=layer is not None, depthwise=layer is not None), layer)
    return Distribution(label, sum(map(np.array, histograms(layers).values()), start=np.zeros(BINS, dtype=int)))


def of_event(entry: Mapping[str, Any], layer: str | None = None) -> list[Distribution]:
    """Return the distributions around one growth event.

    Args:
        entry: One of ``read_distributions``.
        layer: Name of a layer; None takes all together.

    Returns:
        Before growth, after growth and, where there was a refinement, after refinement; moments without pairs, such
        as those before a layer existed, are left out.

    Raises:
        ConfigError: If there is no such layer.
    """
    known = entry["layers"]
    if layer is not None and layer not in known:
        raise ConfigError(f"There is no layer {layer!r} to compare; there are: {', '.join(known)}.")
    chosen = [known[layer]] if layer is not None else list(known.values())
    if layer is None and any(stages["after_refinement"] for stages in chosen):
        chosen = [stages for stages in chosen if stages["after_refinement"]]  # the others were not refined
    found = [Distribution(STAGES[stage], _total(stages[stage] for stages in chosen)) for stage in STAGES]
    return [distribution for distribution in found if distribution.pairs]


def _total(counts: Iterable[Sequence[int] | None]) -> np.ndarray:
    return sum((np.array(row) for row in counts if row), start=np.zeros(BINS, dtype=int))


def _choose(layers: Sequence[Layer], name: str | None) -> list[Layer]:
    chosen = [layer for layer in layers if name in (None, layer.name)]
    if not chosen:
        names = ", ".join(layer.name for layer in layers) or "none with two neurons"
        raise ConfigError(f"There is no layer {name!r} with neurons to compare; there are: {names}.")
    return chosen


def table(distributions: Sequence[Distribution]) -> list[dict[str, float | str]]:
    """Return distributions as rows of a CSV: one per bin, with the share and count of each distribution.

    Args:
        distributions: What to tabulate.

    Returns:
        One mapping per bin.
    """
    return [
        {
            "from": round(float(EDGES[index]), 3),
            "to": round(float(EDGES[index + 1]), 3),
            **{f"{d.label} pairs": int(d.counts[index]) for d in distributions},
            **{f"{d.label} share": round(float(d.shares[index]), 6) for d in distributions},
        }
        for index in range(BINS)
    ]
