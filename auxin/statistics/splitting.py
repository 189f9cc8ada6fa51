"""Splitting matrices: how the loss bends when a neuron is replaced by two that move apart.

For neuron i with incoming weights θ_i and outputs σ(θ_i, x), as its consumers read them,

    S_i = Σ_x (∂L/∂σ) ∇²_θ σ(θ_i, x).

The model is cut at every linear map with a parameter (linear, convolution, embedding, matrix product). Between cuts
lies what treats units one by one: norms in eval mode, activations, pooling, depthwise filters, residual sums, gates,
attention within a head. With u = θ x the cuts' outputs and g the gradients at the cuts' inputs, held fixed,

    Φ(u) = Σ_cuts ⟨g, input(u)⟩,   H = ∇²Φ,   S v = (∂u/∂θ)ᵀ H (∂u/∂θ) v

for all neurons of all layers at once: one linear map of the stored inputs by v, one product with H through what lies
between the cuts, one weight gradient. No d×d matrix is formed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from auxin.graph import Graph
from auxin.graph.capture import clone_tensors, normalise_inputs
from auxin.statistics.batches import Batch, in_precision, precision
from auxin.statistics.cut import Call, Cut
from auxin.statistics.parts import MICRO_BATCH, Part, in_parts
from auxin.statistics.units import Units, old_units
from auxin.types import LossFn, Slot


class _Frozen:
    """The forward of a model on constant copies of its parameters and buffers, in the precision of statistics."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        state = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        dtype = precision(model)
        self.weights = {name: in_precision(tensor, dtype) for name, tensor in state.items()}
        self.names = {id(self.weights[name]): name for name, _ in model.named_parameters()}

    def __call__(self, inputs: Any, cut: Cut | None = None) -> Any:
        args, kwargs = clone_tensors(normalise_inputs(inputs))
        state = {n: t if id(t) in self.names else t.clone() for n, t in self.weights.items()}
        with cut or nullcontext():
            return functional_call(self.model, state, args, kwargs)

    def calls(self, inputs: Any) -> list[Call]:
        """Return the linear maps of a forward."""
        cut = Cut(self.names)
        with torch.no_grad():
            self(inputs, cut)
        return cut.calls


