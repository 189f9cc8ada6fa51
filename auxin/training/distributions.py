"""``similarity.json``: how alike each layer's neurons were before growth, after growth and after refinement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from auxin.grower import Grower
from auxin.similarity import BINS, find_layers, histograms
from auxin.training.checkpoint import write_atomically


def keep_distributions(path: Path, grower: Grower, number: int, before: Mapping[str, Tensor]) -> None:
    """Add the distributions of the latest event to a run's file; those of a killed attempt at it are replaced.

    Args:
        path: The file; absent before the first event.
        grower: Of the run, right after an event.
        number: Of that event in the run, 1 is the first.
        before: State dict of the model before that event.
    """
    refined = {layer.name: layer for layer in grower.refinement.layers} if grower.refinement else {}
    layers = find_layers(grower.model, graph=grower.graph)
    earlier, now = histograms(layers, before), histograms(layers)
    entry = {
        "event": number,
        "epoch": grower.events[-1].epoch,
        "layers": {
            name: {
                "before_growth": earlier.get(name),
                "after_growth": list(refined[name].histogram_before) if name in refined else counts,
                "after_refinement": counts if name in refined else None,
            }
            for name, counts in now.items()
        },
    }
    events = [known for known in read_distributions(path) if known["event"] < number]
    write_atomically(path, (json.dumps({"bins": BINS, "events": [*events, entry]}) + "\n").encode())


def read_distributions(path: Path) -> list[dict[str, Any]]:
    """Read what ``keep_distributions`` wrote.

    Args:
        path: The file.

    Returns:
        One entry an event: its number (from 1), its epoch (from 0) and, for each layer, counts of pairs in equal bins
        from -1 to 1 before growth (None for a new layer), after growth and after refinement (None without one). Empty
        where the file is absent or not readable; damaged entries are left out.
    """
    try:
        events = list(json.loads(path.read_text(encoding="utf-8"))["events"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [event for event in events if isinstance(event, dict) and {"event", "epoch", "layers"} <= event.keys()]
