"""Decisions to grow or not, as a file and as lines of a run's output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from auxin.training.checkpoint import write_atomically


def decisions_of(grower: Any) -> list[dict[str, Any]]:
    """Return what a grower decided so far as JSON data; nothing where its trigger does not say why.

    Args:
        grower: A ``Grower``, or None.
    """
    return [decision.to_dict() for decision in getattr(grower, "decisions", ())]


def write(path: Path, decisions: Sequence[Mapping[str, Any]]) -> None:
    """Write all decisions of a run, one JSON object a line; whole each time, so a resume leaves no duplicate.

    Args:
        path: The file.
        decisions: What ``decisions_of`` returned, and the run's own.
    """
    write_atomically(path, "".join(json.dumps(decision) + "\n" for decision in decisions).encode())


def sentence(decision: Mapping[str, Any]) -> str:
    """Return a decision as one line.

    Args:
        decision: With ``epoch`` (0 is the first), ``winner`` (what grows, or None) and ``reason``, which names it.

    Returns:
        For example ``after epoch 3: no growth, validation accuracy 91.00% reached the target of 90.00%``.
    """
    epoch = decision.get("epoch")
    when = "" if epoch is None else f"after epoch {epoch + 1}: "
    return f"{when}{'growth' if decision['winner'] else 'no growth'}, {decision['reason']}"
