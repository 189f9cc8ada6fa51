"""Depth sites: the places where a block that starts as the identity fits."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any

import torch

from auxin.graph.axes import Axis
from auxin.graph.direction import masks_units, sees_one_side
from auxin.graph.naming import CONTAINERS, GROWN, LINEAR, NORMS, operator_name, stack
from auxin.graph.residual import find_residuals
from auxin.graph.rules import ACTIVATIONS
from auxin.graph.values import Trace, Value
from auxin.types import CHANNEL, DepthSite

IDEMPOTENT = {"ReLU", "ReLU6"}
# Arguments of the functional form that the module form needs to be the same function.
ARGUMENTS = {
    "leaky_relu": ("negative_slope",), "elu": ("alpha",), "celu": ("alpha",), "hardtanh": ("min_val", "max_val"),
    "softplus": ("beta", "threshold"), "gelu": ("approximate",),
}  # fmt: skip


def find_sites(
    trace: Trace, graph: torch.fx.Graph, bare: Set[str], first: Set[str], pruning: Set[str] = frozenset()
) -> tuple[tuple[DepthSite, Axis], ...]:
    """Return one site per activation whose edge is the output of a module that is called once, and per residual block.

    The edge after the activation is taken where the activation ends a module; where it is a functional call inside a
    larger forward, the edge before it is taken if that is a module's output.

    Args:
        trace: What propagation learnt.
        graph: The captured graph.
        bare: Paths of modules that return one tensor, in no tuple or dict.
        first: Paths of modules that return a tuple with a tensor in front.
        pruning: Buffers that prune weights.

    Returns:
        The sites, each with its channel axis, in the order of the forward.
    """
    calls = _calls(graph)
    modules = _module_outputs(calls, bare)
    twice = {path for path, keys in calls.items() if len(keys) > 1}
    endings = {path: {nodes[-1] for nodes in keys.values()} for path, keys in calls.items()}
    sites: dict[str, tuple[DepthSite, Axis]] = {}
    places: dict[str, torch.fx.Node] = {}
    for node in graph.nodes:
        name = operator_name(node)
        if name not in ACTIVATIONS or node in trace.outputs or node.meta.get("dead") or _has_grown(trace, node):
            continue
        after = modules.get(node)
        before = node.args[0] if isinstance(node.args[0], torch.fx.Node) else None
        after = _usable(trace, after)
        path = after or (_usable(trace, modules.get(before)) if before is not None and len(before.users) == 1 else None)
        edge = node if after else before
        if path is None or edge is None:
            continue
        host, _, inside = path.partition(f".{GROWN}.")
        if host in sites or host in twice:
            continue
        last = not inside or node in endings[host]
        if inside and not last and not _in_plain_block(trace, host, inside):
            continue
        site = _site(trace, host, edge, node, after=bool(after) and last)
        if site is not None and not any(masks_units(trace, one, pruning) for one in _before(edge)):
            sites[host], places[host] = site, node
    if sees_one_side(trace, graph, pruning):
        sites = {host: (replace(site, pointwise=True), axis) for host, (site, axis) in sites.items()}
    for host, residual in find_residuals(trace, calls, bare, first).items():
        if residual.output.meta.get("dead"):
            continue
        known = sites.get(host) or _bare_site(trace, host, residual.output)
        if known is not None:
            sites[host] = replace(known[0], neutral=residual.neutral), known[1]
            places.setdefault(host, residual.output)
    order = {node: i for i, node in enumerate(graph.nodes)}
    return tuple(sites[host] for host in sorted(sites, key=lambda host: order[places[host]]))


def _in_plain_block(trace: Trace, host: str, inside: str) -> bool:
    """Return whether a path within the blocks inserted after a module lies in a plain one, not in a copy."""
    block = trace.model.get_submodule(f"{host}.{GROWN}.{inside.partition('.')[0]}")
    return type(block) is not type(trace.model.get_submodule(host))


def _bare_site(trace: Trace, path: str, edge: torch.fx.Node) -> tuple[DepthSite, Axis] | None:
    """Return the site after a module that no activation ends."""
    value = trace.values.get(edge)
    if not isinstance(value, Value) or value.layout is None:
        return None
    axis = value.axes[len(value.axes) + CHANNEL[value.layout]]
    site = DepthSite(path, value.layout, axis.size, norm=False, activation="", idempotent=False)  # type: ignore[arg-type]
    return site, axis


def _site(
    trace: Trace, path: str, edge: torch.fx.Node, activation: torch.fx.Node, after: bool
) -> tuple[DepthSite, Axis] | None:
    value = trace.values.get(edge)
    if not isinstance(value, Value) or value.layout is None:
        return None
    name = operator_name(activation)
    names = ARGUMENTS.get(name, ())
    given = {**dict(zip(names, activation.args[1:], strict=False)), **activation.kwargs}
    arguments = tuple(
        (key, value if isinstance(value, str) else float(value))
        for key, value in given.items() if key in names and isinstance(value, (int, float, str))
    )  # fmt: skip
    module = ACTIVATIONS[name]
    channel = len(value.axes) + CHANNEL[value.layout]
    axis = value.axes[channel]
    site = DepthSite(
        name=path,
        kind=value.layout,  # type: ignore[arg-type]
        channels=axis.size,
        norm=_has_norm(edge),
        activation=module,
        idempotent=after and module in IDEMPOTENT,
        arguments=arguments,
        pointwise=all(a.size == 1 for a in value.axes[channel + 1 :]),
        bias=_has_bias(edge),
    )
    return site, axis


def _has_grown(trace: Trace, node: torch.fx.Node) -> bool:
    """Return whether blocks follow the activation's own module already: its site is then at the last of them."""
    path = stack(node)[-1] if stack(node) else ""
    return bool(path) and GROWN in trace.model.get_submodule(path)._modules


