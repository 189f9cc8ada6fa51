"""What could be added to a model without changing its function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from auxin.budgets import Allocated, Cap
from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.capture import clone_tensors, evaluation, normalise_inputs, unwrap
from auxin.methods.random import Random
from auxin.surgery.blocks import GROWN, build_block
from auxin.surgery.deepen import block_options, is_copy
from auxin.types import Deepen, DepthSite, GrowthPlan


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
    deepen: bool | Literal["copies"] = True,
    blocks: Sequence[str] | None = None,
    within: Sequence[str] | None = None,
    max_layers: int | None = 10,
    kernel_size: int = 3,
    noise: float = 0.0,
    cap: Cap | None = None,
    generator: torch.Generator | None = None,
) -> list[Proposal]:
    """Return an identity block for every depth site and more units for every width group, as far as they fit.

    After a residual block this is a copy of it, unless it is called with more than one argument.

    Args:
        model: The model, only read.
        graph: Its graph.
        widen: Units to add to each group; below 1, a share of its size; 0 proposes none.
        deepen: Whether to propose layers; ``copies`` proposes copies of residual blocks alone.
        blocks: Module paths, in each of which all groups widen together, as SECNN's do; None proposes each group alone.
        within: Module paths that proposals must lie in; None allows all.
        max_layers: Inserted layers a site may have.
        kernel_size: Of inserted convolutions.
        noise: Standard deviation of noise on the identity weights.
        cap: A size the model may not exceed; wider proposals shrink to fit it.
        generator: Source of the new units' weights; its seed is that of copies' fresh weights.

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
    copy, seed = (True if deepen == "copies" else None), generator.initial_seed()
    layer = Deepen("", kernel_size, noise, copy, seed=seed)
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
    edges = _edges(model, graph)
    for site in graph.sites:
        copied = bool(site.neutral) and edges[site.name].alone
        if not copied and (like.copy or not site.activation):
            continue
        op = replace(like, site=site.name, copy=copied)
        if within is not None and not any(_inside(site.name, path) for path in within):
            continue
        there = getattr(model.get_submodule(site.name), GROWN, ())
        if most is not None and len(there) >= most:
            continue
        more, flops, neurons = _cost(model, graph, site, op, edges[site.name].positions)
        after = graph.num_parameters() + more, graph.flops() + flops, graph.num_neurons() + neurons
        if cap is not None and not cap.allows(*after):
            continue
        found.append(Proposal(site.name, "deepen", GrowthPlan("natural", (op,), preserves=not op.noise), more, flops))
    return found


def _cost(model: nn.Module, graph: Graph, site: DepthSite, op: Deepen, positions: int) -> tuple[int, int, int]:
    """Return the parameters, FLOPs and neurons of a new layer."""
    if is_copy(site, op):
        own = [n for n, _ in model.get_submodule(site.name).named_parameters() if not n.startswith(f"{GROWN}.")]
        parameters = sum(model.get_parameter(f"{site.name}.{name}").numel() for name in own)
        groups = [g for g in graph.growable() if _inside(g.name, site.name)]
        neurons = sum(g.size for g in groups if not g.name.startswith(f"{site.name}.{GROWN}."))
        return parameters, graph.flops(within=site.name), neurons
    options = block_options(site, op)
    parameters = sum(p.numel() for p in build_block(torch.zeros(()), **options).parameters())
    weights = site.channels**2 * options["kernel_size"] ** site.rank
    return parameters, 2 * weights * positions, site.channels


@dataclass(frozen=True)
class _Edge:
    """Where a new layer would go: its positions for the example input, whether one tensor enters and one leaves."""

    positions: int
    alone: bool


def _edges(model: nn.Module, graph: Graph) -> dict[str, _Edge]:
    """Return the edge of each site."""
    edges: dict[str, _Edge] = {}

    def record(site: DepthSite, num_arguments: int, output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        edges[site.name] = _Edge(y.numel() // y.shape[site.channel], num_arguments == 1 and y is output)

    handles = [
        model.get_submodule(site.name).register_forward_hook(
            lambda module, args, kwargs, y, site=site: record(site, len(args) + len(kwargs), y), with_kwargs=True
        )
        for site in graph.sites
    ]
    try:
        args, kwargs = clone_tensors(normalise_inputs(graph.example_inputs))
        with evaluation(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return edges
