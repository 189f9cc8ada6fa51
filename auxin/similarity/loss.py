"""The objective as a term for every training step, for those who want it there instead of after growth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.capture import unwrap
from auxin.similarity.layers import Layer, find_layers
from auxin.similarity.refine import Similarity
from auxin.similarity.terms import of_mean_similarity, of_weight_change


def loss(
    model: nn.Module,
    similarity: Similarity | None = None,
    *,
    graph: Graph | None = None,
    previous: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the objective summed over layers, Eq. 5: Σ_layers a·μ + λ·ω.

    Args:
        model: Any module.
        similarity: Which terms, with which factors (a is ``mean_similarity``, λ is ``weight_change``), on which layers;
            None is μ alone. The settings of the refinement loop do not matter here.
        graph: Its graph, which knows the classifier.
        previous: Weights to measure ω from, by name, such as a deep copy of ``model.state_dict()``.

    Returns:
        A scalar, differentiable with respect to the model's weights.

    Raises:
        ConfigError: If ω is asked for without ``previous``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> (0.1 * loss(model)).backward()
        >>> model[0].weight.grad.shape, model[2].weight.grad
        (torch.Size([8, 4]), None)
    """
    similarity = similarity or Similarity()
    model = unwrap(model)
    layers = find_layers(
        model, graph=graph, layers=similarity.layers, depthwise=similarity.depthwise, classifier=similarity.classifier
    )
    if similarity.weight_change and previous is None:
        raise ConfigError(
            "The change of weights is measured from earlier ones: pass previous=copy.deepcopy(model.state_dict())."
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    terms: list[Tensor] = []
    for layer in layers:
        matrices = layer.matrices()
        if similarity.mean_similarity:
            terms.append(similarity.mean_similarity * of_mean_similarity(matrices).sum())
        if similarity.weight_change and previous is not None:
            before = _earlier(layer, names[id(layer.weight)], previous)
            sums, sums_before, absolute = matrices.sum((1, 2)), before.sum((1, 2)), before.abs().sum((1, 2))
            change = of_weight_change(sums, sums_before, absolute, literal=similarity.literal)
            terms.append(similarity.weight_change * change.sum())
    return torch.stack([term.to(terms[0]) for term in terms]).sum() if terms else torch.zeros(())


def _earlier(layer: Layer, name: str, previous: Mapping[str, Tensor]) -> Tensor:
    value = previous.get(name)
    if value is None or value.shape != layer.weight.shape:
        raise ConfigError(
            f"previous= has no {name!r} of shape {tuple(layer.weight.shape)}: take it after the last growth event."
        )
    return layer.matrices(value.detach().to(layer.weight))
