"""What could be added to a model, and the score it would have with each: one grown copy serves all proposals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from auxin.budgets import Allocated, Cap
from auxin.errors import ConfigError
from auxin.expansion.score import Settings, measure
from auxin.graph import Graph
from auxin.graph.axes import gather_index
from auxin.graph.capture import clone_tensors, evaluation, normalise_inputs, unwrap
from auxin.methods.random import Random
from auxin.shadow import Shadow
from auxin.statistics.batches import Batch
from auxin.statistics.fisher import CURRENT, Share
from auxin.statistics.persample import Attachment, take
from auxin.surgery.blocks import GROWN, build_block
from auxin.surgery.calibrate import calibrate_channels
from auxin.surgery.deepen import block_options, channel_statistics
from auxin.types import Deepen, DepthSite, GrowthPlan, LossFn, Widen

NUM_CALIBRATION = 64
"""Samples that set the norms of new channels and layers."""


@dataclass(frozen=True)
class Proposal:
    """Something that could be added without changing the function.

    Attributes:
        name: Depth site, width group, or block whose groups all widen.
        kind: ``deepen`` or ``widen``.
        plan: What would be done.
        parameters: Parameters it adds.
        flops: FLOPs it adds to one forward of the example inputs.
        score: η of the model with it, once scored.
    """

    name: str
    kind: Literal["deepen", "widen"]
    plan: GrowthPlan = field(repr=False)
    parameters: int
    flops: int = 0
    score: float = float("nan")

    @property
    def key(self) -> str:
        """Name that no other proposal has: a group and a site may have the same."""
        return f"{self.kind} {self.name}"


def make_proposals(
    model: nn.Module,
    graph: Graph,
    *,
    widen: float = 4,
    deepen: bool = True,
    blocks: Sequence[str] | None = None,
    within: Sequence[str] | None = None,
    max_layers: int | None = 10,
    kernel_size: int = 3,
    noise: float = 0.0,
    cap: Cap | None = None,
    generator: torch.Generator | None = None,
) -> list[Proposal]:
    """Return an identity block for every depth site and more units for every width group, as far as they fit.

    Args:
        model: The model, only read.
        graph: Its graph.
        widen: Units to add to each group; below 1, a share of its size; 0 proposes none.
        deepen: Whether to propose layers.
        blocks: Module paths, in each of which all groups widen together, as SECNN's do; None proposes each group alone.
        within: Module paths that proposals must lie in; None allows all.
        max_layers: Inserted layers a site may have.
        kernel_size: Of inserted convolutions.
        noise: Standard deviation of noise on the identity weights.
        cap: A size the model may not exceed; wider proposals shrink to fit it.
        generator: Source of the new units' weights.

    Returns:
        The proposals, depth first, in the order of the model.

    Raises:
        ConfigError: If a block or module path holds nothing that can grow.
    """
    model = unwrap(model)
    generator = generator or torch.Generator().manual_seed(0)
    for path in (*(blocks or ()), *(within or ())):
        names = [g.name for g in graph.growable()] + [s.name for s in graph.sites]
        if not any(_inside(name, path) for name in names):
            raise ConfigError(f"Nothing inside {path!r} can grow; the width groups and sites are: {', '.join(names)}.")
    layer = Deepen("", kernel_size, noise, copy=False)
    found = _layers(model, graph, within or blocks, max_layers, layer, cap) if deepen else []
    groups = [g.name for g in graph.growable() if _widens(graph, g.name)]
    groups = [name for name in groups if within is None or any(_inside(name, path) for path in within)]
    together = {name: [name] for name in groups}
    if blocks is not None:
        together = {path: [name for name in groups if _inside(name, path)] for path in blocks}
        shared = [name for name in groups if sum(name in members for members in together.values()) > 1]
        if shared:
            raise ConfigError(f"Group {shared[0]!r} lies in more than one of the blocks {', '.join(blocks)}; give one.")
    for title, members in together.items():
        units = {n: int(widen) if widen >= 1 else max(1, round(widen * graph[n].size)) for n in members if widen > 0}
        units = cap.clip(graph, units) if cap is not None else units
        if not units:
            continue
        plan = replace(Random().propose(model, graph, Allocated(units), generator=generator), method="natural")
        sizes = {n: graph[n].size + by for n, by in units.items()}
        more, flops = graph.num_parameters(sizes) - graph.num_parameters(), graph.flops(sizes) - graph.flops()
        found.append(Proposal(title, "widen", plan, more, flops))
    return found


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith((f"{path}.", f"{path}["))


def _widens(graph: Graph, name: str) -> bool:
    """Return whether new units with zero outgoing weights are seen by gradients of those weights alone.

    A weight that groups read along two of its dimensions, as a bilinear form, has entries that need both to grow.
    """
    read = [(s.parameter, s.dim) for group in graph.growable() for s in group.slots if s.role == "consumer"]
    mine = [s.parameter for s in graph[name].slots if s.role == "consumer" and s.parameter in graph.parameters]
    once = all(len({dim for parameter, dim in read if parameter == weight}) == 1 for weight in mine)
    return bool(mine) and once and len(set(mine)) == len(mine) and not graph.reads_what_it_writes(name)


def _layers(
    model: nn.Module, graph: Graph, within: Sequence[str] | None, most: int | None, like: Deepen, cap: Cap | None
) -> list[Proposal]:
    found = []
    caps = [cap] if cap is not None else []
    while caps and caps[-1].also is not None:
        caps.append(caps[-1].also)
    positions = _positions(model, graph)
    for site in graph.sites:
        if not site.activation:
            continue  # only a copy fits, whose inner gradients are zero: the score would see nothing
        if within is not None and not any(_inside(site.name, path) for path in within):
            continue
        there = getattr(model.get_submodule(site.name), GROWN, ())
        if most is not None and len(there) >= most:
            continue
        op = replace(like, site=site.name)
        options = block_options(site, op)
        more = sum(p.numel() for p in build_block(torch.zeros(()), **options).parameters())
        weights = site.channels**2 * options["kernel_size"] ** site.rank
        flops = 2 * weights * positions[site.name]
        after = {
            "parameters": graph.num_parameters() + more,
            "flops": graph.flops() + flops,
            "neurons": sum(g.size for g in graph.growable()) + site.channels,
        }
        if any(after[one.of] > one.limit for one in caps):
            continue
        found.append(Proposal(site.name, "deepen", GrowthPlan("natural", (op,), preserves=not op.noise), more, flops))
    return found


def _positions(model: nn.Module, graph: Graph) -> dict[str, int]:
    """Return, for each site, the number of positions that its layer would be applied at for the example input."""
    counts: dict[str, int] = {}

    def record(site: DepthSite, output: Tensor) -> None:
        counts[site.name] = output.numel() // output.shape[site.channel]

    handles = [
        model.get_submodule(site.name).register_forward_hook(lambda module, args, y, site=site: record(site, y))
        for site in graph.sites
    ]
    try:
        args, kwargs = clone_tensors(normalise_inputs(graph.example_inputs))
        with evaluation(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def score_proposals(
    model: nn.Module,
    graph: Graph,
    proposals: Sequence[Proposal],
    samples: Batch,
    loss_fn: LossFn,
    settings: Settings | None = None,
    *,
    damping: float | None = None,
    seed: int = 0,
) -> tuple[float, float, list[Proposal]]:
    """Return the current model's score, the damping, and the proposals with the score the model would have.

    One copy of the model holds all proposals at once. It computes the same function, new units have zero outgoing
    weights and new layers are identities, so that no proposal changes what another sees: each one's score is the score
    the grown model would have on its own. With the Gram form only the new entries' Gram matrices are computed for each.

    Args:
        model: The model, only read.
        graph: Its graph.
        proposals: What to score.
        samples: The samples.
        loss_fn: The loss of (output, target), a mean over samples.
        settings: How to score.
        damping: λ; None chooses it.
        seed: Of drawn labels.

    Returns:
        η, λ, and the proposals in the same order, scored; their plans hold the norms' statistics that were used.
    """
    settings = settings or Settings()
    model = unwrap(model)
    trial = _Trial(model, graph, proposals, samples)
    terms = measure(
        trial.model,
        loss_fn,
        samples,
        settings,
        shares=trial.shares,
        names=trial.names,
        attached=trial.attached,
        seed=seed,
    )
    used = terms.choose_damping(settings.target) if damping is None else damping
    scored = [
        replace(proposal, plan=trial.calibrated(proposal.plan), score=terms.value(proposal.key, used))
        for proposal in proposals
    ]
    return terms.value(CURRENT, used), used, scored


class _Trial:
    """A copy of the model with every proposal in it, and who owns which entries of its parameters."""

    def __init__(self, model: nn.Module, graph: Graph, proposals: Sequence[Proposal], samples: Batch) -> None:
        widenings = [(p.key, op) for p in proposals for op in p.plan.operations if isinstance(op, Widen)]
        self.shadow = shadow = Shadow(model, graph, [op for _, op in widenings])
        self.model = shadow.model
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        batch = take(samples, slice(0, NUM_CALIBRATION)).inputs
        self.new_channels = self._calibrate(graph, widenings, [batch])
        owned: dict[str, dict[int, dict[str, list[str]]]] = {}
        for key, op in widenings:
            for slot in shadow.slots(op.group, "consumer"):
                owned.setdefault(slot.parameter, {}).setdefault(slot.dim, {}).setdefault(key, []).append(op.group)
        self.shares: dict[str, list[Share]] = {}
        for name, dims in owned.items():
            ((dim, owners),) = dims.items()
            old = self._entries(name, dim, [])
            self.shares[name] = [Share(CURRENT, dim, old)]
            for key, groups in owners.items():
                mine = self._entries(name, dim, groups)
                self.shares[name].append(Share(key, dim, mine[~torch.isin(mine, old)]))
        self.attached: dict[str, Attachment] = {}
        self._attach(graph, proposals, batch)
        self.names = frozenset(trainable)

    def _entries(self, name: str, dim: int, groups: Sequence[str]) -> Tensor:
        """Return the indices along a dimension that a model with only these groups widened would have.

        Where two groups multiply (heads times groups of queries), entries new in both belong to neither alone.
        """
        shadow = self.shadow
        old = {shadow.graph.atom(g): torch.arange(shadow.old[g].size) for g in shadow.by if g not in groups}
        return gather_index(shadow.graph.axes[name][dim], old)

    def _attach(self, graph: Graph, proposals: Sequence[Proposal], batch: object) -> None:
        """Make the proposed layers, for the old channels of their edges."""
        layers = [(p.key, op) for p in proposals for op in p.plan.operations if isinstance(op, Deepen)]
        sites = {op.site: graph.site(op.site) for _, op in layers}
        normed = [site for site in sites.values() if site.norm]
        statistics = channel_statistics(self.model, normed, [batch]) if normed else {}
        axes = {site.name: axis for site, axis in graph._sites}
        sources = {
            graph.atom(g): torch.cat([torch.arange(graph[g].size), torch.full((by,), -1)])
            for g, by in self.shadow.by.items()
        }
        like = torch.zeros((), dtype=self.shadow.dtype, device=self.shadow.device)
        for key, op in layers:
            site = sites[op.site]
            old = (gather_index(axes[op.site], sources) >= 0).nonzero().flatten()
            block = build_block(like, **block_options(site, op)).requires_grad_(False).eval()
            if site.norm:
                block.calibrate(*(moment[old.to(moment.device)] for moment in statistics[op.site]))
            there = len(getattr(self.model.get_submodule(op.site), GROWN, ()))
            one = Attachment(block, f"{op.site}.{GROWN}.{there}", site.channel, old if self.shadow.by else None)
            self.attached[op.site] = one
            self.shares |= {name: [Share(key)] for name in one.named_parameters()}

    def _calibrate(
        self, graph: Graph, widenings: Sequence[tuple[str, Widen]], batches: list[object]
    ) -> dict[str, Tensor]:
        """Set the running statistics of new channels, and return which channels of which norm they are."""
        channels: dict[str, Tensor] = {}
        for _, op in widenings:
            for slot in graph[op.group].slots:
                if slot.role == "mean":
                    path = slot.parameter.rpartition(".")[0]
                    mine = self.shadow.positions(op.group, slot)
                    channels[path] = torch.cat([channels[path], mine]) if path in channels else mine
        if channels:
            calibrate_channels(self.model, channels, batches)
        return channels

    def calibrated(self, plan: GrowthPlan) -> GrowthPlan:
        """Return the plan with the statistics that its new channels were given."""
        buffers = dict(self.model.named_buffers())
        operations: list[Widen | Deepen] = []
        for op in plan.operations:
            if isinstance(op, Widen):
                values: dict[str, Tensor] = dict(op.values)
                for slot in self.shadow.old[op.group].slots:
                    if slot.role in ("mean", "variance") and slot.parameter.rpartition(".")[0] in self.new_channels:
                        index = self.shadow.positions(op.group, slot)
                        values[f"{slot.parameter}:{slot.dim}"] = buffers[slot.parameter][index].clone()
                op = replace(op, values=values)
            operations.append(op)
        return replace(plan, operations=tuple(operations))
