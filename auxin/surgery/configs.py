"""Keep the config of Hugging Face style models true: its size fields follow when every layer has the new size."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from auxin.surgery.transaction import Transaction

HIDDEN = re.compile(
    r"(intermediate\.dense|mlp\.fc1|mlp\.c_fc|mlp\.gate_proj|mlp\.up_proj|mlp\.dense_h_to_4h|(^|\.)fc1|ffn\.lin1|wi)$"
)
"""Modules whose output width is the hidden width of a feed-forward block."""
EXPERT_FIELDS = ("moe_intermediate_size", "intermediate_size")
"""The hidden width of experts whose weights are one tensor; the second means other layers where there is the first."""
HIDDEN_FIELDS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
HEAD_FIELDS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads")


Sizes = dict[tuple[str, str], set[int]]
"""For each (module path, config field), the sizes that the model's layers have."""


def config_sizes(model: nn.Module) -> Sizes:
    """Return what the layers of a model say about the size fields of the config objects in it."""
    result: Sizes = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        if config is None or id(config) in seen or isinstance(config, (dict, str)):
            continue
        seen.add(id(config))
        sizes: dict[str, set[int]] = {}
        for name, child in module.named_modules():
            _collect(name, child, config, sizes)
        result.update({(path, field): found for field, found in sizes.items()})
    return result


def update_configs(model: nn.Module, before: Sizes, change: Transaction) -> dict[str, Any]:
    """Set the size fields of every config object in a model to what its layers now have.

    A field is left alone while layers differ, since one number cannot describe them, and where it did not describe
    them before.

    Args:
        model: The grown model.
        before: ``config_sizes`` before growth.
        change: Where to record the changes.

    Returns:
        The new values, keyed ``"module:config.field"``.
    """
    values: dict[str, Any] = {}
    for (path, field), found in config_sizes(model).items() if before else ():
        module = model.get_submodule(path)
        current = getattr(module.config, field)
        if len(found) == 1 and current not in found and current in before.get((path, field), ()):
            change.set_attribute(module, f"config.{field}", next(iter(found)))
            values[f"{path}:config.{field}"] = next(iter(found))
    return values


def _collect(name: str, module: nn.Module, config: Any, sizes: dict[str, set[int]]) -> None:
    """Note the sizes that one module says about its config's fields."""
    if HIDDEN.search(name):
        width = getattr(module, "out_features", None) or getattr(module, "nf", None)
        for field in HIDDEN_FIELDS:
            if isinstance(width, int) and type(getattr(config, field, None)) is int:
                sizes.setdefault(field, set()).add(width)
    down = module._parameters.get("down_proj")
    if down is not None and down.ndim == 3:  # (experts, out, hidden), or (experts, hidden, out)
        width = down.shape[1] if getattr(module, "is_transposed", False) else down.shape[2]
        held = [name for name in EXPERT_FIELDS if type(getattr(config, name, None)) is int]
        if held:
            sizes.setdefault(held[0], set()).add(width)
    for field in HEAD_FIELDS:
        value = vars(module).get(field)
        if type(value) is int and type(getattr(config, field, None)) is int:
            sizes.setdefault(field, set()).add(value)
    head_dim = vars(module).get("head_dim")
    if type(head_dim) is int:
        for projection, field in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            width = getattr(getattr(module, projection, None), "out_features", None)
            if isinstance(width, int) and type(getattr(config, field, None)) is int:
                sizes.setdefault(field, set()).add(width // head_dim)
