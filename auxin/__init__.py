"""Grow neural networks while they train: any ``torch.nn.Module``, in place, wider and deeper.

    grower = auxin.Grower(model, optimizer, example_inputs, trigger=auxin.every(10), budget=auxin.ratio(0.35))
    for epoch in range(epochs):
        train_one_epoch(model, optimizer, loader)
        grower.step(epoch)  # the Event, or None

Find what can grow: ``trace`` returns a ``Graph`` of width groups and depth sites.

Grow: ``Grower`` in a training loop; ``widen`` and ``deepen`` once, by hand. What happened is an ``Event``. ``METHODS``
are the growth methods by name; ``auxin.methods`` has their classes, whose arguments are their options. A ``GrowthPlan``
of your own, made of ``Widen`` and ``Deepen``, goes to ``Grower.apply``.

When: ``every``, ``plateau``; ``natural`` and ``planned`` also say what.

How much: ``ratio``, ``count``.

After an event: ``Similarity``, as ``Grower(refine=...)``, moves new neurons away from the old; ``similarity`` has the
same for any model.

Resume: ``History``, replayed on a fresh base model and its optimizer, gives them the grown shape.

Hand on: ``unnest`` makes inserted layers ordinary entries of the model's lists.

Errors derive from ``AuxinError``. The command line is ``auxin``, or ``python -m auxin``.
"""

from auxin import similarity
from auxin.budgets import count, ratio
from auxin.errors import AuxinError
from auxin.expansion import Natural as natural
from auxin.graph import Graph, trace
from auxin.grower import Grower
from auxin.methods import METHODS
from auxin.once import deepen, widen
from auxin.planned import Planned as planned
from auxin.similarity import Similarity
from auxin.surgery import History, unnest
from auxin.triggers import every, plateau
from auxin.types import Deepen, Event, GrowthPlan, Widen

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AuxinError",
    "Deepen",
    "Event",
    "Graph",
    "Grower",
    "GrowthPlan",
    "History",
    "Similarity",
    "Widen",
    "count",
    "deepen",
    "every",
    "natural",
    "planned",
    "plateau",
    "ratio",
    "similarity",
    "trace",
    "unnest",
    "widen",
]
