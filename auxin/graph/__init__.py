"""Structure: which parameter axes hold the same units, what can grow, and why the rest cannot."""

from auxin.graph.groups import Graph
from auxin.graph.trace import trace

__all__ = ["Graph", "trace"]