def _before(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """Yield an edge's node and a few before it, up to the linear map."""
    current: Any = node
    for _ in range(6):
        yield current
        if operator_name(current) in LINEAR or not (current.args and isinstance(current.args[0], torch.fx.Node)):
            return
        current = current.args[0]


def _has_norm(edge: torch.fx.Node) -> bool:
    """Return whether a batch norm lies between the edge and the linear map before it."""
    return any(operator_name(node) in NORMS for node in _before(edge))


def _has_bias(edge: torch.fx.Node) -> bool:
    """Return whether the linear map before the edge has a bias; true where there is none to look at."""
    maps = [node for node in _before(edge) if operator_name(node) in LINEAR]
    return all(len(node.args) > 2 and node.args[2] is not None for node in maps)


def _calls(graph: torch.fx.Graph) -> dict[str, dict[str, list[torch.fx.Node]]]:
    """Return, for each module path, its calls and the nodes of each."""
    calls: dict[str, dict[str, list[torch.fx.Node]]] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            calls.setdefault(path, {}).setdefault(key, []).append(node)
    return calls


def _usable(trace: Trace, path: str | None) -> str | None:
    """Return the path unless the module runs its children in order: an inserted child would be run twice."""
    if path is None:
        return None
    module = trace.model.get_submodule(path)
    return None if isinstance(module, CONTAINERS) else path


def _module_outputs(calls: dict[str, dict[str, list[torch.fx.Node]]], bare: Set[str]) -> dict[torch.fx.Node, str]:
    """Return the innermost module that each node is the only output of, and that returns nothing around it."""
    outputs: dict[torch.fx.Node, str] = {}
    for path, runs in calls.items():
        if not path or path not in bare or len(runs) > 1:
            continue
        nodes = next(iter(runs.values()))
        inside = set(nodes)
        leaving = [n for n in nodes if any(user not in inside for user in n.users)]
        if len(leaving) == 1 and len(path) >= len(outputs.get(leaving[0], "")):
            outputs[leaving[0]] = path
    return outputs
