"""The refinement: a few steps of plain SGD on the similarity objective, without data, right after a growth event."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.capture import normalise_inputs, outputs_of, unwrap
from auxin.similarity.averages import followed
from auxin.similarity.distribution import of_histogram
from auxin.similarity.layers import Layer, find_layers, grown_units, masks
from auxin.similarity.norms import batch_norms, reestimate_norms
from auxin.similarity.record import LayerChange, Refinement
from auxin.similarity.terms import mean_off_diagonal, of_cosine_map, of_mean_similarity, of_weight_change
from auxin.surgery.averages import averaged_copies
from auxin.types import Event, GrowthPlan

LARGEST_BATCH = 2**25
"""Weights or cosines of the layers that are refined together; larger ones take turns, which bounds memory."""


@dataclass(frozen=True)
class Similarity:
    """What to do to a model's neurons after a growth event: move them apart, and keep each layer's sum of weights.

        minimise Σ_layers a·μ + λ·ω     (Eq. 5; a = mean_similarity: Eq. 3, "Proposed1"; λ = weight_change: Eq. 4)

    by SGD without momentum on the weights alone; no data, no training optimizer. Each iteration takes a step on the
    first term and then one on the second, which, in its sound form, stops at that term's minimum.

    Attributes:
        iterations: Number of steps.
        mean_similarity: Factor of μ; true is 1, false or 0 turns the term off.
        weight_change: Factor of ω; true is 1, false or 0 turns the term off.
        literal: Take Eq. 4 by the paper's letters, which is unbounded below.
        lr: Step size. A relative step turns a neuron by about 2·lr/sqrt(n) in a layer of n nearly orthogonal neurons.
        relative: Scale each neuron's step by n·|w|², so that it does not depend on the scale of the weights and hardly
            on the width; false is SGD on the weights as they are.
        neurons: "new" moves only the neurons an event added, "new_and_parents" those they were copied from too,
            "all" every neuron. Outside an event only "all" makes sense.
        layers: Names or regular expressions of the modules to treat; None treats all.
        depthwise: Whether to treat depthwise convolutions.
        classifier: Whether to treat the layers whose neurons are the model's outputs.
        reestimate_norms: Batches on which batch norms are re-estimated afterwards; 0 leaves them.

    Raises:
        ConfigError: If a setting makes no sense.

    Reference:
        Sakai and Hotta 2024 (arXiv 2408.13291), section 3.
    """

    iterations: int = 15
    mean_similarity: float = 1.0
    weight_change: float = 0.0
    literal: bool = False
    lr: float = 0.03
    relative: bool = True
    neurons: Literal["new", "new_and_parents", "all"] = "new"
    layers: tuple[str, ...] | None = None
    depthwise: bool = False
    classifier: bool = False
    reestimate_norms: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.layers, (str, list)):
            given = self.layers
            object.__setattr__(self, "layers", (given,) if isinstance(given, str) else tuple(given))
        for name in ("mean_similarity", "weight_change"):
            object.__setattr__(self, name, float(getattr(self, name)))
        whole = type(self.iterations) is int and self.iterations >= 0
        _require(whole, f"similarity.iterations is {self.iterations}: give a whole number, 0 or more.")
        for name in ("lr", "mean_similarity", "weight_change"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"similarity.{name} is {value}: give a finite number, 0 or more.")
        _require(
            self.mean_similarity > 0 or self.weight_change > 0,
            "similarity has both terms turned off: set mean_similarity or weight_change above 0.",
        )
        _require(
            not self.literal or self.weight_change > 0,
            "similarity.literal is about the second term: set weight_change above 0 with it.",
        )
        _require(
            self.neurons in ("new", "new_and_parents", "all"),
            f"similarity.neurons is {self.neurons!r}: choose new, new_and_parents or all.",
        )
        _require(self.layers is None or len(self.layers) > 0, "similarity.layers is empty: name a layer, or give null.")
        _require(
            self.reestimate_norms >= 0,
            f"similarity.reestimate_norms is {self.reestimate_norms}: give a number of batches, 0 or more.",
        )

    def refine(
        self,
        model: nn.Module,
        *,
        graph: Graph | None = None,
        event: Event | None = None,
        plan: GrowthPlan | None = None,
        batches: Iterable[Any] | None = None,
        ema: nn.Module | Sequence[nn.Module] = (),
    ) -> Refinement:
        """Refine a model in place; ``auxin.similarity.refine`` explains the arguments."""
        return refine(model, self, graph=graph, event=event, plan=plan, batches=batches, ema=ema)


@torch.inference_mode(False)  # gradients are needed
def refine(
    model: nn.Module,
    similarity: Similarity | None = None,
    *,
    graph: Graph | None = None,
    event: Event | None = None,
    plan: GrowthPlan | None = None,
    batches: Iterable[Any] | None = None,
    ema: nn.Module | Sequence[nn.Module] = (),
) -> Refinement:
    """Move a model's neurons apart, in place; works on any module, grown or not.

    Parameters keep their identity, type and layout; gradients and the training optimizer's state are not touched, and
    no random number is drawn.

    Args:
        model: Any module.
        similarity: What to do; None moves all neurons.
        graph: The model's graph. It tells the classifier and, after growth, which neurons are new.
        event: The growth event that this follows; needed for ``neurons="new"`` unless there is a plan.
        plan: The plan of that event; needed for ``neurons="new_and_parents"``.
        batches: Model inputs for re-estimating batch norms.
        ema: An averaged copy of the model, or several; their weights move by as much, and their norms are re-estimated
            alike.

    Returns:
        What it did.

    Raises:
        ConfigError: If neurons are to be told apart without graph and event, norms re-estimated without batches,
            weights are not finite, or the step is so large that they no longer are; the model is then as it was.

    Example:
        >>> import torch, auxin
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> record = auxin.similarity.refine(model)
        >>> record.after < record.before
        True
    """
    started = time.perf_counter()
    similarity = similarity or Similarity(neurons="all")
    model = unwrap(model)
    norms = batch_norms(model) if similarity.reestimate_norms else []
    if norms and batches is None:
        raise ConfigError("Batch norms are to be re-estimated: pass batches=, or reestimate_norms=0.")
    layers = find_layers(
        model, graph=graph, layers=similarity.layers, depthwise=similarity.depthwise, classifier=similarity.classifier
    )
    free, notes = _free(model, similarity, layers, graph, event, plan)
    if not layers:
        notes = (*notes, "no convolution or linear layer has two neurons of its own that could be compared")
    before = None if graph is None else _outputs(model, graph.example_inputs)
    copies = averaged_copies(model, ema)
    with followed(model, layers, copies):
        changes = _move(layers, free, similarity)
    now = time.perf_counter()
    done = 0
    if norms and batches is not None:
        batches = list(islice(batches, similarity.reestimate_norms)) if copies else batches
        done = reestimate_norms(model, batches, similarity.reestimate_norms)
        for average in copies:
            reestimate_norms(average, batches, similarity.reestimate_norms)
    norm_seconds = time.perf_counter() - now
    moved = None
    if before is not None and graph is not None:
        after = _outputs(model, graph.example_inputs)
        moved = max((float((a - b).abs().max()) for a, b in zip(before, after, strict=True) if a.numel()), default=0.0)
    seconds = time.perf_counter() - started - norm_seconds
    return Refinement(changes, similarity.iterations, similarity.neurons, done, moved, seconds, norm_seconds, notes)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)


def _free(
    model: nn.Module, similarity: Similarity, layers: Sequence[Layer], graph: Graph | None, event: Event | None,
    plan: GrowthPlan | None,
) -> tuple[list[Tensor], tuple[str, ...]]:  # fmt: skip
    """Return for each layer which neurons may move, (groups, n)."""
    if similarity.neurons == "all":
        return [layer.neurons(torch.arange(layer.weight.shape[layer.dim])) for layer in layers], ()
    if graph is None:
        raise ConfigError('Only the graph knows which neurons are new: pass graph= and event=, or neurons="all".')
    units, notes = grown_units(event, plan, graph, similarity.neurons == "new_and_parents")
    return masks(model, layers, graph, units), notes


def _move(layers: Sequence[Layer], free: Sequence[Tensor], similarity: Similarity) -> tuple[LayerChange, ...]:
    """Refine layers of one shape together, and write all of them back once all are known to be finite."""
    results: dict[int, tuple[Tensor, LayerChange]] = {}
    for indices in _batches(layers):
        start = torch.cat([layers[i].matrices().detach() for i in indices])
        mask = torch.cat([free[i] for i in indices])
        end = descend(start, mask, similarity)
        measured, counts = _measure(start, end, mask)
        if not bool(torch.isfinite(end).all() & torch.isfinite(measured).all()):
            for i in indices:
                _require(
                    bool(torch.isfinite(layers[i].weight).all()),
                    f"The weights of {layers[i].name} were not finite before the similarity refinement, which leaves "
                    "the model as it was: go back to a checkpoint in which they are.",
                )
            raise ConfigError(
                f"A similarity.lr of {similarity.lr:g} makes weights infinite and the model is as it was: lower it, "
                "or turn literal off."
            )
        sizes = [layers[i].groups for i in indices]
        portions = zip(indices, end.split(sizes), measured.split(sizes), counts.split(sizes), strict=True)
        for i, matrices, values, pairs in portions:
            mu, mu_after, new, new_after, change, moved = values.mean(0).tolist()
            some = bool(free[i].any())
            earlier, later = (tuple(row) for row in pairs.sum(0).tolist())
            line = LayerChange(
                layers[i].name,
                mu,
                mu_after,
                new if some else None,
                new_after if some else None,
                change,
                moved,
                earlier,
                later,
            )
            results[i] = matrices, line
    with torch.no_grad():
        for i, (matrices, _) in results.items():
            if similarity.iterations and similarity.lr and bool(free[i].any()):
                layers[i].weight.copy_(layers[i].restore(matrices))
    return tuple(results[i][1] for i in range(len(layers)))


def _batches(layers: Sequence[Layer]) -> list[list[int]]:
    """Return the indices of layers of one shape, device and type, in portions of bounded size."""
    alike: dict[Any, list[list[int]]] = {}
    sizes: dict[Any, int] = {}
    for i, layer in enumerate(layers):
        weight = layer.weight
        key = (weight.shape, layer.dim, layer.groups, weight.device, weight.dtype)
        neurons = weight.shape[layer.dim] * layer.blocks
        size = max(weight.numel(), neurons * neurons // layer.groups)
        if key not in alike or sizes[key] + size > LARGEST_BATCH:
            alike.setdefault(key, []).append([])
            sizes[key] = 0
        alike[key][-1].append(i)
        sizes[key] += size
    return [portion for portions in alike.values() for portion in portions]


def descend(matrices: Tensor, free: Tensor, similarity: Similarity) -> Tensor:
    """Return weights after the iterations; each matrix is a layer of its own.

    Args:
        matrices: Weights (L, n, d), float32 or float64.
        free: Neurons that may move, (L, n).
        similarity: What to do.

    Returns:
        (L, n, d); neurons that may not move, or have no weights, are bit-equal.
    """
    norms = torch.linalg.vector_norm(matrices, dim=2, keepdim=True)
    factor = torch.ones_like(norms)
    if similarity.relative:
        factor = (norms > 0).sum(1, keepdim=True) * norms.square()
    rate = similarity.lr * factor * free[:, :, None]
    sums, absolute = matrices.sum((1, 2)), matrices.abs().sum((1, 2))
    current = matrices
    for _ in range(similarity.iterations):
        if similarity.mean_similarity:
            with torch.enable_grad():
                variable = current.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(of_mean_similarity(variable).sum(), variable)
            current = current - similarity.mean_similarity * rate * gradient
        if similarity.weight_change:
            current = current - _step_on_sums(current, sums, absolute, rate.expand_as(current), similarity)
    return torch.where(free[:, :, None], current, matrices).detach()


def _step_on_sums(current: Tensor, previous: Tensor, absolute: Tensor, rate: Tensor, similarity: Similarity) -> Tensor:
    """Return the step on λ·ω: the same for all weights of a neuron, as ω depends on their sum alone."""
    with torch.enable_grad():
        sums = current.detach().sum((1, 2)).requires_grad_()
        change = of_weight_change(sums, previous, absolute, literal=similarity.literal).sum()
        (slope,) = torch.autograd.grad(change, sums)
    step = similarity.weight_change * slope[:, None, None] * rate
    if similarity.literal:
        return step
    # |·| has a kink at its minimum, around which a plain step would jump to and fro: stop there.
    length = step.sum((1, 2))
    share = ((sums.detach() - previous) / torch.where(length == 0, 1, length)).clamp(0, 1)
    return step * share[:, None, None]


def _measure(start: Tensor, end: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Return the six numbers of a ``LayerChange`` for each matrix, (L, 6), and its two histograms, (L, 2, bins)."""
    maps, maps_after = of_cosine_map(start), of_cosine_map(end)
    size = torch.linalg.vector_norm(start, dim=(1, 2))
    columns = (
        mean_off_diagonal(maps),
        mean_off_diagonal(maps_after),
        mean_off_diagonal(maps, free),
        mean_off_diagonal(maps_after, free),
        of_weight_change(end.sum((1, 2)), start.sum((1, 2)), size, literal=True),
        torch.linalg.vector_norm(end - start, dim=(1, 2)) / torch.where(size == 0, 1, size),
    )
    return torch.stack(columns, 1).double(), torch.stack([of_histogram(maps), of_histogram(maps_after)], 1)


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    return [one.double() for one in outputs_of(model, normalise_inputs(inputs)) if one.is_floating_point()]
