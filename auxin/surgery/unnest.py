"""Make inserted blocks ordinary entries of the list that holds the module they follow."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from auxin.graph.capture import clone_tensors, copied, kept_buffers, normalise_inputs, outputs_of, unwrap
from auxin.graph.numbers import layer_list
from auxin.surgery.blocks import attach, take_blocks
from auxin.surgery.numbers import set_number
from auxin.surgery.transaction import Transaction

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def unnest(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Return a grown model with its inserted blocks as ordinary entries of their lists.

    Growth puts a block into the module that it follows, ``layers.3.grown.0``, where no existing name changes. Once
    growing is over a model is easier to hand on with the block as the next entry, ``layers.4``, of the same
    ``nn.Sequential`` or ``nn.ModuleList``: a ResNet or language model grown by copies is then what its own class makes
    with more blocks, and its state dict loads there. The numbers of layers (``layer_idx``) come in the order of the
    list, and so do the values for each layer in a Hugging Face config, for ``save_pretrained`` and ``from_pretrained``.

    Blocks after a module that is no entry of such a list stay where they are. So do those of a list that the forward
    does not run through from end to end, because it picks entries by their index.

    Some classes build a layer by its place: every other one of Swin has shifted windows, only the first of T5 has a
    table of relative positions. Where ``from_pretrained`` may build another layer than the one that stands there now, a
    warning says so.

    Args:
        model: A grown model; it stays as it is.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments, to see that the function is the
            same.

    Returns:
        A model of the same class, which shares all parameters and buffers with the given one.

    Example:
        >>> import torch, auxin
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(3, 4)
        >>> event = auxin.deepen(model, "1", graph=auxin.trace(model, x))
        >>> plain = auxin.unnest(model, x)
        >>> [type(module).__name__ for module in plain], bool((plain(x) == model(x)).all())
        (['Linear', 'ReLU', 'IdentityBlock', 'Linear'], True)
    """
    model = unwrap(model)
    inputs = clone_tensors(normalise_inputs(example_inputs), next((p.device for p in model.parameters()), None))
    plain = copied(model, shared=[*model.parameters(), *model.buffers()])
    with kept_buffers(plain):
        expected = outputs_of(plain, inputs)
        changed: list[nn.Module] = []
        # Inner lists first: the paths of what is yet to come stay true.
        for path, part in reversed(list(plain.named_modules())):
            if isinstance(part, (nn.Sequential, nn.ModuleList)):
                change = Transaction()
                moved = _spread(plain, path, part, change)
                if moved and not _runs_alike(plain, moved, inputs, expected):
                    change.rollback()
                elif moved:
                    changed.append(part)
    unlike = _unlike_its_class(plain, changed)
    if unlike:
        warnings.warn(f"{unlike}: from_pretrained may make another model than this one.", stacklevel=2)
    return plain


def _spread(model: nn.Module, path: str, entries: nn.Module, change: Transaction) -> list[nn.Module]:
    """Move the blocks after the entries of a list into the list, and return them."""
    old = dict(entries._modules)
    counted = layer_list(model, f"{path}.{next(iter(old))}".lstrip(".")) if old else None
    new: list[tuple[str, nn.Module | None]] = []
    moved: list[nn.Module] = []
    for key, entry in old.items():
        blocks: list[nn.Module] = []
        if entry is not None:
            blocks = take_blocks(entry)
            for block in reversed(blocks):
                change.on_rollback(partial(attach, entry, block))
        names = (name for number in count(1) if (name := f"{key}_{number}") not in old)
        new += [(key, entry), *zip(names, blocks, strict=False)]
        moved += blocks
    if not moved:
        return []
    if list(old) == [str(number) for number in range(len(old))]:
        new = [(str(number), entry) for number, (_, entry) in enumerate(new)]
    _set_entries(entries, new)
    change.on_rollback(lambda: _set_entries(entries, old.items()))
    if counted is not None and counted.numbers is not None:
        for number, (layer, before) in enumerate(zip(counted.layers, counted.numbers, strict=True)):
            set_number(layer, number)
            change.on_rollback(partial(set_number, layer, before))
        for name, values in counted.per_layer().items():
            change.set_attribute(counted.config, name, [values[number] for number in counted.numbers])
    return moved


def _set_entries(entries: nn.Module, named: Iterable[tuple[str, nn.Module | None]]) -> None:
    entries._modules.clear()
    entries._modules.update(named)


def _runs_alike(model: nn.Module, moved: list[nn.Module], inputs: Inputs, expected: list[Tensor]) -> bool:
    """Return whether a model runs through some modules, in their order and once, and returns what is expected."""
    calls: list[nn.Module] = []
    hooks = [block.register_forward_pre_hook(lambda block, _: calls.append(block)) for block in moved]
    try:
        outputs = outputs_of(model, inputs)
    except Exception:  # whatever the user's forward raises: the list is not made for more entries
        return False
    finally:
        for hook in hooks:
            hook.remove()
    if [*map(id, calls)] != [*map(id, moved)] or [a.shape for a in expected] != [b.shape for b in outputs]:
        return False
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in zip(expected, outputs, strict=True)
    )


def _unlike_its_class(model: nn.Module, lists: list[nn.Module]) -> str:
    """Return the first thing in some lists that is not as a Hugging Face class makes it from the config; "" if none."""
    if not hasattr(model, "config") or not hasattr(model, "from_pretrained"):
        return ""
    try:
        with torch.device("meta"):
            made = dict(type(model)(copy.deepcopy(model.config)).named_modules())
    except Exception:  # whatever its class needs beside a config
        return ""
    paths = [path for path, part in model.named_modules() if any(part is one for one in lists)]
    for name, module in model.named_modules():
        if not any(name.startswith(f"{path}.") for path in paths):
            continue
        other = made.get(name)
        if other is None or type(other) is not type(module):
            return f"{type(model).__name__} has no {type(module).__name__} at {name!r}"
        mine, its = _described(module), _described(other)
        for key in [*mine, *its]:
            if mine.get(key) != its.get(key):
                return f"{type(model).__name__} makes {name}.{key} {its.get(key)}, here it is {mine.get(key)}"
    return ""


def _described(module: nn.Module) -> dict[str, Any]:
    """Return what tells one layer of a class from another: the shapes of its parameters, its numbers, names and flags.

    Rates of dropout are left out, which change by the depth in some classes.
    """
    shapes = {name: f"of shape {tuple(parameter.shape)}" for name, parameter in module.named_parameters(recurse=False)}
    plain = {
        name: value for name, value in vars(module).items()
        if isinstance(value, (int, float, str)) and name != "training" and name[0] != "_" and "drop" not in name
    }  # fmt: skip
    return shapes | plain
