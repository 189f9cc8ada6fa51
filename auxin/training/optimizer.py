"""Optimizers: built from a configuration, and their state as data keyed by parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from auxin.errors import CheckpointError
from auxin.training.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all trainable parameters of a model.

    Args:
        config: Which one, and its settings.
        model: The model it will step.

    Returns:
        A torch optimizer with one parameter group.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    adam = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return adam(parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


def state_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return an optimizer's state as tensors and numbers, keyed by parameter names.

    Names, unlike torch's running numbers, still mean the same parameter after a layer was inserted.

    Args:
        optimizer: Any torch optimizer over the model's parameters.
        model: Names the parameters.

    Returns:
        ``{"class": ..., "groups": [{"params": [names], setting: value}], "state": {name: {entry: tensor or number}}}``.

    Raises:
        CheckpointError: If the optimizer holds a parameter that is not the model's.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    try:
        groups = [
            {**{key: value for key, value in group.items() if key != "params"}}
            | {"params": [names[p] for p in group["params"]]}
            for group in optimizer.param_groups
        ]
    except KeyError as error:
        raise CheckpointError(
            "The optimizer holds a parameter that the model does not have, so it cannot be saved: "
            "build the optimizer from model.parameters()."
        ) from error
    state = {names[p]: dict(entries) for p, entries in optimizer.state.items() if p in names}
    return {"class": type(optimizer).__name__, "groups": groups, "state": state}


def restore(optimizer: torch.optim.Optimizer, model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Bring an optimizer back to a saved state, its parameter groups in their saved order.

    Args:
        optimizer: A fresh optimizer of the same class over the same model.
        model: The model, already grown to the saved shapes.
        saved: What ``state_of`` returned.

    Raises:
        CheckpointError: If class, groups or parameter names do not fit.
    """
    parameters = dict(model.named_parameters())
    if saved["class"] != type(optimizer).__name__ or len(saved["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"The checkpoint holds the state of {saved['class']} and the run uses {type(optimizer).__name__}: "
            "resume with the configuration that wrote it."
        )
    wanted = {name for group in saved["groups"] for name in group["params"]}
    if missing := sorted(wanted - parameters.keys()):
        raise CheckpointError(
            f"The checkpoint knows a parameter {missing[0]!r} that the model lacks: use its own model."
        )
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        for key, value in values.items():
            if key == "params":
                group["params"] = [parameters[name] for name in value]
            else:
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    optimizer.state.clear()
    for name, entries in saved["state"].items():
        parameter = parameters[name]
        optimizer.state[parameter] = {key: _place(key, value, parameter) for key, value in entries.items()}


def _place(key: str, value: Any, parameter: nn.Parameter) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key == "step" or value.shape != parameter.shape:
        return value.clone()  # torch keeps step counts on the CPU
    # The parameter's memory format: the step runs faster when both are laid out alike.
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
