"""Regions of autocast or without gradients: ``torch.export`` keeps each as a graph of its own within the graph."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, GraphModule, Node

from auxin.graph.naming import operator_name

REGIONS = {"wrap_with_autocast", "wrap_with_set_grad_enabled"}


def inline_regions(module: GraphModule) -> None:
    """Put the nodes of every region into the graph around it, in place: what grows does not depend on either.

    The flat graph is for reading, not for running: it no longer says in which type or with which gradients.

    Args:
        module: A captured forward.
    """
    for node in list(module.graph.nodes):
        region = _region(node)
        if region is None:
            continue
        position = node.args.index(region)
        inner = getattr(module, str(region.target))
        inline_regions(inner)
        _inline(module.graph, node, inner.graph, node.args[position + 1 :])


def _region(node: Node) -> Node | None:
    """Return the node that holds the graph of a region, of the call of one."""
    name = getattr(node.target, "_name", operator_name(node)) if node.op == "call_function" else ""
    held = [arg for arg in node.args if isinstance(arg, Node) and arg.op == "get_attr"] if name in REGIONS else []
    return held[0] if held else None


def _inline(graph: Graph, call: Node, inner: Graph, inputs: Any) -> None:
    placeholders = [node for node in inner.nodes if node.op == "placeholder"]
    known: dict[Node, Node] = dict(zip(placeholders, inputs, strict=True))
    with graph.inserting_before(call):
        results = graph.graph_copy(inner, known)
    outputs = results if isinstance(results, (tuple, list)) else (results,)
    for user in list(call.users):
        taken: Any = user.args[1]  # each takes one of the outputs
        user.replace_all_uses_with(outputs[taken])
        graph.erase_node(user)
    graph.erase_node(call)
