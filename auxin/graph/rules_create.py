"""Propagation rules: tensors that a forward makes, and sizes that it asks for."""

from __future__ import annotations

import ast
import re
from typing import Any

from auxin.graph.axes import Axis
from auxin.graph.propagate import Propagator, rule
from auxin.graph.rules import drawn
from auxin.graph.values import DataSize, Value


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn")
def create(p: Propagator, *args: Any, **kwargs: Any) -> Value:
    """A tensor of equal or of random entries: it has the units of what it meets, if its sizes can follow."""
    sizes = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, (list, tuple))), ())
    given = _expressions(p.arguments())
    given = given if len(given) == len(sizes) else [", ".join(given)] * len(sizes)
    axes = tuple(_created(p, n, code) for n, code in zip(sizes, given, strict=True))
    if p.operator_name() in {"rand", "randn"}:
        drawn(p, axes)
    return Value(axes)


def _created(p: Propagator, size: int, code: str) -> Axis:
    """Return the axis of a size that the code passes as a number.

    It may grow if an attribute of the module holds the number, or as far as one can see a shape does.

    Args:
        p: The propagator.
        size: The size.
        code: The expression that gives it, as far as it is known.

    Returns:
        The axis.
    """
    if size < 2 or isinstance(size, DataSize):
        return p.fresh(size, None if size > 1 else "an inserted axis of size one")
    if type(p.owner()[1]).__module__.startswith("torch.nn."):  # their rules know their attributes
        return p.fresh(size)
    axis = p.fresh(size)
    p.freeze_written(size, axis)
    # Where the whole call is there to read, an attribute that it does not name is not meant.
    p.literal(size, axis, firm=bool(code))
    if code and not p.named(size):
        shaped = "shape" in code or "size(" in code
        if re.search(r"[\w)\]] *[-/]" if shaped else r"[\w)\]] *[-/+*]", code):
            p.freeze(axis, "computes its size")
        elif not shaped:
            p.unsure.append((axis, f"{p.where()} creates it, and nothing says what its size comes from"))
    return axis


def _expressions(arguments: str) -> list[str]:
    """Return the expressions that a call passes one by one, or in a first tuple or list."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
    except SyntaxError:
        return []
    given = call.args if isinstance(call, ast.Call) else []
    return [ast.unparse(x) for x in (given[0].elts if given and isinstance(given[0], (ast.Tuple, ast.List)) else given)]


@rule(
    "arange", "scalar_tensor", "linspace", "eye", "tril_indices", "triu_indices", "randint", "randperm", "tensor",
    "range",
)  # fmt: skip
def enumerate_(p: Propagator, *args: Any, **kwargs: Any) -> Any:
    """A tensor of a fixed size, whose entries depend on their position."""
    return p.frozen_like(p.node.meta["val"], f"{p.where()} creates a tensor of fixed size")


@rule("sym_size", "sym_numel", "sym_stride", "sym_storage_offset")
def sizes(p: Propagator, *args: Any) -> Any:
    """A size as a number."""
    return p.frozen_like(p.node.meta["val"], "")


@rule(
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size",
    "_set_grad_enabled",
)  # fmt: skip
def nothing(p: Propagator, *args: Any, **kwargs: Any) -> None:
    """Checks that touch no axis."""
