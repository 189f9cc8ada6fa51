"""What is known of the tensors of a captured graph: the data that rules state and that ``Graph`` is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from typing import Literal as OneOf

import torch
from torch import nn

from auxin.graph.axes import Axis
from auxin.types import Role

INPUT, OUTPUT = "it reaches the model's input", "it reaches the model's output"
UNUSED = "the traced forward does not use it"
"""Why axes cannot grow: the ends of the model, and what has not run or is thrown away."""


@dataclass(frozen=True)
class Value:
    """A tensor of the captured graph.

    Attributes:
        axes: One axis per dimension.
        sources: Parameters this tensor is a view or an elementwise function of, with the parameter's dimensions behind
            each of its own (several where a view joins them). Empty as soon as an activation takes part.
        layout: ``conv1d`` ... ``conv3d`` or ``linear`` for activations whose channel axis is known, else None.
    """

    axes: tuple[Axis, ...]
    sources: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = ()
    layout: str | None = None

    @property
    def pure(self) -> bool:
        """Whether only parameters, no activation, went into it."""
        return bool(self.sources)

    def with_axes(
        self, order: Sequence[int | Sequence[int] | None], axes: Sequence[Axis], layout: str | None = None
    ) -> Value:
        """Return a view whose dimension i is ``axes[i]`` and comes from this value's dimensions ``order[i]``."""
        runs = [[] if run is None else [run] if isinstance(run, int) else run for run in order]
        sources = tuple(
            (name, tuple(tuple(d for i in run for d in dims[i]) for run in runs)) for name, dims in self.sources
        )
        return Value(tuple(axes), sources, layout)


class DataSize(int):
    """A size that depends on the data, such as the number of entries that a mask selects; the number stands in."""


@dataclass(frozen=True)
class RoleTag:
    """The role an operator gives to a parameter axis, or to the part of it that ``axis`` describes."""

    parameter: str
    dim: int
    role: Role
    axis: Axis | None


@dataclass(frozen=True)
class Attribute:
    """A size that a module keeps as a Python attribute: ``index`` is its place within a tuple or dict, or None."""

    module: str
    name: str
    index: int | str | None
    axis: Axis


LiteralKind = OneOf["size", "derived", "factor", "copies"]


@dataclass(frozen=True)
class Literal:
    """A size that the forward passes as a number.

    Attributes:
        module: Path of the module whose forward does it.
        axis: The axis of that size.
        given: Whether the code gave the number, or left it open (-1).
        text: The source lines that led there, to see whether they name an attribute.
        firm: Whether only an attribute named in those lines may hold it.
        where: The operator and its line.
        kind: ``size`` of an axis as it is; ``factor`` that an axis is split into, or the one of them that the code may
            derive from the others; or number of ``copies``.
    """

    module: str
    axis: Axis
    given: bool
    text: str
    firm: bool
    where: str
    kind: LiteralKind


@dataclass
class Trace:
    """What propagation learns; ``Graph`` turns it into groups and sites."""

    model: nn.Module
    parameters: dict[str, Value] = field(default_factory=dict)
    roles: list[RoleTag] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    literals: list[Literal] = field(default_factory=list)
    costs: list[tuple[str, tuple[Axis, ...]]] = field(default_factory=list)
    normed: set[tuple[str, int]] = field(default_factory=set)
    normed_over: dict[tuple[str, int], str] = field(default_factory=dict)
    values: dict[torch.fx.Node, Any] = field(default_factory=dict)
    outputs: set[torch.fx.Node] = field(default_factory=set)
