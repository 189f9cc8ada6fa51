"""From an unmodified module to its ``Graph``: capture, propagate, link the sizes that modules keep as attributes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod

# Importing the rules fills the table that propagation reads.
from auxin.graph import (  # noqa: F401
    rules,
    rules_create,
    rules_cut,
    rules_linear,
    rules_norm,
    rules_recurrent,
    rules_shape,
    rules_space,
)
from auxin.graph.axes import Axis, MismatchError, atom, factor_inner, freeze, is_frozen, resolve, unify
from auxin.graph.capture import capture, clone_tensors, repeats, unwrap
from auxin.graph.groups import Graph
from auxin.graph.propagate import Propagator
from auxin.graph.sites import find_sites
from auxin.graph.values import UNUSED, Attribute, Literal, Trace

# Names under which modules keep sizes; and words that mean something else, though the number may be the same.
SIZE_NAME = re.compile(
    r"head|dim|size|width|channel|feature|hidden|group|embed|inner|^nf$|^nx$|rep|^(c|d)_|planes|units|rank"
)
OTHER_NAME = re.compile(
    r"kernel|stride|pad|dilat|layer|patch|image|vocab|max|seq|len|class|depth|scale|factor|batch|window|block|chunk|bucket"
)


@torch.inference_mode(False)
def trace(model: nn.Module, example_inputs: Any) -> Graph:
    """Find what can grow in any module.

    Captures the forward once with ``torch.export`` and propagates, operator by operator, which parameter axes hold the
    same units. The model is not changed, and its training flags, buffers and the random state come back as they were.
    A forward that looks at the values of its tensors is followed as it goes for the example, with a warning.

    Args:
        model: Any ``nn.Module`` (behind ``torch.compile`` too).
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments that the forward
            accepts; a batch of two is a good choice.

    Returns:
        The graph; ``print(graph)`` shows every width group and depth site.

    Raises:
        TraceError: If the forward cannot be captured, or for the example decides not to use all parameters.

    Example:
        >>> import torch, auxin
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [group.name for group in auxin.trace(model, torch.randn(2, 4)).growable()]
        ['0']
    """
    model = unwrap(model)
    example_inputs = clone_tensors(example_inputs)
    module, bound, bare, first = capture(model, example_inputs)
    idle = _drop_dead(module.graph, bound)
    found = Trace(model)
    Propagator(found, bound).run(module.graph, module)
    used = {bound.get(str(node.target)) for node in module.graph.nodes if node.op == "placeholder" and node.users}
    axes = {name: value.axes for name, value in found.parameters.items() if name in used}
    trainable = frozenset(name for name, _ in model.named_parameters())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in axes:
            axes[name] = tuple(atom(int(n), UNUSED) for n in tensor.shape)
    _tie_attention(model, axes, found)
    _link_gpt_convs(model, axes, found)
    _link_literals(model, found)
    ordered = {name: axes[name] for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    _freeze_dead(ordered, idle)
    untrained = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if untrained == trainable:  # a model that is only looked at
        untrained = set()
    masks, repeated = _pruning_masks(model), _repeated(model)
    sites = find_sites(found, module.graph, bare, first, masks)
    return Graph(example_inputs, ordered, trainable, found, sites, untrained, masks, repeated)


def _repeated(model: nn.Module) -> set[tuple[str, int]]:
    """Return the axes along which a buffer repeats one pattern: a blur filter, the grid of a spline.

    A buffer of one number is left out, since a statistic may start so, and so is a single repetition.
    """
    return {
        (name, dim)
        for name, buffer in model.named_buffers()
        if buffer.numel() and buffer.layout == torch.strided and not buffer.is_quantized
        for dim, size in enumerate(buffer.shape)
        if size > 1 and repeats(buffer, dim) and not bool((buffer == buffer.flatten()[0]).all())
    }


def _pruning_masks(model: nn.Module) -> set[str]:
    """Return the buffers that ``torch.nn.utils.prune`` multiplies parameters by: 1 for a weight that is left, or 0.

    Other masks may be the model's own (autoregressive ones), and nothing says what they let a new unit see.
    """
    return {
        f"{path}.{hook._tensor_name}_mask".lstrip(".")
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, BasePruningMethod)
    }


def _drop_dead(graph: torch.fx.Graph, bound: Mapping[str, str]) -> set[str]:
    """Remove operators whose result nobody reads, such as attention weights that are thrown away.

    Those stay that alone use a parameter (the last residual path of a WaveNet): the forward runs them, so that their
    sizes have to follow what they read. Their nodes are marked as dead.

    Args:
        graph: The captured graph.
        bound: The parameter or buffer behind each placeholder.

    Returns:
        The parameters and buffers that nothing else uses.
    """
    nodes = list(graph.nodes)
    for node in nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)  # torch.export forgets some beside a region of autocast
    live: set[torch.fx.Node] = set()
    for node in reversed(nodes):
        in_place = str(getattr(node.target, "_opname", "")).endswith("_")
        if node.op == "output" or in_place or not live.isdisjoint(node.users):
            live.add(node)
    idle = {node for node in nodes if node.op == "placeholder" and str(node.target) in bound and node not in live}
    kept = set(idle)
    for node in nodes:
        if not kept.isdisjoint(node.all_input_nodes):
            kept.add(node)
    for node in reversed(nodes):
        if not kept.isdisjoint(node.users):
            kept.add(node)
        node.meta["dead"] = node not in live
        if node.op == "call_function" and node not in live and node not in kept:
            graph.erase_node(node)
    return {bound[str(node.target)] for node in idle}


def _freeze_dead(axes: Mapping[str, Sequence[Axis]], idle: Set[str]) -> None:
    """Forbid growth of units that only parameters without an effect on the output have."""
    live = {leaf for name, found in axes.items() if name not in idle for axis in found for leaf in axis.atoms()}
    for leaf in {leaf for name in idle for axis in axes[name] for leaf in axis.atoms()} - live:
        leaf.frozen = leaf.frozen or UNUSED


def _unify_or_freeze(a: Axis, b: Axis, why: str) -> None:
    try:
        unify(a, b)
    except MismatchError:
        freeze(a, why)
        freeze(b, why)


def _tie_attention(model: nn.Module, axes: dict[str, tuple[Axis, ...]], found: Trace) -> None:
    """``nn.MultiheadAttention`` takes its inner width from its input's: tie the two, and link its attributes."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        prefix = f"{path}." if path else ""
        out = axes.get(f"{prefix}out_proj.weight")
        packed = axes.get(f"{prefix}in_proj_weight")
        query = packed or axes.get(f"{prefix}q_proj_weight")
        if out is None or query is None:
            continue
        why = "nn.MultiheadAttention derives its head dimension from the input width"
        _unify_or_freeze(out[0], out[1], why)
        _unify_or_freeze(query[1], out[0], why)
        try:
            heads, head_dim = factor_inner(out[1], int(module.head_dim))
        except MismatchError:
            freeze(out[1], why)
            continue
        linked = {"embed_dim": out[0], "num_heads": heads, "head_dim": head_dim}
        if packed is not None:
            linked |= {"kdim": out[0], "vdim": out[0]}
        else:
            linked |= {"kdim": axes[f"{prefix}k_proj_weight"][1], "vdim": axes[f"{prefix}v_proj_weight"][1]}
        found.attributes.extend(Attribute(path, name, None, axis) for name, axis in linked.items())


