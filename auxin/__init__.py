"""auxin: grow neural networks while they train."""

from auxin import similarity
from auxin.budgets import count, ratio
from auxin.errors import AuxinError
from auxin.expansion import Natural as natural
from auxin.graph import Graph, trace
from auxin.grower import Grower, deepen, widen
from auxin.methods import METHODS
from auxin.planned import Planned as planned
from auxin.similarity import Similarity
from auxin.surgery import History
from auxin.triggers import every, plateau
from auxin.types import Event, GrowthPlan

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AuxinError",
    "Event",
    "Graph",
    "Grower",
    "GrowthPlan",
    "History",
    "Similarity",
    "count",
    "deepen",
    "every",
    "natural",
    "planned",
    "plateau",
    "ratio",
    "similarity",
    "trace",
    "widen",
]
