"""How much to grow, and where to stop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from auxin.errors import ConfigError
from auxin.graph import Graph

__all__ = ["Allocated", "Amount", "Cap", "count", "parse_cap", "ratio"]

Unit = Literal["neurons", "parameters", "flops"]
Scope = Literal["per_group", "global"]
_SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}


@dataclass(frozen=True)
class Amount:
    """A budget of neurons, parameters or FLOPs; see ``ratio`` and ``count``.

    Attributes:
        value: A fraction of what is there (ratio) or a number (count).
        relative: Whether the value is a fraction.
        of: What is counted.
        scope: Whether every group gets the amount, or all together. A fraction of the parameters or FLOPs is always one
            of the whole model's: groups share weights, so that a group has no number of its own.
        groups: Names of the groups that may grow; None means every growable one.
        allow_inexact: Whether groups whose growth changes the function take part.
        multiple_of: What the channels of a group that grows shall be a multiple of.
    """

    value: float
    relative: bool
    of: Unit = "neurons"
    scope: Scope = "per_group"
    groups: tuple[str, ...] | None = None
    allow_inexact: bool = False
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.of not in ("neurons", "parameters", "flops"):
            raise ConfigError(f"A budget counts neurons, parameters or flops, not {self.of!r}.")
        if self.scope not in ("per_group", "global"):
            raise ConfigError(f"A budget is per_group or global, not {self.scope!r}.")
        if type(self.value) not in (int, float) or not 0 < self.value < math.inf:
            raise ConfigError(f"A budget must be a number above 0, not {self.value!r}.")
        if type(self.multiple_of) is not int or self.multiple_of < 1:
            raise ConfigError(f"multiple_of must be a whole number of 1 or more, not {self.multiple_of!r}.")
        if self.multiple_of > 1 and (self.of, self.scope) != ("neurons", "per_group"):
            raise ConfigError("multiple_of rounds what each group gets: it needs of='neurons' and scope='per_group'.")

    def allocate(self, graph: Graph) -> dict[str, int]:
        """Return the number of units to add to each group; groups that stay as they are are absent."""
        sizes = self.sizes(graph)
        if not sizes:
            return {}
        if self.scope == "per_group" and (self.of == "neurons" or not self.relative):
            wanted = {name: self._alone(graph, name, size) for name, size in sizes.items()}
        elif self.of == "neurons":
            total = self.value * sum(sizes.values()) if self.relative else self.value
            wanted = _largest_remainder(sizes, round_half_up(total))
        else:
            wanted = self._together(graph, sizes)
        return {name: by for name, by in wanted.items() if by > 0}

    def sizes(self, graph: Graph) -> dict[str, int]:
        """Return the current size of every group that may grow."""
        if self.groups is None:
            return {group.name: group.size for group in graph.growable(self.allow_inexact)}
        return {name: graph[name].size for name in self.groups}

    def step(self, graph: Graph, name: str) -> int:
        """Return what the number of a group's units is to be a multiple of, so that its channels are."""
        return self.multiple_of // math.gcd(self.multiple_of, graph.channels(name))

    def _alone(self, graph: Graph, name: str, size: int) -> int:
        if self.of == "neurons":
            more = max(1, round_half_up(self.value * size)) if self.relative else round_half_up(self.value)
            return _to_multiple(size, more, self.step(graph, name))
        measure = _measure(graph, self.of)
        limit = measure({}) + self.value
        # More than proportional to the units where a group reads its own kind, so the amount is bisected.
        low, high = 0, 1
        while measure({name: size + high}) <= limit and high < 1e9:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if measure({name: size + middle}) <= limit else (low, middle)
        return low

    def _together(self, graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
        """Grow all groups by one fraction, as far as the amount of parameters or FLOPs goes."""
        measure = _measure(graph, self.of)
        now = measure({})
        limit = now * (1 + self.value) if self.relative else now + self.value
        high = 1.0
        while measure(_grown(sizes, high)) <= limit and high < 1e6:
            high *= 2
        low = 0.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if measure(_grown(sizes, middle)) <= limit else (low, middle)
        wanted = {name: size - sizes[name] for name, size in _grown(sizes, low).items()}
        return _fill(wanted, sizes, lambda units: measure(_plus(sizes, units)) <= limit)


def _to_multiple(size: int, more: int, step: int) -> int:
    """Return the addition nearest to ``more`` (at least one unit) that makes a size a multiple of a step."""
    return max(round_half_up((size + more) / step), size // step + 1) * step - size if more else 0


def _measure(graph: Graph, of: str) -> Callable[[Mapping[str, int]], float]:
    return graph.num_parameters if of == "parameters" else graph.flops


def _grown(sizes: Mapping[str, int], fraction: float) -> dict[str, int]:
    return {name: size + int(size * fraction) for name, size in sizes.items()}


def _plus(sizes: Mapping[str, int], units: Mapping[str, int]) -> dict[str, int]:
    return {name: sizes[name] + by for name, by in units.items()}


def _fill(
    units: Mapping[str, int],
    sizes: Mapping[str, int],
    fits: Callable[[Mapping[str, int]], bool],
    wish: Mapping[str, int] | None = None,
    steps: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Add a single unit (or step) to each group, smallest groups first, as long as they fit."""
    result = dict(units)
    for name in sorted(result, key=lambda n: sizes[n]):
        step = (steps or {}).get(name, 1)
        more = {**result, name: result[name] + step - (sizes[name] + result[name]) % step}
        if (wish is None or more[name] <= wish[name]) and fits(more):
            result = more
    return result


def _largest_remainder(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Split a number of units in proportion to the groups' sizes; the total is met exactly."""
    whole = sum(sizes.values())
    exact = {name: total * size / whole for name, size in sizes.items()}
    result = {name: int(share) for name, share in exact.items()}
    rest = sorted(exact, key=lambda name: result[name] - exact[name])
    for name in rest[: total - sum(result.values())]:
        result[name] += 1
    return result


def round_half_up(value: float) -> int:
    """Round to the nearest whole number, halves up (40.5 to 41), as the published sizes do."""
    return int(value + 0.5)


def ratio(
    fraction: float,
    of: Unit = "neurons",
    scope: Scope = "per_group",
    groups: Sequence[str] | None = None,
    allow_inexact: bool = False,
    multiple_of: int = 1,
) -> Amount:
    """Grow by a fraction of what is there.

    Per group and of neurons it adds at least one unit to each group, which is much where units are few and large: a
    second head, or a second group of a GroupNorm that has one, doubles its layers. A fraction of the parameters or
    FLOPs is never exceeded.

    Args:
        fraction: 0.35 adds 35 %.
        of: What is counted: neurons, parameters or FLOPs of the example forward.
        scope: ``per_group`` gives every group its fraction; ``global`` spends one amount over all groups. A fraction of
            the parameters or FLOPs is one of the whole model's, for which ``per_group`` grows all groups alike.
        groups: Names of the groups that may grow; every growable one if None.
        allow_inexact: Whether groups whose growth changes the function take part.
        multiple_of: What a group's channels become a multiple of, the nearest one above what they are; 8 or 16 suits
            the kernels of most processors. Of neurons per group only. A head counts as its ``head_dim`` channels.

    Returns:
        The budget.

    Example:
        >>> import torch, auxin
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> auxin.ratio(0.5).allocate(auxin.trace(model, torch.randn(2, 4)))
        {'0': 4}
        >>> auxin.ratio(0.5, multiple_of=16).allocate(auxin.trace(model, torch.randn(2, 4)))
        {'0': 8}
    """
    return Amount(fraction, True, of, scope, None if groups is None else tuple(groups), allow_inexact, multiple_of)


def count(
    number: float,
    of: Unit = "neurons",
    scope: Scope = "per_group",
    groups: Sequence[str] | None = None,
    allow_inexact: bool = False,
    multiple_of: int = 1,
) -> Amount:
    """Grow by a number of neurons, parameters or FLOPs.

    Args:
        number: How many.
        of: What is counted.
        scope: ``per_group`` gives the number to every group; ``global`` to all together.
        groups: Names of the groups that may grow; every growable one if None.
        allow_inexact: Whether groups whose growth changes the function take part.
        multiple_of: What a group's channels become a multiple of, the nearest one above what they are; 8 or 16 suits
            the kernels of most processors. Of neurons per group only. A head counts as its ``head_dim`` channels.

    Returns:
        The budget.

    Example:
        Seven parameters a unit: four incoming weights, a bias, two outgoing weights.

        >>> import torch, auxin
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> auxin.count(25, of="parameters", scope="global").allocate(auxin.trace(model, torch.randn(2, 4)))
        {'0': 3}
    """
    return Amount(number, False, of, scope, None if groups is None else tuple(groups), allow_inexact, multiple_of)


@dataclass(frozen=True)
class Allocated:
    """A budget that is already decided, unit by unit.

    Attributes:
        units: Number of units to add to each group.
        scope: ``global`` lets a method that ranks neurons spend the same amount on other groups.
        of: What the amount counts, for such a method.
        groups: Names of the groups it may spend it on; those of ``units`` if empty.
        cap: A size it may not exceed.
    """

    units: Mapping[str, int]
    scope: Scope = "per_group"
    of: Unit = "neurons"
    groups: tuple[str, ...] = ()
    cap: Cap | None = None

    def allocate(self, graph: Graph) -> dict[str, int]:
        """Return the units as given."""
        return dict(self.units)


@dataclass(frozen=True)
class Cap:
    """A size that growth may not exceed.

    Attributes:
        of: What is limited.
        limit: The largest number allowed.
        also: A further cap that must hold as well.
    """

    of: Unit
    limit: float
    also: Cap | None = None

    def holds(self, graph: Graph, units: Mapping[str, int]) -> bool:
        """Return whether the model stays within the cap with these units added."""
        sizes = {name: graph[name].size + by for name, by in units.items()}
        return self.allows(graph.num_parameters(sizes), graph.flops(sizes), graph.num_neurons(sizes))

    def allows(self, parameters: float, flops: float, neurons: float) -> bool:
        """Return whether a model of this many parameters, FLOPs and neurons stays within the cap."""
        size = {"parameters": parameters, "flops": flops, "neurons": neurons}[self.of]
        return size <= self.limit and (self.also is None or self.also.allows(parameters, flops, neurons))

    def clip(
        self, graph: Graph, units: Mapping[str, int], steps: Mapping[str, int] | None = None
    ) -> dict[str, int]:  # fmt: skip
        """Shrink an allocation, all groups alike, until it fits; empty if not even one unit does.

        Args:
            graph: The model's graph.
            units: Number of units to add to each group.
            steps: What the sizes of some groups are to stay multiples of.

        Returns:
            Number of units to add to each group that still grows.
        """
        if self.holds(graph, units):
            return dict(units)
        sizes, steps = {name: graph[name].size for name in units}, steps or {}

        def shrunk(by: float) -> dict[str, int]:
            wanted = {name: (sizes[name] + int(n * by), steps.get(name, 1)) for name, n in units.items()}
            return {name: max(0, size - size % step - sizes[name]) for name, (size, step) in wanted.items()}

        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.holds(graph, shrunk(middle)) else (low, middle)
        clipped = shrunk(low)
        if not self.holds(graph, clipped):
            return {}
        filled = _fill(clipped, sizes, lambda more: self.holds(graph, more), wish=units, steps=steps)
        return {name: by for name, by in filled.items() if by > 0}


def parse_number(text: str) -> float:
    """Read a number such as ``325k`` or ``1.2M``.

    Args:
        text: Digits, optionally with k, M, G or B behind.

    Returns:
        The number.

    Raises:
        ConfigError: If it is none.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*([kKmMgGbB]?)\s*", text)
    if not match:
        raise ConfigError(f"{text!r} is not a number such as 325k or 1.2M.")
    return float(match[1].replace("_", "")) * _SUFFIX[match[2].lower()]


def parse_cap(text: str) -> Cap:
    """Read a final cap such as ``params<=325k``, or several that must all hold.

    Args:
        text: ``params``, ``flops`` or ``neurons``, then ``<=`` and a number; several with commas between them.

    Returns:
        The cap.

    Raises:
        ConfigError: If the text has another form.

    Example:
        >>> parse_cap("params<=100k, flops<=20M").also
        Cap(of='flops', limit=20000000.0, also=None)
    """
    text, _, rest = text.partition(",")
    match = re.fullmatch(r"\s*(params|parameters|flops|neurons)\s*<=?\s*(.+)", text)
    if not match:
        raise ConfigError(f"until={text!r} is not understood; write for example 'params<=325k' or 'flops<=20M'.")
    of: Unit = "parameters" if match[1] in ("params", "parameters") else match[1]  # type: ignore[assignment]
    return Cap(of, parse_number(match[2]), parse_cap(rest) if rest.strip() else None)
