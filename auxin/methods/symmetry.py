"""Breaking the symmetry of copies: parent and copy are read with different weights whose sum stays what it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from auxin.graph import Graph


def outgoing_offsets(
    model: nn.Module, graph: Graph, group: str, parents: Sequence[int], scale: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return offsets that share a parent's outgoing weights a unequally among it and its copy: a/2 + r and a/2 - r.

        a/2·σ(θ) + a/2·σ(θ)  =  (a/2 + r)·σ(θ) + (a/2 - r)·σ(θ),    r ~ N(0, (scale · rms(a))²), independent entries

    Equal outgoing weights give both the same gradient for θ, so that they stay the same neuron; with r they get
    ∂L/∂θ = (a/2 ± r)ᵀ ∂L/∂z · ∂σ/∂θ. While both compute the same, the function does not change.

    Args:
        model: The model, only read.
        graph: Its graph.
        group: Name of the group.
        parents: The unit that each new unit copies, or -1 for a fresh one.
        scale: Size of r relative to the root mean square of the weights that read the group.
        generator: Source of r; not used if the scale is 0.

    Returns:
        For each parameter axis that reads the group, offsets for ``Widen.offsets``; zeros for fresh units.

    Reference:
        Unequal shares as in LEMON, Wang et al. 2024 (arXiv 2310.07999), section 3; here one for each outgoing weight.
    """
    tensors = dict(model.named_parameters())
    offsets = {}
    for slot in graph[group].slots:
        if slot.role != "consumer" or slot.parameter not in tensors:
            continue
        weight = tensors[slot.parameter].detach()
        rows = torch.tensor(graph.new_positions_from(group, slot, parents))
        shape = [len(rows) if d == slot.dim else n for d, n in enumerate(weight.shape)]
        copied = (rows >= 0).view([-1 if d == slot.dim else 1 for d in range(weight.ndim)])
        rms = float(weight.abs().float().square().mean().sqrt())
        drawn = scale * rms * torch.randn(shape, generator=generator) if scale else torch.zeros(shape)
        offsets[f"{slot.parameter}:{slot.dim}"] = (drawn * copied).to(weight)
    return offsets