class Curvature:
    """The linear maps of some samples, and products with the splitting matrices of all neurons, summed over them."""

    def __init__(self, forward: _Frozen, part: Part) -> None:
        cut = Cut(forward.names)
        objective = part.objective(forward(part.inputs, cut))
        self.calls = cut.calls
        inputs = [call.x for call in self.calls if call.x.requires_grad]
        self.slopes: list[Tensor | None] = [None] * len(self.calls)
        if inputs and objective.requires_grad:
            fixed = torch.autograd.grad(objective, inputs, retain_graph=True, materialize_grads=True)
            cut.switch.closed = True
            slopes = torch.autograd.grad(
                inputs, [call.y for call in self.calls], fixed, create_graph=True, allow_unused=True
            )
            self.slopes = [s if s is not None and s.requires_grad else None for s in slopes]
        for call in self.calls:
            call.x = call.x.detach()

    def product(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return S v for all neurons.

        Args:
            vectors: Directions v, for some weights a tensor of the weight's shape.

        Returns:
            S v, shaped alike.
        """
        leaves = {name: vector.detach().requires_grad_() for name, vector in vectors.items()}
        result = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        found = [(c, s) for c, s in zip(self.calls, self.slopes, strict=True) if c.name in leaves and s is not None]
        if not found:
            return result
        with torch.enable_grad():
            moved = [call.linear(leaves[call.name]) for call, _ in found]
        bent = torch.autograd.grad(
            [slope for _, slope in found],
            [call.y for call, _ in found],
            [m.detach() for m in moved],
            retain_graph=True,
            materialize_grads=True,
        )
        for (call, _), m, b in zip(found, moved, bent, strict=True):
            result[call.name] += torch.autograd.grad(m, leaves[call.name], b)[0]
        return result


class SplittingMatrices:
    """Products with the splitting matrices of the neurons of some groups, averaged over batches.

    Every product goes through all batches again, part by part: a forward and a backward of each part, whose graph is
    dropped once it is multiplied. A single part is kept.

    Args:
        model: The model in eval mode, only read.
        graph: Its graph.
        batches: The batches, fixed.
        loss_fn: The loss of (output, target).
        groups: Names of the groups.
        micro_batch: Samples that are held in memory at once; None for whole batches.

    Attributes:
        units: For each group that can be treated, where its neurons' incoming weights lie.
        untreated: For each other group, why.

    Reference:
        Liu, Wu, Wang 2019 (arXiv 1910.02366), equation 4; Wang et al. 2019 (arXiv 1910.03103) for the products.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, batches: Sequence[Batch], loss_fn: LossFn, groups: Sequence[str],
        micro_batch: int | None = MICRO_BATCH,
    ) -> None:  # fmt: skip
        self.forward = _Frozen(model)
        self.parts = [part for batch in batches for part in in_parts(self.forward, batch, loss_fn, micro_batch)]
        self.num_batches = len(batches)
        self.kept = Curvature(self.forward, self.parts[0]) if len(self.parts) == 1 else None
        self.units: dict[str, Units] = {}
        self.untreated: dict[str, str] = {}
        cut = {call.name: call.groups for call in self.forward.calls(self.parts[-1].inputs)}
        taken: set[str] = set()
        for name in groups:
            slots = [s for s in graph[name].slots if s.role == "producer" and s.parameter in cut]
            complex_weights = any(self.forward.weights[slot.parameter].is_complex() for slot in graph[name].slots)
            why = "has complex weights" if complex_weights else _untreatable(graph, name, cut, slots)
            if why is None and len({s.parameter for s in slots}) < len(slots):
                why = "has several axes of one parameter"
            units = old_units(graph, name, slots if why is None else ())
            rows = {f"{key}:{i}" for key, index in units.places.items() for i in index.flatten().tolist()}
            if why is None and rows & taken:
                why = "shares its weights with another group"
            if why is not None:
                self.untreated[name] = why
                continue
            taken |= rows
            self.units[name] = units

    def product(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return S v for every neuron of every group.

        Args:
            vectors: For each group, directions of shape (units, incoming weights).

        Returns:
            S v, shaped alike.
        """
        spread: dict[str, Tensor] = {}
        for name, v in vectors.items():
            for key, tensor in self.units[name].scatter(v).items():
                parameter = key.rpartition(":")[0]
                spread[parameter] = spread[parameter] + tensor if parameter in spread else tensor
        total: dict[str, Tensor] = {}
        for part in self.parts:
            curvature = self.kept or Curvature(self.forward, part)
            for parameter, tensor in curvature.product(spread).items():
                total[parameter] = total[parameter] + tensor if parameter in total else tensor
            del curvature  # Before the next part's is built.
        mean = {parameter: tensor / self.num_batches for parameter, tensor in total.items()}
        return {
            name: self.units[name].gather({key: mean[key.rpartition(":")[0]] for key in self.units[name].places})
            for name in vectors
        }

    def weights(self, group: str) -> Tensor:
        """Return the incoming weights θ of a group's neurons, shape (units, incoming weights)."""
        stored = self.forward.weights
        return self.units[group].gather({key: stored[key.rpartition(":")[0]] for key in self.units[group].places})

    def dense(self, group: str) -> Tensor:
        """Return the splitting matrices themselves, for small layers; shape (units, d, d).

        Args:
            group: Name of the group.

        Returns:
            One symmetric matrix for each neuron.
        """
        like = self.weights(group)
        columns = []
        for j in range(like.shape[1]):
            unit = torch.zeros_like(like)
            unit[:, j] = 1
            columns.append(self.product({group: unit})[group])
        return torch.stack(columns, dim=2)


def _untreatable(graph: Graph, name: str, cut: Mapping[str, int], slots: Sequence[Slot]) -> str | None:
    group = graph[name]
    if group.inexact:
        return f"changes the function when it grows ({group.inexact})"
    if why := graph.why_not_copied(name):
        return why
    consumers = [s.parameter for s in group.slots if s.role == "consumer"]
    if not slots or not consumers:
        return "has no fan-in or no fan-out of its own"
    if any(parameter not in cut for parameter in consumers):
        return "is read by an operator whose input cannot be observed"
    for slot in slots:
        first = graph.positions(name, slot, 0)
        if cut[slot.parameter] == group.size > 1 and len(first) > 1 and first == list(range(len(first))):
            return "is made of whole groups of a grouped convolution"
    return None


def smallest(
    matrices: SplittingMatrices, iterations: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the smallest eigenvalue of every splitting matrix and its eigenvector, by Lanczos with S·v products.

    All neurons of all groups iterate together; vectors are orthogonalised against all earlier ones, so that d
    iterations are exact. Memory: ``iterations`` copies of the weights.

    Args:
        matrices: The splitting matrices.
        iterations: Products S·v at most.
        generator: Source of the starting directions.

    Returns:
        For each group the eigenvalues, shape (units,), and unit eigenvectors, shape (units, incoming weights).
    """
    basis: dict[str, list[Tensor]] = {}
    diagonal: dict[str, list[Tensor]] = {name: [] for name in matrices.units}
    beside: dict[str, list[Tensor]] = {name: [] for name in matrices.units}
    for name in matrices.units:
        like = matrices.weights(name)
        start = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
        basis[name] = [start / start.norm(dim=1, keepdim=True)]
    for step in range(iterations):
        active = {name: vectors[-1] for name, vectors in basis.items() if len(vectors) > step}
        if not active:
            break
        for name, moved in matrices.product(active).items():
            q = torch.stack(basis[name])
            diagonal[name].append((q[-1] * moved).sum(1))
            for _ in range(2):
                moved = moved - torch.einsum("mnd,mn->nd", q, torch.einsum("mnd,nd->mn", q, moved))
            norm = moved.norm(dim=1)
            size = torch.stack(diagonal[name]).abs().amax(0) + (torch.stack(beside[name]).amax(0) if step else 0)
            alive = norm > 1e-9 * size.clamp(min=torch.finfo(norm.dtype).tiny)
            if step + 1 < min(iterations, moved.shape[1]) and bool(alive.any()):
                beside[name].append(torch.where(alive, norm, 0))
                basis[name].append(torch.where(alive[:, None], moved / norm.clamp(min=1e-300)[:, None], 0))
    values, vectors = {}, {}
    for name, stored in basis.items():
        q = torch.stack(stored)
        tridiagonal = torch.diag_embed(torch.stack(diagonal[name], 1))
        if beside[name]:
            off = torch.diag_embed(torch.stack(beside[name], 1), offset=1)
            tridiagonal = tridiagonal + off + off.transpose(1, 2)
        # Directions beyond an invariant subspace are zero vectors; they must not pass for an eigenvalue of zero.
        empty = (q.norm(dim=2) == 0).T
        largest = tridiagonal.abs().amax((1, 2))
        tridiagonal = tridiagonal + torch.diag_embed(empty.to(q) * (largest + 1)[:, None])
        value, vector = torch.linalg.eigh(tridiagonal)
        # Below what rounding makes of it, an eigenvalue is zero: that neuron is no saddle.
        rounding = 100 * torch.finfo(value.dtype).eps * largest
        values[name] = torch.where(value[:, 0] < -rounding, value[:, 0], value[:, 0].clamp(min=0))
        found = torch.einsum("mnd,nm->nd", q, vector[:, :, 0])
        vectors[name] = found / found.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return values, vectors
