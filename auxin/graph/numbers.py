"""Lists of layers that are counted: by a number in each layer, as in language models, or in the model's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from auxin.graph.naming import CONTAINERS, GROWN

NUMBER, COUNT, STAGES = "layer_idx", "num_hidden_layers", "depths"


@dataclass(frozen=True)
class LayerList:
    """The layers of a list in the order in which they run, each followed by its copies.

    Attributes:
        layers: The layers.
        numbers: The number of each, from zero on in any order; None if they have none, or others.
        config: The config object that counts them; None if there is none.
        stage: In a network of several stages, the entry of its ``depths`` that does; None for ``num_hidden_layers``.
    """

    layers: tuple[nn.Module, ...]
    numbers: tuple[int, ...] | None
    config: Any
    stage: int | None

    def per_layer(self) -> dict[str, list[Any]]:
        """Return the fields of the config with a value for each layer, such as ``layer_types``."""
        fields = vars(self.config) if self.config is not None and self.stage is None else {}
        return {
            name: value for name, value in fields.items()
            if "layer" in name and isinstance(value, list) and len(value) == len(self.layers)
        }  # fmt: skip


def numbers_in(module: nn.Module) -> set[Any]:
    """Return the numbers that a module and those within it go by, but for blocks inserted after it."""
    parts = (part for name, part in module.named_modules() if not f"{name}.".startswith(f"{GROWN}."))
    return {part.layer_idx for part in parts if hasattr(part, NUMBER)}


def layer_list(model: nn.Module, path: str) -> LayerList | None:
    """Return the list that a module is an entry of, or None.

    Args:
        model: The model.
        path: The module's path.
    """
    *above, _ = path.split(".")
    parent = model.get_submodule(".".join(above))
    if not isinstance(parent, CONTAINERS):
        return None
    layers = [layer for entry in parent.children() for layer in (entry, *copies_of(entry))]
    found = [numbers_in(layer) for layer in layers]
    numbered = all(len(one) == 1 for one in found) and set().union(*found) == set(range(len(layers)))
    alike = numbered or len({type(layer) for layer in layers}) == 1
    config, stage = _counted_in(model, above, len(layers)) if alike else (None, None)
    numbers = tuple(next(iter(one)) for one in found) if numbered else None
    return LayerList(tuple(layers), numbers, config, stage)


def _counted_in(model: nn.Module, above: list[str], count: int) -> tuple[Any, int | None]:
    """Return the nearest config above a list if it counts that many layers there, and the stage it counts them for."""
    holders = (model.get_submodule(".".join(above[:depth])) for depth in range(len(above) - 1, -1, -1))
    configs = (getattr(holder, "config", None) for holder in holders)
    config = next((one for one in configs if hasattr(one, COUNT) or hasattr(one, STAGES)), None)
    # A config of an encoder and a decoder counts them apart; where layers share a cache, their place decides which.
    if config is None or getattr(config, "is_encoder_decoder", False) or getattr(config, "num_kv_shared_layers", 0):
        return None, None
    depths = getattr(config, STAGES, None)
    if not depths:
        return (config, None) if getattr(config, COUNT, None) == count else (None, None)
    stage = next((int(part) for part in reversed(above) if part.isdigit()), len(depths))
    return (config, stage) if stage < len(depths) and depths[stage] == count else (None, None)


def copies_of(layer: nn.Module) -> list[nn.Module]:
    """Return the copies that follow a layer."""
    grown = layer._modules.get(GROWN)
    return [block for block in grown.children() if type(block) is type(layer)] if grown is not None else []


def can_number_copies(model: nn.Module, path: str) -> bool:
    """Return whether a copy of a module can get a number of its own, or needs none."""
    if not numbers_in(model.get_submodule(path)):
        return True
    found = layer_list(model, path)
    return found is not None and found.numbers is not None and found.config is not None
