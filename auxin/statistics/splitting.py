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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from auxin.graph import Graph
from auxin.graph.capture import clone_tensors, normalise_inputs
from auxin.statistics.activations import SMOOTHED
from auxin.statistics.batches import Batch, precision
from auxin.statistics.units import Units, old_units
from auxin.types import LossFn, Slot

CONVOLUTIONS: tuple[Callable[..., Any], ...] = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
)  # fmt: skip
PLACES: dict[Callable[..., Any], tuple[int, int, int | None]] = {
    **dict.fromkeys((F.linear, *CONVOLUTIONS), (0, 1, 2)),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), (0, 1, None)),
    torch.addmm: (1, 2, 0),
    F.embedding: (0, 1, None),
}
"""Where each linear map takes its input, its weight and its bias."""


@dataclass
class Call:
    """One linear map of one forward: y = f(x, weight)."""

    name: str
    linear: Callable[[Tensor], Tensor]
    x: Tensor
    y: Tensor
    groups: int = 1


class _Cut(TorchFunctionMode):
    """Intercepts the linear maps of a forward; ``replay`` returns stored outputs in place of computing them."""

    def __init__(self, names: Mapping[int, str], replay: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.names, self.replay = names, replay
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SMOOTHED:
            return SMOOTHED[func](*args, **kwargs)
        places = PLACES.get(func)
        if places is None:
            return func(*args, **kwargs)
        args, kwargs = _positional(args, kwargs)
        weight = args[places[1]] if len(args) > places[1] else None
        name = self.names.get(id(weight))
        groups = _groups(func, args, kwargs)
        # A depthwise filter treats channels one by one: it belongs to what lies between the cuts.
        if weight is None or name is None or (groups > 1 and weight.shape[1] == 1):
            return func(*args, **kwargs)
        return self._cut(func, places, name, groups, list(args), kwargs)

    def _cut(self, func: Any, places: Any, name: str, groups: int, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
        x_at, weight_at, bias_at = places
        x = args[x_at]
        x = x.view_as(x)
        stored = x.detach()
        if self.replay:
            y = self.replay[len(self.calls)]
        else:
            y = func(*[x if i == x_at else arg for i, arg in enumerate(args)], **kwargs)
            y = y if y.requires_grad else y.requires_grad_()

        def linear(weight: Tensor) -> Tensor:
            given = list(args)
            given[x_at], given[weight_at] = stored, weight
            if bias_at is not None and len(given) > bias_at and given[bias_at] is not None:
                given[bias_at] = torch.zeros_like(given[bias_at])
            result: Tensor = func(*given, **kwargs)
            return result

        self.calls.append(Call(name, linear, x, y, groups))
        # A leaf may not be changed in place, as a model may do with its own activation.
        return y.clone()


def _positional(args: Any, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with input, weight and bias in their places, also where they were given by name."""
    kwargs = dict(kwargs)
    for name in ("input", "weight", "bias"):
        if name in kwargs and len(args) == ("input", "weight", "bias").index(name):
            args = (*args, kwargs.pop(name))
    return tuple(args), kwargs


def _groups(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    if func not in CONVOLUTIONS:
        return 1
    return int(kwargs.get("groups", args[6] if len(args) > 6 else 1))


class Curvature:
    """The stored linear maps of one batch, and products with the splitting matrices of all neurons."""

    def __init__(self, model: nn.Module, batch: Batch, loss_fn: LossFn) -> None:
        state = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        dtype = precision(model)
        self.weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
        self.names = {id(self.weights[name]): name for name, _ in model.named_parameters()}
        first = _Cut(self.names)
        loss = self._forward(model, batch, loss_fn, first)
        inputs = [call.x for call in first.calls if call.x.requires_grad]
        gradients = iter(torch.autograd.grad(loss, inputs, materialize_grads=True) if inputs else ())
        fixed = [next(gradients) if call.x.requires_grad else None for call in first.calls]
        outputs = [call.y.detach().requires_grad_() for call in first.calls]
        del loss, first, inputs
        second = _Cut(self.names, outputs)
        self._forward(model, batch, loss_fn, second)
        self.calls = second.calls
        terms = [
            (g * call.x).sum()
            for g, call in zip(fixed, self.calls, strict=True)
            if g is not None and call.x.requires_grad
        ]
        self.slopes: list[Tensor | None] = [None] * len(outputs)
        if terms:
            slopes = torch.autograd.grad(torch.stack(terms).sum(), outputs, create_graph=True, allow_unused=True)
            self.slopes = [s if s is not None and s.requires_grad else None for s in slopes]
        for call in self.calls:
            call.x = call.x.detach()

    def _forward(self, model: nn.Module, batch: Batch, loss_fn: LossFn, cut: _Cut) -> Tensor:
        args, kwargs = clone_tensors(normalise_inputs(batch.inputs))
        state = {n: t if id(t) in self.names else t.clone() for n, t in self.weights.items()}
        with cut:
            output = functional_call(model, state, args, kwargs)
        return loss_fn(output, batch.target)

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

    Args:
        model: The model in eval mode, only read.
        graph: Its graph.
        batches: The batches, fixed.
        loss_fn: The loss of (output, target).
        groups: Names of the groups.

    Attributes:
        units: For each group that can be treated, where its neurons' incoming weights lie.
        untreated: For each other group, why.

    Reference:
        Liu, Wu, Wang 2019 (arXiv 1910.02366), equation 4; Wang et al. 2019 (arXiv 1910.03103) for the products.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, batches: Sequence[Batch], loss_fn: LossFn, groups: Sequence[str]
    ) -> None:
        self.parts = [Curvature(model, batch, loss_fn) for batch in batches]
        self.units: dict[str, Units] = {}
        self.untreated: dict[str, str] = {}
        cut = {call.name: call.groups for call in self.parts[0].calls}
        taken: set[str] = set()
        for name in groups:
            slots = [s for s in graph[name].slots if s.role == "producer" and s.parameter in cut]
            why = _untreatable(graph, name, cut, slots)
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
            for parameter, tensor in part.product(spread).items():
                total[parameter] = total[parameter] + tensor if parameter in total else tensor
        mean = {parameter: tensor / len(self.parts) for parameter, tensor in total.items()}
        return {
            name: self.units[name].gather({key: mean[key.rpartition(":")[0]] for key in self.units[name].places})
            for name in vectors
        }

    def weights(self, group: str) -> Tensor:
        """Return the incoming weights θ of a group's neurons, shape (units, incoming weights)."""
        stored = self.parts[0].weights
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
    if graph.reads_what_it_writes(name):
        return "is read through the axis that writes it"
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
        tridiagonal = tridiagonal + torch.diag_embed(empty.to(q) * (tridiagonal.abs().amax((1, 2)) + 1)[:, None])
        value, vector = torch.linalg.eigh(tridiagonal)
        values[name] = value[:, 0]
        found = torch.einsum("mnd,nm->nd", q, vector[:, :, 0])
        vectors[name] = found / found.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return values, vectors
