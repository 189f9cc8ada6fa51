"""Comparisons: many runs from one specification, and the tables made of them."""

from auxin.compare.plan import Run, choose, make_plan, once, threads_of
from auxin.compare.runner import run_all
from auxin.compare.spec import Row, Spec, read_spec
from auxin.compare.tables import gather, make_tables, write_tables

__all__ = [
    "Row",
    "Run",
    "Spec",
    "choose",
    "gather",
    "make_plan",
    "make_tables",
    "once",
    "read_spec",
    "run_all",
    "threads_of",
    "write_tables",
]
