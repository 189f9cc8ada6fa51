"""Maps that see one side only: causal convolutions and masked layers. A new block must not look further."""

from __future__ import annotations

from collections.abc import Iterator, Set

import torch

from auxin.graph.naming import LINEAR, operator_name
from auxin.graph.values import Trace, Value

SLIDING = {"conv1d", "conv2d", "conv3d", "convolution"}


def sees_one_side(trace: Trace, graph: torch.fx.Graph, pruning: Set[str]) -> bool:
    """Return whether some convolution sees more on one side: by unequal padding, an output cut at one end, or a mask.

    A stride above 1 is left out: unequal padding there is how "same" padding rounds.

    Args:
        trace: What propagation learnt.
        graph: The captured graph.
        pruning: Buffers that prune weights.
    """
    return any(
        _is_padded_unequally(node) or _is_cut(node) or next(masks_of(trace, node, pruning), None) is not None
        for node in graph.nodes
        if operator_name(node) in SLIDING and _strides(node) == {1}
    )


def masks_units(trace: Trace, node: torch.fx.Node, pruning: Set[str]) -> bool:
    """Return whether a linear map's mask says which of its units see which: what a dense block would undo."""
    for name in masks_of(trace, node, pruning):
        mask = trace.model.get_buffer(name)
        if any(mask.ndim > dim and bool((mask != mask.narrow(dim, 0, 1)).any()) for dim in (0, 1)):
            return True
    return False


def masks_of(trace: Trace, node: torch.fx.Node, pruning: Set[str]) -> Iterator[str]:
    """Yield the buffers with zeros in them that a linear map's weight is multiplied by, but for those of pruning."""
    weight = node.args[1] if operator_name(node) in LINEAR and len(node.args) > 1 else None
    if not isinstance(weight, torch.fx.Node) or operator_name(weight) != "mul":
        return
    buffers = {name for name, _ in trace.model.named_buffers()} - pruning
    for factor in weight.all_input_nodes:
        value = trace.values.get(factor)
        name = value.sources[0][0] if factor.op == "placeholder" and isinstance(value, Value) and value.pure else ""
        if name in buffers and not bool(trace.model.get_buffer(name).all()):
            yield name


def _strides(node: torch.fx.Node) -> set[int]:
    stride = node.args[3] if len(node.args) > 3 else 1
    return set(stride) if isinstance(stride, (list, tuple)) else {stride}  # type: ignore[arg-type]


def _is_padded_unequally(node: torch.fx.Node) -> bool:
    source = node.args[0]
    if not isinstance(source, torch.fx.Node):
        return False
    if operator_name(source) in ("pad", "constant_pad_nd"):
        pads = list(source.args[1])  # type: ignore[arg-type]
        return pads[::2] != pads[1::2]
    dim = source.args[1] if operator_name(source) == "cat" and len(source.args) > 1 else 0
    return isinstance(dim, int) and dim % source.meta["val"].ndim > 1  # zeros, or a state kept since the last call


def _is_cut(node: torch.fx.Node) -> bool:
    """Return whether all that reads a map's output takes a range that leaves out one end of it."""
    readers = [reader for user in node.users for reader in _beyond_full_ranges(user)]
    return bool(readers) and all(_cuts_one_end(reader) for reader in readers)


def _beyond_full_ranges(node: torch.fx.Node) -> list[torch.fx.Node]:
    if operator_name(node) == "slice" and node.meta["val"].shape == node.args[0].meta["val"].shape:  # type: ignore[union-attr]
        return [reader for user in node.users for reader in _beyond_full_ranges(user)]
    return [node]


def _cuts_one_end(node: torch.fx.Node) -> bool:
    if operator_name(node) != "slice":
        return False
    source, dim, start, end = [*node.args, *(None, 0, None, None)[len(node.args) :]][:4]
    shape = source.meta["val"].shape  # type: ignore[union-attr]
    if not isinstance(dim, int) or dim % len(shape) < 2 or not all(isinstance(n, int | None) for n in (start, end)):
        return False
    size = int(shape[dim])
    first, last, _ = slice(start, end).indices(size)
    return (first > 0) != (last < size)
