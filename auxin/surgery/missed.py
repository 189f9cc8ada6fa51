"""Sizes that the trace cannot see: the line at which a grown model fails names the attribute that did not follow.

``assert x.shape[1] == self.channels`` leaves no operator in a traced graph, and in a method that another module calls
(``self.bias.table()``) the graph does not say whose ``self.num_heads`` a number was.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import nn

from auxin.graph import Graph
from auxin.graph.axes import Atom, Axis, size_with
from auxin.graph.values import Attribute


def missed_size(error: BaseException, model: nn.Module, graph: Graph, before: Mapping[Atom, int]) -> Attribute | None:
    """Return the attribute at which a grown model fails, if it holds the size before growth of some axis.

    Args:
        error: What the grown model's forward raised.
        model: The model.
        graph: Its graph, grown.
        before: What each atom that has grown was before.

    Returns:
        The attribute, or its only entry of that size, with the axis; None where the failing line names none, or axes
        that it could stand for have grown to different sizes.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    calls = [place for place in traceback.walk_tb(error.__traceback__) if id(place[0].f_locals.get("self")) in paths]
    if not calls:
        return None
    frame, line = calls[-1]
    module = frame.f_locals["self"]
    grown = [Axis(((leaf,),)) for leaf in before]
    grown += [axis for axes in graph.axes.values() for axis in axes if size_with(axis, before) != size_with(axis, {})]
    for name in _named(frame, line):
        held = vars(module).get(name)
        meant = {size_with(axis, {}): axis for axis in grown if _place(held, size_with(axis, before))}
        if len(meant) == 1:
            axis = next(iter(meant.values()))
            return Attribute(paths[id(module)], name, _place(held, size_with(axis, before))[0], axis)
    return None


def _place(held: Any, size: int) -> tuple[int | None, ...]:
    """Return where a value holds a size: (None,) if it is the size, (i,) if only entry i is, and () otherwise."""
    if type(held) is int:
        return (None,) if held == size else ()
    if isinstance(held, (tuple, list)) and sum(type(n) is int and n == size for n in held) == 1:
        return (held.index(size),)
    return ()


def _named(frame: FrameType, line: int) -> list[str]:
    """Return the attributes of self that the statement at a line names, or the condition of the if around a raise."""
    try:
        lines, first = inspect.getsourcelines(frame.f_code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return []
    at = line - first + 1
    # ast.walk goes outside in: the statement itself comes last, and what is around it before.
    around = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= at <= _end(node)]
    if not around:
        return []
    at_fault = around[-1]
    if isinstance(at_fault, ast.Raise):
        at_fault = next((node for node in reversed(around) if isinstance(node, ast.If)), at_fault)
    condition = getattr(at_fault, "test", at_fault)  # of an assert, without its message, or of an if, without its body
    return [
        node.attr
        for node in ast.walk(condition)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    ]


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno
