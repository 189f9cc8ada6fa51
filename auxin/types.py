"""The nouns of auxin as data: groups, sites, plans, events, and the protocols that methods and triggers follow.

A long file: the vocabulary of all others in one place, most of it documentation of fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from auxin.graph import Graph

Role = Literal["producer", "consumer", "bias", "scale", "shift", "mean", "variance", "mask", "repeated", "raw"]
"""What a parameter axis does with a unit.

``producer`` rows compute it, ``consumer`` columns read it, ``bias`` is added by its producer, ``scale`` and ``shift``
are a norm's affine pair, ``mean`` and ``variance`` its running statistics, ``mask`` says which weights pruning has left
(1, or 0), ``repeated`` is a buffer with one pattern for all units (a blur filter), ``raw`` is a parameter that the
forward uses directly (a position embedding, LayerScale, a class token).
"""

LossFn = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Slot:
    """One axis of one parameter or buffer that holds units of a width group.

    Attributes:
        parameter: Dotted name, as in ``model.named_parameters()`` or ``named_buffers()``.
        dim: The axis of that tensor.
        role: What the axis does with a unit.
    """

    parameter: str
    dim: int
    role: Role


@dataclass(frozen=True)
class WidthGroup:
    """All parameter axes that must be resized together.

    Attributes:
        name: From the module path of the first producer, for example ``features.0``.
        size: Number of units now (channels, hidden units, attention heads).
        slots: Every parameter axis that holds these units.
        frozen: Why the group can never grow, or None.
        inexact: Why growing it changes the function (``allow_inexact=True`` grows it all the same), or None.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    frozen: str | None = None
    inexact: str | None = None

    @property
    def growable(self) -> bool:
        """Whether the group can grow with the function preserved."""
        return self.frozen is None and self.inexact is None


CHANNEL = {"linear": -1, "conv1d": -2, "conv2d": -3, "conv3d": -4}
"""Dimension of the channels of what a layer of each kind reads and writes, from the end."""


@dataclass(frozen=True)
class DepthSite:
    """A place, just after a module, where a block that starts as the identity fits.

    Two kinds of block do: a plain one, a linear map, norm and activation like those around it; and, where the module
    adds something to its own input (a residual block, a transformer's layer), a copy of that module whose addend starts
    at zero.

    Attributes:
        name: Path of the module whose output the block will transform.
        kind: The linear map of the block: ``conv1d``, ``conv2d``, ``conv3d`` or ``linear``.
        channels: Width of the edge now.
        norm: Whether the block gets a batch norm, as the layers around it do.
        activation: Name of the activation in ``torch.nn``, for example ``ReLU``; empty where there is none, and only a
            copy of the module fits.
        idempotent: Whether the edge already carries that activation's output and applying it again changes nothing.
        arguments: Keyword arguments of the activation.
        pointwise: Whether the block's kernel has one position: where the edge has a single one (a pooled map,
            squeeze-excite), all of a kernel but its centre would see padding only; where a convolution of the model
            sees one side only (causal, masked), it would see the other.
        bias: Whether the block gets a bias, as the layer before it has; never beside a norm.
        neutral: Parameters of a copy of the module and the values with which it is the identity; empty where only a
            plain block fits.
    """

    name: str
    kind: Literal["conv1d", "conv2d", "conv3d", "linear"]
    channels: int
    norm: bool
    activation: str
    idempotent: bool
    arguments: tuple[tuple[str, float | str], ...] = ()
    pointwise: bool = False
    bias: bool = True
    neutral: tuple[tuple[str, float], ...] = ()

    @property
    def rank(self) -> int:
        """Number of dimensions that the block slides over: 2 for ``conv2d``, 0 for ``linear``."""
        return -1 - CHANNEL[self.kind]

    @property
    def channel(self) -> int:
        """Dimension of the edge's channels, from the end: -1 for ``linear``."""
        return CHANNEL[self.kind]


@dataclass(frozen=True)
class Widen:
    """Add ``by`` units to one width group.

    Attributes:
        group: Name of the group.
        by: Number of new units, appended at the end of each segment that holds the group.
        parents: For each new unit the old unit it copies, or -1 for a fresh one. All -1 when empty.
        values: New entries of a slot, keyed ``"parameter:dim"``; shape is the parameter's with ``dim`` replaced by the
            number of new positions. Slots without values copy the parent, or start at their role's neutral value
            (0; 1 for scale and variance; the mean of the old entries for raw).
        shares: Fraction of a parent's outgoing weight that each new copy takes; the parent keeps the rest.
            None divides equally among the parent and its copies (Net2Net).
        offsets: Half the difference between a parent and its copy in a slot, keyed and shaped as ``values``: added to
            the parent's entries, subtracted from the copy's (a split: θ + δ and θ - δ). Entries of fresh units are
            ignored. With offsets, ``values`` concern fresh units only.
    """

    group: str
    by: int
    parents: tuple[int, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)
    shares: tuple[float, ...] | None = None
    offsets: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Deepen:
    """Insert a block that starts as the identity at a depth site.

    Attributes:
        site: Name of the depth site.
        kernel_size: Size of the convolution's kernel (odd); ignored for linear blocks, 1 where the edge has a single
            position, and for a copy.
        noise: Standard deviation of noise added to the identity weights, or to a copy's zeros.
        copy: Whether to insert a copy of the module, or a plain block; None copies it where it is a residual block.
        fresh: Share s of a copy's weights that is drawn anew, 0 to 1: w ← sqrt(1 − s²)·w + s·rms(w)·ξ with ξ standard
            normal, for each matrix or kernel; None is 0 for the first copy of a module and ``FRESH`` for further ones.
        seed: Seed of ξ, which is another one for each site and each copy there.
    """

    site: str
    kernel_size: int = 3
    noise: float = 0.0
    copy: bool | None = None
    fresh: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class GrowthPlan:
    """What one event will do: pure data, made by a method, carried out by ``surgery.apply``.

    Attributes:
        method: Name of the method that proposed it.
        operations: The widenings and deepenings, applied in order.
        preserves: Whether the method promises that the function does not change.
        notes: Sentences for the user, such as a fallback that was taken.
    """

    method: str
    operations: tuple[Widen | Deepen, ...]
    preserves: bool = True
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"plan by {self.method}: {len(self.operations)} operation(s)"]
        for op in self.operations:
            lines.append(f"  widen {op.group} by {op.by}" if isinstance(op, Widen) else f"  deepen after {op.site}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the plan as JSON data and named tensors, ready for a JSON and a safetensors file.

        Returns:
            Plain data, in which each tensor is replaced by its name, and the tensors.
        """
        tensors: dict[str, Tensor] = {}
        operations = []
        for number, op in enumerate(self.operations):
            entry: dict[str, Any] = {"kind": type(op).__name__}
            for key, value in vars(op).items():
                if isinstance(value, Mapping):
                    names = {slot: f"{number}/{key}/{slot}" for slot in value}
                    tensors |= {names[slot]: tensor.detach().contiguous() for slot, tensor in value.items()}
                    entry[key] = names
                else:
                    entry[key] = list(value) if isinstance(value, tuple) else value
            operations.append(entry)
        data = {"method": self.method, "preserves": self.preserves, "notes": list(self.notes), "operations": operations}
        return data, tensors

    @classmethod
    def from_parts(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GrowthPlan:
        """Rebuild a plan from what ``to_parts`` returned.

        Args:
            data: The JSON data.
            tensors: The tensors by name.

        Returns:
            The plan.
        """
        kinds: dict[str, type] = {"Widen": Widen, "Deepen": Deepen}

        def restore(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {slot: tensors[name] for slot, name in value.items()}
            return tuple(value) if isinstance(value, list) else value

        operations = tuple(
            kinds[entry["kind"]](**{key: restore(value) for key, value in entry.items() if key != "kind"})
            for entry in data["operations"]
        )
        return cls(data["method"], operations, data["preserves"], tuple(data["notes"]))


@dataclass(frozen=True)
class Change:
    """One line of an event: what grew, and its size before and after."""

    kind: Literal["widen", "deepen"]
    target: str
    before: int
    after: int


@dataclass(frozen=True)
class Structure:
    """What replays an event on a fresh base model: inserted blocks, tensor shapes, size attributes.

    Attributes:
        blocks: For each module path, the blocks inserted after it, as keyword arguments of ``IdentityBlock``; for a
            copy of the module, ``neutral``.
        shapes: New shape of each resized parameter and buffer.
        attributes: New value of each resized attribute, keyed ``"module.path:name"``.
    """

    blocks: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """One applied plan: what changed and what it cost.

    Attributes:
        method: Name of the method.
        changes: Sizes before and after.
        parameters_before: Number of trainable and frozen parameters before.
        parameters_after: The same, after.
        flops_before: FLOPs of one forward of the example input before (multiply and add count as two).
        flops_after: The same, after.
        max_change: max |Δ output| of the example in eval mode.
        seconds: Wall time of the event, verification included.
        structure: What ``History.replay`` needs.
        epoch: Epoch after which it happened, or None outside a training run.
        reason: Why the trigger fired.
        notes: Sentences for the user, such as a fallback that was taken.
    """

    method: str
    changes: tuple[Change, ...]
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    max_change: float
    seconds: float
    structure: Structure = field(default_factory=Structure)
    epoch: int | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        changes = ", ".join(f"{c.target} {c.before}→{c.after}" for c in self.changes)
        return (
            f"{self.method}: {changes}; {self.parameters_before:,} → {self.parameters_after:,} parameters, "
            f"max |Δ output| {self.max_change:.1e}, {self.seconds:.2f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Event:
        """Rebuild an event from ``to_dict``'s data."""
        values = dict(data)
        structure = values["structure"]
        values["structure"] = Structure(
            blocks={path: tuple(blocks) for path, blocks in structure["blocks"].items()},
            shapes={name: tuple(shape) for name, shape in structure["shapes"].items()},
            attributes={name: _tuples(value) for name, value in structure["attributes"].items()},
        )
        values["changes"] = tuple(Change(**change) for change in values["changes"])
        values["notes"] = tuple(values["notes"])
        return cls(**values)


def _tuples(value: Any) -> Any:
    """Return JSON data with tuples for lists, as attributes have them."""
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Candidate:
    """One proposal as a decision saw it.

    Attributes:
        name: Depth site, width group or block.
        kind: ``deepen`` or ``widen``.
        score: Expansion score of the model with it.
        ratio: That score, penalised for size, over the current model's.
        parameters: Parameters it would add.
    """

    name: str
    kind: str
    score: float
    ratio: float
    parameters: int


@dataclass(frozen=True)
class Decision:
    """Whether to grow after an epoch, and why.

    Attributes:
        epoch: The epoch, 0 for the first.
        reason: The decision in one sentence.
        winner: What grows, such as ``deepen features.3``, or None.
        score: Expansion score of the current model; None where none was computed.
        damping: λ it was computed with.
        threshold: Ratio that a proposal has to exceed.
        proposals: Every proposal, best first.
        seconds: Wall time of the decision.
        plan: What to do, or None; not stored.
        batches: Model inputs to calibrate new norms on; not stored.
    """

    epoch: int
    reason: str
    winner: str | None = None
    score: float | None = None
    damping: float | None = None
    threshold: float | None = None
    proposals: tuple[Candidate, ...] = ()
    seconds: float = 0.0
    plan: GrowthPlan | None = field(default=None, repr=False, compare=False)
    batches: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what is stored, as JSON data."""
        data = {key: value for key, value in vars(self).items() if key not in ("plan", "batches")}
        return data | {"proposals": [asdict(candidate) for candidate in self.proposals]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """Rebuild a decision from ``to_dict``'s data."""
        return cls(**{**data, "proposals": tuple(Candidate(**candidate) for candidate in data["proposals"])})


class Budget(Protocol):
    """How much to grow: turns a graph into units to add per group."""

    def allocate(self, graph: Graph) -> dict[str, int]:
        """Return the number of units to add to each group; groups that stay as they are are absent."""
        ...


class Method(Protocol):
    """Where to grow and with which weights; ``propose`` is pure.

    Attributes:
        name: Key in ``METHODS``.
        preserves: Whether the function is unchanged right after an event.
    """

    @property
    def name(self) -> str:
        """Key in ``METHODS``."""
        ...

    @property
    def preserves(self) -> bool:
        """Whether the function is unchanged right after an event."""
        ...

    def propose(
        self,
        model: nn.Module,
        graph: Graph,
        budget: Budget,
        *,
        generator: torch.Generator,
        batches: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
    ) -> GrowthPlan:
        """Return the plan of one event; neither model nor graph is touched."""
        ...


class Trigger(Protocol):
    """When to grow."""

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> str | None:
        """Return the reason to grow after this epoch (0 is the first), or None."""
        ...


@runtime_checkable
class Decider(Protocol):
    """A trigger that also says what to grow, such as ``auxin.natural`` or ``auxin.planned``."""

    def decide(
        self,
        model: nn.Module,
        graph: Graph,
        *,
        epoch: int,
        loader: Iterable[Any] | None,
        loss_fn: LossFn | None,
        cap: Any = None,
        generator: torch.Generator | None = None,
    ) -> Decision | None:
        """Return whether and what to grow after an epoch, or None to say nothing; model and graph are not touched."""
        ...
