"""Sizes that a module only checks: ``assert x.shape[1] == self.channels`` leaves no operator in a traced graph."""

from __future__ import annotations

import ast
import inspect
import textwrap
import traceback
from collections.abc import Mapping
from types import FrameType

from torch import nn

from auxin.graph import Graph
from auxin.graph.axes import Atom, size_with
from auxin.graph.propagate import Attribute


def asserted_size(error: BaseException, model: nn.Module, graph: Graph, before: Mapping[Atom, int]) -> Attribute | None:
    """Return the attribute that a grown model's failed check compares with, if it holds the size before growth.

    Args:
        error: What the grown model's forward raised.
        model: The model.
        graph: Its graph, grown.
        before: What each atom that has grown was before.

    Returns:
        The attribute with the axis whose size it held, or None where the error is another one, or axes that it could
        stand for have grown to different sizes.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    calls = [place for place in traceback.walk_tb(error.__traceback__) if id(place[0].f_locals.get("self")) in paths]
    if not calls:
        return None
    frame, line = calls[-1]
    module = frame.f_locals["self"]
    for name in _compared(frame, line):
        held = vars(module).get(name)
        axes = {
            size_with(axis, {}): axis
            for all_axes in graph.axes.values()
            for axis in all_axes
            if type(held) is int and held == size_with(axis, before) != size_with(axis, {})
        }
        if len(axes) == 1:
            return Attribute(paths[id(module)], name, None, next(iter(axes.values())))
    return None


def _compared(frame: FrameType, line: int) -> list[str]:
    """Return the attributes of self in the condition of the ``assert``, or of the ``if`` that raises, at a line."""
    try:
        lines, first = inspect.getsourcelines(frame.f_code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return []
    at = line - first + 1
    around = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= at <= _end(node)]
    # ast.walk goes outside in: the statement itself comes last, and an if that raises is around it.
    tests = [node.test for node in around if isinstance(node, (ast.Assert, ast.If))]
    if not tests or not isinstance(around[-1], (ast.Assert, ast.Raise)):
        return []
    return [
        node.attr
        for node in ast.walk(tests[-1])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    ]


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno
