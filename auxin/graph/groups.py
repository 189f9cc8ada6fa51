"""The graph a user holds: width groups, depth sites, sizes, and what each would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from math import prod
from typing import Any

import torch

from auxin.errors import ConfigError
from auxin.graph.axes import Atom, Axis, gather_index, is_frozen, size_with
from auxin.graph.naming import GROWN
from auxin.graph.values import RoleTag, Trace
from auxin.types import DepthSite, Role, Slot, WidthGroup

PRIORITY: tuple[Role, ...] = ("consumer", "producer", "bias", "scale", "shift", "mean", "variance", "raw")
BUFFERS = ("mean", "variance", "mask", "repeated")
"""Roles that say how a buffer is extended."""

_GENERIC = frozenset({"out_features", "out_channels", "in_features", "in_channels", "num_features"})
"""Attributes of torch's own layers, which say nothing of the units' part."""


class Graph:
    """What can grow in a model, and why the rest cannot.

    Made by ``auxin.trace``. It holds structure only: names, axes and sizes, no weights. Surgery keeps it up to date.
    """

    def __init__(
        self,
        example_inputs: Any,
        axes: Mapping[str, tuple[Axis, ...]],
        trainable: frozenset[str],
        found: Trace,
        sites: Sequence[tuple[DepthSite, Axis]],
        untrained: Set[str],
        masks: Set[str],
        repeated: Set[tuple[str, int]],
    ) -> None:
        self.example_inputs = example_inputs
        self.axes = dict(axes)
        self.parameters = trainable
        self.attributes = tuple(a for a in found.attributes if not is_frozen(a.axis))
        self.costs = tuple(found.costs)
        self._sites = tuple(sites)
        self._normed, self._normed_over = found.normed, found.normed_over
        self._masks, self._repeated = masks, repeated
        self._tags: dict[tuple[str, int], list[RoleTag]] = {}
        for tag in found.roles:
            self._tags.setdefault((tag.parameter, tag.dim), []).append(tag)
        self._atoms: dict[str, Atom] = {}
        self._slots: dict[str, tuple[Slot, ...]] = {}
        self._collect(untrained)

    # Groups

    def _collect(self, untrained: Set[str]) -> None:
        places: dict[Atom, list[tuple[str, int]]] = {}
        for name, axes in self.axes.items():
            for dim, axis in enumerate(axes):
                for leaf in axis.atoms():
                    if (name, dim) not in places.setdefault(leaf, []):
                        places[leaf].append((name, dim))
        anchors: dict[tuple[str, int], list[Atom]] = {}
        slots: dict[Atom, tuple[Slot, ...]] = {}
        for leaf, found in places.items():
            slots[leaf] = tuple(Slot(name, dim, self._role(name, dim, leaf)) for name, dim in found)
            anchor = next((s for s in slots[leaf] if self._produces(s)), slots[leaf][0])
            anchors.setdefault((anchor.parameter, anchor.dim), []).append(leaf)
            for slot in slots[leaf]:
                if slot.role != "consumer":  # where new entries are not zero
                    leaf.inexact = leaf.inexact or self._normed_over.get((slot.parameter, slot.dim))
                if slot.parameter not in self.parameters and slot.role not in BUFFERS:
                    leaf.frozen = leaf.frozen or f"nothing says how to extend the buffer {slot.parameter}"
            if len(slots[leaf]) == 1 and slots[leaf][0].role == "raw" and not leaf.inexact:
                leaf.frozen = leaf.frozen or "nothing in the traced forward reads it"
            tied = next((slot.parameter for slot in slots[leaf] if self._is_tied(slot)), None)
            if tied and not any(slot.role == "producer" for slot in slots[leaf]):
                leaf.inexact = leaf.inexact or f"{tied} both computes and reads it, so that units of zeros never learn"
            readers = {slot.parameter for slot in slots[leaf] if slot.role == "consumer"}
            if readers and readers <= untrained:
                leaf.frozen = leaf.frozen or f"what reads it is not trained ({min(readers)}.requires_grad is False)"
        names: dict[Atom, str] = {}
        # Groups that can grow get the plain names.
        for leaf in sorted(slots, key=lambda leaf: (leaf.frozen is not None, leaf.inexact is not None)):
            (parameter, dim), leaves = next(item for item in anchors.items() if leaf in item[1])
            position = leaves.index(leaf) if len(leaves) > 1 else None
            names[leaf] = self._group_name(parameter, dim, slots[leaf], leaf, position, set(names.values()))
        for leaf in slots:
            self._atoms[names[leaf]] = leaf
            self._slots[names[leaf]] = slots[leaf]

    def _role(self, name: str, dim: int, leaf: Atom) -> Role:
        tags = self._tags.get((name, dim), [])
        special = [tag for tag in tags if tag.axis is not None and leaf in set(tag.axis.atoms())]
        roles = {tag.role for tag in (special or [tag for tag in tags if tag.axis is None])}
        role: Role = next((role for role in PRIORITY if role in roles), "raw")
        if name in self._masks:
            return "mask"
        # Nothing silences a new unit that a buffer alone reads.
        return "repeated" if (name, dim) in self._repeated and role in ("producer", "raw") else role

    def _produces(self, slot: Slot) -> bool:
        """Return whether an axis computes its units, even if it also consumes them (a tied embedding)."""
        return any(tag.role == "producer" for tag in self._tags.get((slot.parameter, slot.dim), []))

    def _group_name(
        self, parameter: str, dim: int, slots: tuple[Slot, ...], leaf: Atom, position: int | None, taken: set[str]
    ) -> str:
        module = parameter.rpartition(".")[0]
        whole = Axis(((leaf,),))
        labels = [a.name if a.index is None else a.index for a in self.attributes if _is_atom(a.axis, whole)]
        label = next((label for label in labels if isinstance(label, str) and label not in _GENERIC), position)
        if not any(self._produces(slot) for slot in slots):
            name = f"{parameter}[{dim}]"
        else:
            name = module or parameter
            if position is not None:
                name += f"[{label}]"
        unique, n = name, 2
        while unique in taken:
            unique, n = f"{name}#{n}", n + 1
        return unique

    @property
    def groups(self) -> tuple[WidthGroup, ...]:
        """Every width group, frozen ones included, in the order of the model's parameters."""
        return tuple(self[name] for name in self._atoms)

    def __getitem__(self, name: str) -> WidthGroup:
        leaf = self.atom(name)
        return WidthGroup(name, leaf.size, self._slots[name], leaf.frozen, leaf.inexact)

    def growable(self, allow_inexact: bool = False) -> tuple[WidthGroup, ...]:
        """Return the groups that can grow; with ``allow_inexact`` also those whose growth changes the function."""
        return tuple(group for group in self.groups if not group.frozen and (allow_inexact or group.inexact is None))

    def atom(self, name: str) -> Atom:
        """Return the atom behind a group's name.

        Args:
            name: The group's name.

        Returns:
            The atom.

        Raises:
            ConfigError: If there is no such group.
        """
        if name not in self._atoms:
            growable = ", ".join(group.name for group in self.growable()) or "none"
            raise ConfigError(f"There is no width group {name!r}; the groups that can grow are: {growable}.")
        return self._atoms[name]

    @property
    def sites(self) -> tuple[DepthSite, ...]:
        """Every depth site, in the order of the forward."""
        return tuple(replace(site, channels=axis.size) for site, axis in self._sites)

    def site(self, name: str) -> DepthSite:
        """Return the depth site with this name.

        Args:
            name: Path of the module that the block will follow.

        Returns:
            The site.

        Raises:
            ConfigError: If there is no such site.
        """
        for site in self.sites:
            if site.name == name:
                return site
        known = ", ".join(site.name for site in self.sites) or "none"
        raise ConfigError(f"There is no depth site {name!r}; the sites are: {known}.")

    def positions(self, group: str, slot: Slot, unit: int) -> list[int]:
        """Return the indices along ``slot.dim`` that belong to one unit of a group."""
        leaf = self.atom(group)
        kept = torch.arange(leaf.size)
        kept[unit] = -1
        return (gather_index(self.axes[slot.parameter][slot.dim], {leaf: kept}) < 0).nonzero().flatten().tolist()

    def new_positions_from(self, group: str, slot: Slot, parents: Sequence[int]) -> list[int]:
        """Return, for each new index along ``slot.dim`` if units copied ``parents``, the old index it would copy."""
        leaf = self.atom(group)
        old, axis = torch.arange(leaf.size), self.axes[slot.parameter][slot.dim]
        copied = gather_index(axis, {leaf: torch.cat([old, torch.tensor(parents)])})
        kept = gather_index(axis, {leaf: torch.cat([old, torch.full((len(parents),), -1)])})
        return copied[kept < 0].tolist()

    def channels(self, group: str) -> int:
        """Return how many channels of its narrowest layer a unit is: 1 for a neuron, ``head_dim`` for a head."""
        leaf = self.atom(group)
        axes = [self.axes[slot.parameter][slot.dim] for slot in self[group].slots]
        return min(size_with(axis, {leaf: leaf.size + 1}) - axis.size for axis in axes)

    def reads_what_it_writes(self, group: str) -> bool:
        """Return whether one parameter axis both computes and reads the group's units (a tied embedding)."""
        return any(self._is_tied(slot) for slot in self[group].slots)

    def _is_tied(self, slot: Slot) -> bool:
        return {"producer", "consumer"} <= {tag.role for tag in self._tags.get((slot.parameter, slot.dim), [])}

    def norms_fan_in(self, group: str) -> bool:
        """Return whether the norm of the units' incoming weights is taken (weight norm), which zeros may not have."""
        return any((slot.parameter, slot.dim) in self._normed for slot in self[group].slots if self._produces(slot))

    def norms_fan_out(self, group: str) -> str | None:
        """Return what takes the norm of the weights that read the units, or None: shares of a weight change it."""
        return next(
            (why for slot in self[group].slots if (why := self._normed_over.get((slot.parameter, slot.dim)))), None
        )

    def why_not_copied(self, group: str) -> str | None:
        """Return why copies of a group's units would change the function, or None if they need not."""
        if self.reads_what_it_writes(group):
            return "is read through the axis that writes it"
        if self.norms_fan_out(group):
            return "is read by weights whose norm the forward takes (weight norm), which copies would share"
        return None

    # Sizes and cost

    def _overrides(self, sizes: Mapping[str, int] | None) -> dict[Atom, int]:
        return {self.atom(name): size for name, size in (sizes or {}).items()}

    def num_parameters(self, sizes: Mapping[str, int] | None = None) -> int:
        """Return the number of parameters, optionally with some groups at other sizes."""
        other = self._overrides(sizes)
        return sum(prod(size_with(axis, other) for axis in self.axes[name]) for name in self.parameters)

    def num_neurons(self, sizes: Mapping[str, int] | None = None) -> int:
        """Return the number of units of all groups that can grow, inexactly growing ones included.

        Args:
            sizes: Other sizes for some groups.
        """
        return sum((sizes or {}).get(group.name, group.size) for group in self.growable(allow_inexact=True))

    def flops(self, sizes: Mapping[str, int] | None = None, within: str = "") -> int:
        """Return the FLOPs of one forward of the example inputs, optionally with some groups at other sizes.

        Convolutions, matrix products and attention are counted, a multiply and an add as two, as
        ``torch.utils.flop_counter`` does.

        Args:
            sizes: Other sizes of some groups.
            within: Path of a module, to count what it does alone, without blocks inserted after it.
        """
        other = self._overrides(sizes)
        costs = (axes for path, axes in self.costs if not within or _is_own(path, within))
        return sum(2 * prod(size_with(axis, other) for axis in axes) for axes in costs)

    def __str__(self) -> str:
        rows = []
        for group in self.groups:
            if group.frozen and ("kernel size" in group.frozen or group.size == 1):
                continue
            state = f"frozen: {group.frozen}" if group.frozen else f"inexact: {group.inexact}" if group.inexact else ""
            slots = ", ".join(f"{s.parameter}[{s.dim}] {s.role}" for s in group.slots)
            rows.append((group.name, group.size, slots, state))
        width = max((len(row[0]) for row in rows), default=0)
        free = sum(not row[3] for row in rows)
        lines = [f"{self.num_parameters():,} parameters, {self.flops():,} FLOPs for the example input"]
        lines.append(f"{free} width groups can grow; {len(rows) - free} cannot, for the reason given:")
        for name, size, slots, state in rows:
            lines.append(f"  {name:<{width}}  {size:>5}  {state or slots}")
        lines.append(f"{len(self.sites)} depth sites, after:")
        for site in self.sites:
            norm = " + BatchNorm" if site.norm else ""
            block = "copy of the residual block" if site.neutral else f"{site.kind}{norm} + {site.activation}"
            lines.append(f"  {site.name:<{width}}  {site.channels:>5}  {block}")
        return "\n".join(lines)


def _is_own(path: str, module: str) -> bool:
    """Return whether a path lies in a module but not in a block inserted after it."""
    return path == module or (path.startswith(f"{module}.") and not path.startswith(f"{module}.{GROWN}."))


def _is_atom(axis: Axis, whole: Axis) -> bool:
    leaves = list(axis.atoms())
    return len(leaves) == 1 and leaves[0] is whole.terms[0][0]
