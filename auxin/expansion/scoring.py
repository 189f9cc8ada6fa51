"""The score that a model would have with each proposal: one grown copy serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from auxin.expansion.proposals import Proposal
from auxin.expansion.score import Settings, measure
from auxin.graph import Graph
from auxin.graph.axes import gather_index
from auxin.graph.capture import unwrap
from auxin.graph.numbers import copies_of
from auxin.shadow import Shadow
from auxin.statistics.batches import Batch
from auxin.statistics.fisher import CURRENT, Share
from auxin.statistics.persample import Attachment, take
from auxin.surgery.blocks import GROWN, build_block, copy_block, renew
from auxin.surgery.calibrate import calibrate_channels
from auxin.surgery.deepen import block_options, channel_statistics, is_copy
from auxin.types import Deepen, GrowthPlan, LossFn, Widen

NUM_CALIBRATION = 64
"""Samples that set the norms of new channels and layers."""


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
        self._attach(model, graph, proposals, batch)
        self.names = frozenset(trainable)

    def _entries(self, name: str, dim: int, groups: Sequence[str]) -> Tensor:
        """Return the indices along a dimension that a model with only these groups widened would have.

        Where two groups multiply (heads times groups of queries), entries new in both belong to neither alone.
        """
        shadow = self.shadow
        old = {shadow.graph.atom(g): torch.arange(shadow.old[g].size) for g in shadow.by if g not in groups}
        return gather_index(shadow.graph.axes[name][dim], old)

    def _attach(self, model: nn.Module, graph: Graph, proposals: Sequence[Proposal], batch: object) -> None:
        """Make the proposed layers, for the old channels of their edges."""
        layers = [(p.key, op) for p in proposals for op in p.plan.operations if isinstance(op, Deepen)]
        sites = {op.site: graph.site(op.site) for _, op in layers}
        normed = [sites[op.site] for _, op in layers if sites[op.site].norm and not is_copy(sites[op.site], op)]
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
            options, learnt = block_options(site, op), None
            host = model.get_submodule(op.site)
            if is_copy(site, op):
                block: nn.Module = copy_block(host, options["neutral"]).to(like)
                renew(block, options["neutral"], op, len(copies_of(host)))
                learnt = frozenset(options["neutral"])  # nothing before what makes it zero has a gradient
            else:
                block = plain = build_block(like, **options)
                if site.norm:
                    plain.calibrate(*(moment[old.to(moment.device)] for moment in statistics[op.site]))
            block.requires_grad_(False).eval()
            there = len(getattr(host, GROWN, ()))
            kept = old if self.shadow.by else None
            one = Attachment(block, f"{op.site}.{GROWN}.{there}", site.channel, kept, learnt)
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
