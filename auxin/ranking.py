"""Spending a budget on the best of many candidates, in every group or over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from auxin.budgets import Allocated, Amount, Cap
from auxin.graph import Graph
from auxin.methods.random import Random
from auxin.types import Budget, Widen


def decide(budget: Budget, graph: Graph, cap: Cap | None = None) -> Allocated:
    """Turn a budget into units per group, and remember what a method that ranks neurons may change about them.

    Args:
        budget: Any budget; one that is already decided is returned as it is.
        graph: The model's graph.
        cap: A size that growth may not exceed.

    Returns:
        The decided budget.
    """
    if isinstance(budget, Allocated):
        return budget
    units = budget.allocate(graph)
    if cap is not None:
        steps = {name: budget.step(graph, name) for name in units} if isinstance(budget, Amount) else None
        units = cap.clip(graph, units, steps)
    if not isinstance(budget, Amount):
        return Allocated(units, cap=cap)
    return Allocated(units, budget.scope, budget.of, tuple(budget.sizes(graph)), cap)


def choose(
    budget: Allocated, graph: Graph, scores: Mapping[str, Sequence[float]]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Choose the candidates with the most negative scores that the budget pays for.

    A budget per group takes the best of each group. A global one takes the best of all: of neurons as many as the
    budget has, of parameters or FLOPs by score per cost as long as they fit. Only negative scores are taken; what is
    left of the budget is returned for the method's fallback.

    Args:
        budget: The decided budget.
        graph: The model's graph.
        scores: For each group, the predicted change of the loss by each candidate.

    Returns:
        For each group the chosen candidates, best first; and for each group the units left to fill.
    """
    chosen: dict[str, list[int]] = {}
    if budget.scope == "per_group":
        for name, by in budget.units.items():
            order = sorted(range(len(scores.get(name, ()))), key=lambda i, name=name: scores[name][i])  # type: ignore[misc]
            chosen[name] = [i for i in order if scores[name][i] < 0][:by]
        rest = {name: by - len(chosen[name]) for name, by in budget.units.items()}
    else:
        chosen, rest = _choose_globally(budget, graph, scores)
    return {n: c for n, c in chosen.items() if c}, {n: by for n, by in rest.items() if by > 0}


def _choose_globally(
    budget: Allocated, graph: Graph, scores: Mapping[str, Sequence[float]]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    sizes = {group.name: group.size for group in graph.groups}
    measure = graph.num_parameters if budget.of == "parameters" else graph.flops
    counts = budget.of == "neurons"
    total = sum(budget.units.values())
    limit = 0 if counts else measure({name: sizes[name] + by for name, by in budget.units.items()})
    groups = budget.groups or tuple(budget.units)
    now = measure() if not counts else 0
    cost = {name: 1.0 if counts else float(max(measure({name: sizes[name] + 1}) - now, 1)) for name in groups}
    units = dict.fromkeys(groups, 0)

    def take(name: str) -> bool:
        """Add one unit if budget and cap allow."""
        more = {n: by for n, by in {**units, name: units[name] + 1}.items() if by}
        fits = sum(more.values()) <= total if counts else measure({n: sizes[n] + by for n, by in more.items()}) <= limit
        if fits and (budget.cap is None or budget.cap.holds(graph, more)):
            units[name] += 1
            return True
        return False

    ranked = sorted((s / cost[name], name, i) for name in groups for i, s in enumerate(scores.get(name, ())) if s < 0)
    chosen: dict[str, list[int]] = {name: [] for name in groups}
    for _, name, i in ranked:
        if take(name):
            chosen[name].append(i)
    rest = dict.fromkeys(groups, 0)
    # What no candidate earns goes where the allocation would have put it, then anywhere it fits.
    open_groups = list(groups)
    while open_groups:
        name = max(open_groups, key=lambda n: budget.units.get(n, 0) - units[n])
        if take(name):
            rest[name] += 1
        else:
            open_groups.remove(name)
    return chosen, rest


def untreatable(model: nn.Module, graph: Graph, name: str, copies: bool = True) -> str | None:
    """Return why a group has no candidates with a fan-in and a fan-out of their own, or None if it has."""
    slots = [slot for slot in graph[name].slots if slot.parameter in graph.parameters]
    roles = {slot.role for slot in slots}
    if any(model.get_parameter(slot.parameter).is_complex() for slot in slots):
        return "has complex weights"
    if (why := graph.why_not_copied(name)) and (copies or graph.reads_what_it_writes(name)):
        return why
    if "consumer" not in roles or "producer" not in roles:
        return "has no fan-in or no fan-out of its own"
    if graph.norms_fan_in(name):
        return "has a fan-in whose norm the forward takes (weight norm), which may not start at zero"
    return None


def why_not_twice(error: RuntimeError) -> str:
    """Return that a model cannot be differentiated twice, or raise the error if it says something else."""
    if "derivative" not in str(error):
        raise error
    return "is in a model with an operator that has no second derivative"


def widening(
    model: nn.Module,
    graph: Graph,
    group: str,
    *,
    parents: Sequence[int],
    offsets: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    num_fresh: int,
    apart: Mapping[str, Tensor] | None = None,
) -> Widen:
    """Return one widening that splits some neurons in two and adds some new ones.

    Args:
        model: The model, only read.
        graph: Its graph.
        group: Name of the group.
        parents: The neurons to split, each once.
        offsets: For some producer slots, how far each neuron moves: a tensor of the parameter's shape.
        fresh: Values of the new ones, as ``Widen.values`` for them alone.
        num_fresh: Number of new ones.
        apart: Offsets that let the two halves share the outgoing weights unequally, as ``Widen.offsets``
            (``methods.symmetry``).

    Returns:
        The widening; copies come first.
    """
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    by = len(parents) + num_fresh
    sources = (*parents, *(-1,) * num_fresh)
    placed: dict[str, dict[str, Tensor]] = {"offsets": {}, "values": {}}
    for slot in graph[group].slots:
        key = f"{slot.parameter}:{slot.dim}"
        like = tensors[slot.parameter].detach()
        rows = torch.tensor(graph.new_positions_from(group, slot, sources), device=like.device)
        if key in offsets and parents:
            moved = offsets[key].to(like).index_select(slot.dim, rows.clamp(min=0))
            shape = [-1 if d == slot.dim else 1 for d in range(like.ndim)]
            placed["offsets"][key] = moved * (rows >= 0).to(like).view(shape)
        if key in fresh and num_fresh:
            size = [len(rows) if d == slot.dim else n for d, n in enumerate(like.shape)]
            empty = (rows < 0).nonzero().flatten()
            placed["values"][key] = like.new_zeros(size).index_copy(slot.dim, empty, fresh[key].to(like))
    shares = (*(0.5,) * len(parents), *(0.0,) * num_fresh)
    if not parents:
        return Widen(group, by, values=placed["values"])
    return Widen(group, by, sources, placed["values"], shares, placed["offsets"] | dict(apart or {}))


def random_values(
    model: nn.Module, graph: Graph, units: Mapping[str, int], generator: torch.Generator
) -> dict[str, Mapping[str, Tensor]]:
    """Return, for each group, the values that random growth would give new units."""
    plan = Random().propose(model, graph, Allocated(units), generator=generator)
    return {op.group: op.values for op in plan.operations if isinstance(op, Widen)}