def _link_literals(model: nn.Module, found: Trace) -> None:
    """Link integer attributes to the axes whose sizes the forward passes as numbers.

    A view written with ``self.num_heads`` follows a growing model only if the attribute grows too. Where one attribute
    stands for several axes they are tied together, since one number cannot hold two sizes. Lines that name the
    attribute count first; a number that merely equals it does not override them. Sizes derived from shapes at run time
    have no attribute; the transaction's verification catches any that do not follow.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    linked: dict[tuple[str, str], tuple[Axis, bool]] = {
        (a.module, a.name): (a.axis, True) for a in found.attributes if a.index is None
    }

    def link(literal: Literal, name: str, named: bool, place: int | str | None = None) -> None:
        key = (literal.module, name if place is None else f"{name}[{place}]")
        if key not in linked:
            linked[key] = literal.axis, named
            found.attributes.append(Attribute(literal.module, name, place, literal.axis))
        elif literal.given and (named or not linked[key][1]):
            why = f"the attribute {literal.module}.{name} gives two sizes that cannot grow together"
            _unify_or_freeze(linked[key][0], literal.axis, why)

    rest: list[tuple[Literal, list[str]]] = []
    fixed: list[Literal] = []
    for literal in found.literals:
        module = modules.get(literal.module)
        if module is None or isinstance(module, nn.MultiheadAttention) or _is_gpt_conv(module):
            continue
        if is_frozen(literal.axis):
            fixed += [literal] if literal.given else []
            continue
        if type(module).__module__ == "einops.layers.torch" and hasattr(module, "_axes_lengths"):  # EinMix has none
            places = [place for place, (_, size) in enumerate(module._axes_lengths) if size == literal.axis.size]
            if len(places) == 1:
                link(literal, "_axes_lengths", named=True, place=places[0])
                link(literal, "axes_lengths", named=True, place=module._axes_lengths[places[0]][0])
            continue
        names = _size_attributes(module, literal.axis.size)
        if literal.kind == "copies":  # a number of copies is no dimension, though it may equal one
            names = [name for name in names if "dim" not in name]
        named = [name for name in names if re.search(rf"\b{name}\b", literal.text)]
        named = named or _attributes_in(module, literal.axis.size, literal.text)
        if len(names) > 1 and not named:  # h = self.heads, and h in the line
            names = [name for name in names if _stands_for(module, name, literal.text)] or names
        if not literal.given:  # an attribute that the line names gives another of its sizes
            names, named = [name for name in names if name not in named], []
        for name in named:
            link(literal, name, named=True)
        if names and not named and not literal.firm:
            rest.append((literal, names))
    ambiguous: dict[tuple[str, tuple[str, ...]], set[Axis]] = {}
    for literal, names in rest:
        ambiguous.setdefault((literal.module, tuple(names)), set()).add(resolve(literal.axis))
    for literal, names in sorted(rest, key=lambda pair: not pair[0].given):
        if len(names) == 1 or len(ambiguous[literal.module, tuple(names)]) == 1:
            for name in names:
                link(literal, name, named=False)
    free = {(literal.where, literal.axis.size) for literal in found.literals if not is_frozen(literal.axis)}
    for literal in fixed:
        if (literal.where, literal.axis.size) in free or _is_written_out(literal.axis.size, literal.text):
            continue
        for name in _attributes_in(modules[literal.module], literal.axis.size, literal.text):
            if (literal.module, name) in linked and not _is_factor(name, literal.text):
                why = f"the attribute {literal.module}.{name} also gives a size that cannot grow, at {literal.where}"
                freeze(linked[literal.module, name][0], why)
    held = [resolve(a.axis) for a in found.attributes]
    for literal in found.literals:
        axis = resolve(literal.axis)
        if literal.kind == "size" or is_frozen(axis) or axis in held or not _inside_product(axis, found):
            continue
        if literal.kind == "copies":
            freeze(axis, f"{literal.where} makes a fixed number of copies")
        elif literal.given and (literal.kind == "factor" or _is_written_out(axis.size, literal.text)):
            freeze(
                axis, f"{literal.where} passes its size, {axis.size}, as a number that no attribute of its module holds"
            )


def _is_factor(name: str, text: str) -> bool:
    """Return whether source code multiplies an attribute: it is no size by itself there (a batch of two, two heads)."""
    return bool(re.search(rf"\*\s*self\.{name}\b|\bself\.{name}\s*\*", text))


def _is_written_out(number: int, text: str) -> bool:
    """Return whether source code has a number in it."""
    return bool(re.search(rf"(?<![\w.]){number}(?![\w.])", text))


def _inside_product(axis: Axis, found: Trace) -> bool:
    """Return whether an axis is one factor among several of a parameter's axis."""
    leaves = set(axis.atoms())
    return any(
        leaves <= set(whole.atoms()) and set(whole.atoms()) != leaves
        for value in found.parameters.values()
        for whole in value.axes
    )


