"""Which optimizer, and which of its groups, trains a parameter."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer

from auxin.errors import ConfigError
from auxin.graph.naming import GROWN
from auxin.surgery.optimizer import replace_flat_state
from auxin.surgery.transaction import Transaction


def as_list(optimizer: Any) -> list[Any]:
    """Return the optimizers among None, one optimizer or several.

    Wrappers of training frameworks are taken off; an optimizer that runs another one (sharpness-aware minimisation,
    Lookahead) is followed by that.

    Args:
        optimizer: What a user passes; what is no optimizer stays as it is.
    """
    if optimizer is None:
        return []
    found: list[Any] = []
    for item in optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]:
        one = item if isinstance(item, Optimizer) else getattr(item, "optimizer", item)
        found.append(one)
        if isinstance(one, Optimizer):
            inner = (value for value in vars(one).values() if isinstance(value, Optimizer))
            found += [value for value in inner if value.state is not one.state]
    return found


def check_optimizers(model: nn.Module, optimizers: Sequence[Any]) -> None:
    """Refuse what is no optimizer of this model, and optimizers that growth would cut off.

    Args:
        model: The model.
        optimizers: What ``as_list`` returned.

    Raises:
        ConfigError: If one of them is no optimizer, or trains no parameter of the model, or if a parameter has an
            optimizer in the hook of its AccumulateGrad node.
    """
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_in_backward_optimizers", None):
            raise ConfigError(
                f"The optimizer of {name} steps in a hook of autograd's own (_apply_optimizer_in_backward), which "
                "growth would cut off without a word: use parameter.register_post_accumulate_grad_hook, which stays."
            )
    own = {id(parameter) for parameter in model.parameters()}
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise ConfigError(f"{one!r} is no optimizer: pass one of torch.optim, several, or None.")
        if own.isdisjoint(id(p) for group in one.param_groups for p in group["params"]):
            raise ConfigError("The optimizer has no parameter of this model: pass the one that trains it.")


def add_parameters(
    optimizers: Sequence[Optimizer], model: nn.Module, new: Mapping[str, Tensor], host: str, change: Transaction
) -> None:
    """Put new parameters into the groups that hold the parameters most like them.

    Those of a copy of a module join the groups of the module's own. Elsewhere the nearest parameter is the last one
    before the block with as many dimensions. A new parameter joins the group of the last one with the same last name in
    a module of the same type, so that a group without weight decay for norms keeps doing its work, if that group is of
    the nearest one's optimizer and learning rate; else that of the nearest.

    Args:
        optimizers: The optimizers.
        model: The model, the new block already in it.
        new: The new parameters by dotted name.
        host: Path of the module that the block follows.
        change: Where to record the changes.

    Raises:
        ConfigError: If no optimizer trains such parameters.
    """
    if not optimizers:
        return
    homes: dict[int, list[_Home]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                here = homes.setdefault(id(p), [])
                if all(group is not home.group for home in here):  # an optimizer and the one it runs share groups
                    here.append(_Home(optimizer, group))
    paths = [path for path, _ in model.named_modules()]
    known = [(name, p) for name, p in model.named_parameters() if id(p) in homes]
    earlier = [
        (n, p) for n, p in known
        if paths.index(n.rpartition(".")[0]) <= paths.index(host) or n.startswith(f"{host}.")
    ]  # fmt: skip
    tensors = dict(known)
    for name, parameter in new.items():
        original = tensors.get(f"{host}.{name.removeprefix(f'{host}.{GROWN}.').partition('.')[2]}")
        same_rank = [p for among in (known, earlier) for _, p in among if p.ndim == parameter.ndim]
        same_kind = [p for among in (known, earlier) for n, p in among if _kind(model, n) == _kind(model, name)]
        if original is not None:
            chosen = [home.group for home in homes[id(original)]]
        elif not same_rank:
            chosen = _first_group(optimizers, name, parameter)
        else:
            nearest = homes[id(same_rank[-1])]
            like = next((homes[id(p)] for p in reversed(same_kind) if _alike(homes[id(p)], nearest)), nearest)
            chosen = [home.group for home in like]
        for group in chosen:
            group["params"].append(parameter)
            change.on_rollback(group["params"].pop)
            if "param_names" in group:
                group["param_names"].append(name)
                change.on_rollback(group["param_names"].pop)
    fresh = {id(parameter) for parameter in new.values()}
    for optimizer in optimizers:
        _start_fused_momentum(optimizer, fresh, change)
        if isinstance(optimizer, LBFGS):
            old = sum(p.numel() for p in optimizer._params if id(p) not in fresh)
            added = sum(p.numel() for p in optimizer._params if id(p) in fresh)
            replace_flat_state(optimizer, old, lambda flat, more=added: nn.functional.pad(flat, (0, more)), change)  # type: ignore[misc]


def _start_fused_momentum(optimizer: Optimizer, fresh: Container[int], change: Transaction) -> None:
    """Give new parameters a momentum of zero where fused SGD has begun: it takes momentum of all or of none.

    The next step makes it (1 - dampening) times the gradient; SGD itself starts with the whole gradient, which is the
    same unless there is dampening.
    """
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        begun = any(optimizer.state.get(p, {}).get("momentum_buffer") is not None for p in group["params"])
        if begun and group.get("fused") and group["momentum"]:
            for parameter in (p for p in group["params"] if id(p) in fresh):
                change.set_item(optimizer.state, parameter, {"momentum_buffer": torch.zeros_like(parameter)})


class _Home(NamedTuple):
    """An optimizer and one of its groups."""

    optimizer: Optimizer
    group: dict[str, Any]


def _alike(some: Sequence[_Home], others: Sequence[_Home]) -> bool:
    """Return whether two parameters are trained by the same optimizers at the same learning rates."""
    first, second = ([(id(home.optimizer), _rate(home.group)) for home in homes] for homes in (some, others))
    return first == second


def _rate(group: Mapping[str, Any]) -> float | None:
    """Return the learning rate that a schedule begins with: at the start of a warm-up all are zero."""
    rate = group.get("initial_lr", group.get("lr"))
    return None if rate is None else float(rate)  # Adafactor may find it by itself


def _first_group(optimizers: Sequence[Optimizer], name: str, parameter: Tensor) -> list[dict[str, Any]]:
    """Return the first group that may hold a parameter unlike all that are trained: Muon takes matrices only."""
    muon = getattr(torch.optim, "Muon", ())
    fitting = [one for one in optimizers if parameter.ndim == 2 or not isinstance(one, muon)]
    if not fitting:
        raise ConfigError(
            f"Muon trains matrices only, and the new layer has a {name} of shape {tuple(parameter.shape)}: "
            "give the Grower a list of optimizers, with a second one for such parameters."
        )
    return fitting[0].param_groups[:1]


def _kind(model: nn.Module, name: str) -> tuple[type, str]:
    """Return the type of the module that owns a parameter, and the parameter's last name."""
    path, _, leaf = name.rpartition(".")
    return type(model.get_submodule(path)), leaf
