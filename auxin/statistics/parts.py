"""A batch in parts small enough for the memory, each with its exact share of the whole batch's loss gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from auxin.statistics.batches import Batch
from auxin.types import LossFn

MICRO_BATCH = 64
"""Samples that methods hold in memory at once if nothing else is asked for."""


@dataclass(frozen=True)
class Part:
    """Some samples of a batch.

    Attributes:
        inputs: Their inputs, nested as the batch's.
        objective: Maps the model's output for them to a scalar; over all parts of a batch, the scalars' gradients at
            the outputs are those of the batch's loss.
    """

    inputs: Any
    objective: Callable[[Any], Tensor]


def in_parts(forward: Callable[[Any], Any], batch: Batch, loss_fn: LossFn, size: int | None) -> list[Part]:
    """Cut a batch along its first dimension, for quantities that only need ∂L/∂output.

    The objective of a part is Σ ⟨∂L/∂output, output⟩ over its samples, with ∂L/∂output taken from the loss of the
    whole batch, so that it does not matter how the loss averages. A batch stays whole if its inputs are not tensors of
    one length, or if the last sample alone gives another output than in the batch (samples that see each other, or
    that lie along another dimension).

    Args:
        forward: The model's output as a function of nested inputs; called without gradients.
        batch: The batch.
        loss_fn: The loss of (output, target).
        size: Samples of a part; None for the whole batch.

    Returns:
        The parts, in order.
    """
    whole = [Part(batch.inputs, lambda output: loss_fn(output, batch.target))]
    tensors = [x for x in pytree.tree_leaves(batch.inputs) if isinstance(x, Tensor)]
    lengths = {len(x) if x.ndim else 0 for x in tensors}
    if size is None or len(lengths) != 1 or (number := lengths.pop()) <= size:
        return whole
    with torch.no_grad():
        outputs, structure = pytree.tree_flatten(forward(batch.inputs))
        try:
            alone = pytree.tree_leaves(forward(_samples(batch.inputs, number - 1, number)))
        except Exception:  # Whatever a model does that insists on its batch size.
            return whole
    if len(outputs) != len(alone) or not all(map(_same, outputs, alone)):
        return whole
    places = [i for i, x in enumerate(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
    leaves = {i: outputs[i].detach().requires_grad_() for i in places}
    # Clones, as a loss may change its input in place and a leaf may not be changed so.
    moved = [leaves[i].clone() if i in leaves else x for i, x in enumerate(outputs)]
    loss = loss_fn(pytree.tree_unflatten(moved, structure), batch.target)
    if not loss.requires_grad:
        return whole
    slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)

    def part(start: int) -> Part:
        mine = [slope[start : start + size] for slope in slopes]

        def objective(output: Any) -> Tensor:
            found = pytree.tree_leaves(output)
            return torch.stack([(found[i] * slope).sum() for i, slope in zip(places, mine, strict=True)]).sum()

        return Part(_samples(batch.inputs, start, start + size), objective)

    return [part(start) for start in range(0, number, size)]


def _samples(inputs: Any, start: int, stop: int) -> Any:
    return pytree.tree_map(lambda x: x[start:stop] if isinstance(x, Tensor) else x, inputs)


def _same(leaf: Any, alone: Any) -> bool:
    """Whether an output of the whole batch ends with the output for its last sample alone."""
    if not isinstance(leaf, Tensor) or not isinstance(alone, Tensor):
        return leaf is None and alone is None
    if leaf.ndim == 0 or len(alone) != 1 or leaf.shape[1:] != alone.shape[1:]:
        return False
    tolerance = 1e-4 * float(leaf.abs().max()) if leaf.is_floating_point() else 0
    return bool(((leaf[-1:] - alone).abs() <= tolerance).all())