def _attributes_in(module: nn.Module, size: int, text: str) -> list[str]:
    """Return the integer attributes of this size that source code reads from self, whatever they are called."""
    return [
        name
        for name, value in vars(module).items()
        if type(value) is int and value == size and re.search(rf"\bself\.{name}\b", text)
    ]


def _stands_for(module: nn.Module, attribute: str, text: str) -> bool:
    """Return whether source code uses a variable that the module's forward sets from an attribute."""
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):  # typed in by hand
        return False
    targets = re.findall(rf"^[ \t]*([\w, \t]+?)=[^=\n]*\bself\.{attribute}\b", source, re.MULTILINE)
    return any(re.search(rf"\b{name}\b", text) for target in targets for name in re.findall(r"\w+", target))


def _size_attributes(module: nn.Module, size: int) -> list[str]:
    """Return the names of a module's integer attributes that hold this size, by value and by what they are called."""
    return [
        name
        for name, value in vars(module).items()
        if type(value) is int
        and value == size
        and SIZE_NAME.search(name)
        and not OTHER_NAME.search(name)
        and (size > 1 or "head" in name or "group" in name)
    ]


def _is_gpt_conv(module: nn.Module) -> bool:
    """Return whether a module is the transposed linear layer of the GPT family (weight of shape (nx, nf))."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "weight")


def _link_gpt_convs(model: nn.Module, axes: dict[str, tuple[Axis, ...]], found: Trace) -> None:
    for path, module in model.named_modules():
        weight = axes.get(f"{path}.weight")
        if _is_gpt_conv(module) and weight is not None:
            found.attributes.append(Attribute(path, "nx", None, weight[0]))
            found.attributes.append(Attribute(path, "nf", None, weight[1]))
