"""Growth by a list: after which epoch which groups reach which size, and where layers are added."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.similarity import model_inputs
from auxin.types import Decision, Deepen, GrowthPlan, LossFn, Widen

__all__ = ["Planned", "Step"]

NUM_CALIBRATION = 4
"""Batches that the norms of new layers are calibrated on."""
GROWN = ".grown."


@dataclass(frozen=True)
class Step:
    """What grows after one epoch.

    Attributes:
        after: Epochs trained by then, counted from 1.
        widen: Sizes to reach: name or regular expression of width groups, and units; a group that has as many stays.
        deepen: Layers to add: name or regular expression of depth sites, and how many at each.
        fresh: Share of the weights of copies of residual blocks that is drawn anew, 0 to 1; None as in ``Deepen``.
    """

    after: int
    widen: dict[str, int] = field(default_factory=dict)
    deepen: dict[str, int] = field(default_factory=dict)
    fresh: float | None = None

    def __post_init__(self) -> None:
        if type(self.after) is not int or self.after < 1:
            raise ConfigError(f"A planned step is after epoch {self.after!r}: give a whole number, 1 or more.")
        if self.fresh is not None and not (type(self.fresh) in (int, float) and 0 <= self.fresh <= 1):
            raise ConfigError(f"The step planned after epoch {self.after} has fresh {self.fresh!r}: give 0 to 1.")
        if not self.widen and not self.deepen:
            raise ConfigError(f"The step planned after epoch {self.after} does nothing: give widen or deepen.")
        for pattern, number in (*self.widen.items(), *self.deepen.items()):
            if type(number) is not int or number < 1:
                raise ConfigError(
                    f"The step planned after epoch {self.after} gives {pattern!r} {number!r}: "
                    "give a whole number, 1 or more."
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"{pattern!r}, planned after epoch {self.after}, is no regular expression: {error}."
                ) from error


class Planned:
    """Grow by a list of your own; pass it as ``trigger`` of a ``Grower``, whose method gives new units their weights.

    Groups and sites are named as ``auxin inspect`` prints them, or by a regular expression that fits the whole name.
    Layers are added after groups have been widened, so they get the new width.

    Args:
        steps: What grows when, as ``Step`` or as a mapping with its fields.

    Raises:
        ConfigError: If a step makes no sense.

    Example:
        >>> import torch, auxin
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = auxin.planned([{"after": 2, "widen": {"0": 12}, "deepen": {"1": 1}}])
        >>> grower = auxin.Grower(model, None, torch.randn(2, 4), trigger=plan)
        >>> [bool(grower.step(epoch)) for epoch in range(3)]
        [False, True, False]
        >>> model[1].grown[0].map
        Linear(in_features=12, out_features=12, bias=True)
    """

    def __init__(self, steps: Sequence[Step | Mapping[str, Any]]) -> None:
        if not steps:
            raise ConfigError("The plan is empty: give at least one step, such as {after: 10, widen: {'.*': 32}}.")
        made = []
        for step in steps:
            try:
                made.append(step if isinstance(step, Step) else Step(**step))
            except TypeError as error:
                raise ConfigError(f"A planned step has after, widen, deepen and fresh, not {step!r}.") from error
        self.steps = sorted(made, key=lambda step: step.after)
        repeated = [a.after for a, b in zip(self.steps, self.steps[1:], strict=False) if a.after == b.after]
        if repeated:
            raise ConfigError(f"Two steps are planned after epoch {repeated[0]}: write them as one.")

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> str | None:
        """Refuse: a plan also says what to grow, which takes a model."""
        raise ConfigError("planned() says what to grow as well: use it as trigger of a Grower, or call its decide.")

    def check(self, graph: Graph) -> None:
        """Refuse names that fit nothing, before hours of training lead up to them.

        Args:
            graph: The model's graph. Names inside added layers (``.grown.``) are checked when their step comes.

        Raises:
            ConfigError: If a name fits no group or site that can grow, or ``fresh`` has no copy to apply to.
        """
        for step in self.steps:
            for pattern in step.widen:
                if GROWN not in pattern.replace("\\", ""):
                    _groups(graph, pattern)
            sites = [graph.site(name) for pattern in step.deepen for name in _sites(graph, pattern)]
            if step.fresh is not None and not any(site.neutral for site in sites):
                raise ConfigError(
                    f"The step planned after epoch {step.after} has fresh, but copies no residual block: leave it out."
                )

    def decide(
        self,
        model: nn.Module,
        graph: Graph,
        *,
        epoch: int,
        loader: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
        cap: Any = None,
        generator: torch.Generator | None = None,
    ) -> Decision | None:
        """Return what the plan has after an epoch, or None where it has nothing; the model is not touched.

        Args:
            model: The model.
            graph: Its graph.
            epoch: The epoch just trained, 0 for the first.
            loader: Batches that the norms of new layers are calibrated on; None uses the example input.
            loss_fn: Not used.
            cap: Must be None: a plan says itself where growth ends.
            generator: Its seed is that of the copies' fresh weights.

        Returns:
            The decision.

        Raises:
            ConfigError: If a name fits nothing, or there is a cap.
        """
        step = next((step for step in self.steps if step.after == epoch + 1), None)
        if step is None:
            return None
        if cap is not None:
            raise ConfigError("A plan says itself where growth ends: leave until and size targets out.")
        sizes = {name: size for pattern, size in step.widen.items() for name in _groups(graph, pattern)}
        widened = [Widen(name, size - graph[name].size) for name, size in sizes.items() if size > graph[name].size]
        layers = {name: number for pattern, number in step.deepen.items() for name in _sites(graph, pattern)}
        seed = generator.initial_seed() if generator is not None else 0
        added = [
            Deepen(name, fresh=step.fresh if graph.site(name).neutral else None, seed=seed)
            for name, number in layers.items()
            for _ in range(number)
        ]
        if not widened and not added:
            return Decision(epoch, f"the sizes planned after epoch {step.after} are there already")
        winner = [f"widen {op.group} by {op.by}" for op in widened] + [f"deepen {op.site}" for op in added]
        inputs = () if loader is None or not added else islice(loader, NUM_CALIBRATION)
        return Decision(
            epoch,
            f"as planned: {len(widened)} groups wider, {len(added)} layers more",
            winner=", ".join(winner),
            plan=GrowthPlan("planned", (*widened, *added)),
            batches=tuple(model_inputs(batch, graph.example_inputs) for batch in inputs),
        )


def _groups(graph: Graph, pattern: str) -> list[str]:
    exact, all_growable = ([group.name for group in graph.growable(inexact)] for inexact in (False, True))
    fitting = _fitting(pattern, exact) or _fitting(pattern, all_growable)
    if not fitting:
        frozen = _fitting(pattern, [group.name for group in graph.groups])
        if frozen:
            raise ConfigError(f"The plan widens {pattern!r}, but {frozen[0]} cannot grow: {graph[frozen[0]].frozen}.")
        raise ConfigError(f"The plan widens {pattern!r}, which fits no width group{_close(pattern, all_growable)}.")
    return fitting


def _sites(graph: Graph, pattern: str) -> list[str]:
    names = [site.name for site in graph.sites]
    fitting = _fitting(pattern, names)
    if not fitting:
        raise ConfigError(f"The plan adds layers after {pattern!r}, which fits no depth site{_close(pattern, names)}.")
    return fitting


def _fitting(pattern: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name == pattern or re.fullmatch(pattern, name)]


def _close(pattern: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(pattern, names, 1)
    return f"; the nearest is {close[0]}" if close else "; auxin inspect lists them"
