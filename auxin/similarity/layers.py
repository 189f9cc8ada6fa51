"""Which weights the constraint applies to, how each is laid out as neurons × weights, and which neurons are new."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.graph import Graph
from auxin.graph.axes import gather_index
from auxin.graph.capture import unwrap
from auxin.types import Event, GrowthPlan, Widen

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight, and how to read it as matrices of neurons × weights.

    Filters of a grouped convolution read different inputs, so they are compared within their group: such a layer is
    ``groups`` matrices, each of which counts as a layer in Eq. 5. A depthwise layer, where asked for, is one matrix.

    Attributes:
        name: Path of the module.
        weight: Its weight, or another tensor laid out alike.
        dim: The dimension that counts neurons: 0; 1 for transposed convolutions and the GPT family's Conv1D.
        groups: Number of matrices.
        blocks: Number of groups of a transposed convolution, which hides them in its input dimension; else 1.
    """

    name: str
    weight: Tensor
    dim: int = 0
    groups: int = 1
    blocks: int = 1

    def matrices(self, weight: Tensor | None = None) -> Tensor:
        """Return the weight, or another tensor of its shape, as (groups, n, d) in float32 at least; differentiable."""
        weight = self.weight if weight is None else weight
        rows = self._rows(weight if weight.dtype == torch.float64 else weight.float())
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)

    def restore(self, matrices: Tensor) -> Tensor:
        """Return (groups, n, d) in the weight's own shape."""
        shape = self._rows(self.weight.detach()).shape
        if self.dim == 0:
            return matrices.reshape(shape)
        split = matrices.reshape(self.blocks, shape[0] // self.blocks, *shape[1:])
        return split.transpose(1, 2).reshape(self.weight.shape)

    def neurons(self, positions: Tensor) -> Tensor:
        """Return a mask (groups, n) of the neurons at some positions along ``dim``."""
        device = self.weight.device
        mask = torch.zeros(self.weight.shape[self.dim], dtype=torch.bool, device=device)
        mask[positions.to(device)] = True
        return mask.repeat(self.blocks).reshape(self.groups, -1)

    def _rows(self, weight: Tensor) -> Tensor:
        """Return the weight as (C_out, inputs, ...)."""
        if self.dim == 0:
            return weight
        split = weight.reshape(self.blocks, weight.shape[0] // self.blocks, *weight.shape[1:])
        return split.transpose(1, 2).flatten(0, 1)


def find_layers(
    model: nn.Module,
    *,
    graph: Graph | None = None,
    layers: Sequence[str] | None = None,
    depthwise: bool = False,
    classifier: bool = False,
) -> list[Layer]:
    """Return the weights that the constraint applies to.

    Convolutions (transposed and pointwise ones too) and linear layers with at least two neurons and a trainable weight
    of their own; a weight shared by two modules counts once. Attention's packed ``in_proj_weight`` holds three layers
    in one and is left out, and so are complex weights.

    Args:
        model: Any module.
        graph: Its graph, which knows the classifier: the layers whose neurons reach the model's output. Without one,
            the last layer is taken for it.
        layers: Names or regular expressions of module paths to keep; None keeps all.
        depthwise: Whether to take depthwise convolutions, whose filters read different channels.
        classifier: Whether to take the classifier.

    Returns:
        In the order of the model's modules.

    Raises:
        ConfigError: If a name matches no layer.
    """
    model = unwrap(model)
    found = all_layers(model)
    last = found[-1][0] if found else None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    usable = [
        layer
        for layer, is_depthwise in found
        if layer.weight.requires_grad
        and layer.weight.shape[layer.dim] * layer.blocks >= 2 * layer.groups
        and (depthwise or not is_depthwise)
        and (classifier or not _is_output(layer, names[id(layer.weight)], graph, last))
    ]
    if layers is None:
        return usable
    for pattern in layers:
        if not any(re.fullmatch(pattern, layer.name) for layer in usable):
            known = ", ".join(layer.name for layer in usable) or "none"
            raise ConfigError(
                f"No layer of the similarity constraint is called {pattern!r}; there are: {known} "
                "(depthwise=True and classifier=True add those)."
            )
    return [layer for layer in usable if any(re.fullmatch(pattern, layer.name) for pattern in layers)]


def all_layers(model: nn.Module) -> list[tuple[Layer, bool]]:
    """Return every real convolution and linear layer, a shared weight once, and whether it is depthwise."""
    names = {id(parameter) for parameter in model.parameters()}
    found: list[tuple[Layer, bool]] = []
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) not in names or isinstance(weight, nn.parameter.UninitializedParameter):
            continue
        if weight.is_complex():  # the cosines of Eq. 1 are of real vectors
            continue
        layer, is_depthwise = _read(path, module, weight)
        if layer is not None:
            names.remove(id(weight))
            found.append((layer, is_depthwise))
    return found


def _read(path: str, module: nn.Module, weight: nn.Parameter) -> tuple[Layer | None, bool]:
    if isinstance(module, nn.Linear):
        return Layer(path, weight), False
    if isinstance(module, _CONVOLUTIONS):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        return Layer(path, weight, groups=1 if depthwise else module.groups), depthwise
    if isinstance(module, _TRANSPOSED):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        groups = 1 if depthwise else module.groups
        return Layer(path, weight, dim=1, groups=groups, blocks=module.groups), depthwise
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight.ndim == 2:
        return Layer(path, weight, dim=1), False
    return None, False


def _is_output(layer: Layer, name: str, graph: Graph | None, last: Layer | None) -> bool:
    if graph is None or name not in graph.axes:
        return layer is last
    atoms = list(graph.axes[name][layer.dim].atoms())
    return any(atom.frozen is not None and "model's output" in atom.frozen for atom in atoms)


def grown_units(
    event: Event | None, plan: GrowthPlan | None, graph: Graph, parents: bool
) -> tuple[dict[str, set[int]], tuple[str, ...]]:
    """Return the units of each width group that an event added, and on request those they were copied from.

    Args:
        event: What was applied.
        plan: What was planned; knows the parents.
        graph: The graph after growth.
        parents: Whether to add the parents.

    Returns:
        Units by group, and sentences about groups that the graph no longer has.

    Raises:
        ConfigError: If the event or plan does not say.
    """
    added: Counter[str] = Counter()
    if event is not None:
        for change in event.changes:
            added[change.target] += (change.after - change.before) if change.kind == "widen" else 0
    elif plan is not None:
        for op in plan.operations:
            if isinstance(op, Widen):
                added[op.group] += op.by
    else:
        raise ConfigError('Only some neurons are to move, but which are new? Pass event= or plan=, or neurons="all".')
    if parents and plan is None:
        raise ConfigError('Only a plan knows the parents of new neurons: pass plan=, or neurons="new".')
    known = {group.name: group.size for group in graph.groups}
    units = {name: set(range(known[name] - by, known[name])) for name, by in added.items() if by and name in known}
    for op in plan.operations if parents and plan is not None else ():
        if isinstance(op, Widen) and op.group in units:
            units[op.group].update(parent for parent in op.parents if parent >= 0)
    missing = sorted(name for name in added if added[name] and name not in known)
    return units, tuple(f"the new neurons of {name} have another name now and were left alone" for name in missing)


def masks(model: nn.Module, layers: Sequence[Layer], graph: Graph, units: dict[str, set[int]]) -> list[Tensor]:
    """Return for each layer which neurons belong to some units of the graph's groups, each (groups, n)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted: dict[tuple[str, int], list[Tensor]] = {}
    for group, chosen in units.items():
        leaf = graph.atom(group)
        kept = torch.arange(leaf.size)
        kept[sorted(chosen)] = -1
        for slot in graph[group].slots:
            positions = (gather_index(graph.axes[slot.parameter][slot.dim], {leaf: kept}) < 0).nonzero().flatten()
            wanted.setdefault((slot.parameter, slot.dim), []).append(positions)
    none = torch.zeros(0, dtype=torch.int64)
    return [layer.neurons(torch.cat([none, *wanted.get((names[id(layer.weight)], layer.dim), [])])) for layer in layers]
