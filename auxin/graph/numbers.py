"""Lists of layers that are counted: by a number in each layer, as in language models, or in the model's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from auxin.graph.naming import CONTAINERS, GROWN

NUMBER, COUNT, STAGES = "layer_idx", "num_hidden_layers", "depths"
SIDES = {
    "encoder": ("encoder_layers", "num_encoder_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}
"""What a config of both an encoder and a decoder calls the number of layers of each."""


@dataclass(frozen=True)
class Count:
    """Where a config counts the layers of a list.

    Attributes:
        config: The config object.
        field: Its field.
        stage: The entry of the field, of a network of several stages; None where the field is the number itself.
    """

    config: Any
    field: str
    stage: int | None = None

    def value(self) -> Any:
        """Return the number of layers that it says there are."""
        held = getattr(self.config, self.field, None)
        return held if self.stage is None or held is None else held[self.stage]

    def after(self, layers: int) -> Any:
        """Return what the field holds for another number of layers."""
        if self.stage is None:
            return layers
        before = list(getattr(self.config, self.field))
        return [*before[: self.stage], layers, *before[self.stage + 1 :]]


@dataclass(frozen=True)
class LayerList:
    """The layers of a list in the order in which they run, each followed by its copies.

    Attributes:
        layers: The layers.
        numbers: The number of each, from zero on in any order; None if they have none, or others.
        counts: Where configs count them, the nearest config first; empty if none does.
    """

    layers: tuple[nn.Module, ...]
    numbers: tuple[int, ...] | None
    counts: tuple[Count, ...]

    @property
    def config(self) -> Any:
        """The nearest config object that counts the layers; None if there is none."""
        return self.counts[0].config if self.counts else None

    def per_layer(self) -> dict[str, list[Any]]:
        """Return the fields of the config with a value for each layer, such as ``layer_types``."""
        fields = vars(self.config) if self.counts and self.counts[0].stage is None else {}
        return {
            name: value for name, value in fields.items()
            if "layer" in name and isinstance(value, list) and len(value) == len(self.layers)
        }  # fmt: skip


def numbers_in(module: nn.Module) -> set[Any]:
    """Return the numbers that a module and those within it go by, but for blocks inserted after it."""
    parts = (part for name, part in module.named_modules() if not f"{name}.".startswith(f"{GROWN}."))
    return {number for part in parts if (number := getattr(part, NUMBER, None)) is not None}


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
    counts = _counted_in(model, above, len(layers)) if alike else ()
    numbers = tuple(next(iter(one)) for one in found) if numbered else None
    return LayerList(tuple(layers), numbers, counts)


def _counted_in(model: nn.Module, above: list[str], layers: int) -> tuple[Count, ...]:
    """Return where the nearest config above a list counts that many layers there, and one of encoder and decoder."""
    holders = (model.get_submodule(".".join(above[:depth])) for depth in range(len(above) - 1, -1, -1))
    configs = {id(one): one for holder in holders if (one := getattr(holder, "config", None)) is not None}
    side = next((side for part in above for side in SIDES if side in part), "")
    found: list[Count] = []
    for number, config in enumerate(configs.values(), 1):
        if getattr(config, "num_kv_shared_layers", 0):  # their place decides which entry of the cache is theirs
            return ()
        both = getattr(config, "is_encoder_decoder", False)
        if found and not both:
            continue
        known = SIDES.get(side, ()) if both else (STAGES, COUNT)
        fields = [field for field in known if getattr(config, field, None)][:1]
        if both and number < len(configs):  # of the decoder alone, a copy of the model's
            fields.append(COUNT)
        counts = [_count(config, field, above) for field in fields]
        if any(one is None or one.value() != layers for one in counts):
            return ()
        found += [one for one in counts if one is not None]
    return tuple(found)


def _count(config: Any, field: str, above: list[str]) -> Count | None:
    """Return where a field of a config counts the layers of a list; None if the list is none of its stages."""
    if field != STAGES:
        return Count(config, field)
    stage = next((int(part) for part in reversed(above) if part.isdigit()), -1)
    return Count(config, field, stage) if 0 <= stage < len(getattr(config, field)) else None


def copies_of(layer: nn.Module) -> list[nn.Module]:
    """Return the copies that follow a layer."""
    grown = layer._modules.get(GROWN)
    return [block for block in grown.children() if type(block) is type(layer)] if grown is not None else []


def can_number_copies(model: nn.Module, path: str) -> bool:
    """Return whether a copy of a module can get a number of its own, or needs none."""
    if not numbers_in(model.get_submodule(path)):
        return True
    found = layer_list(model, path)
    return found is not None and found.numbers is not None and bool(found.counts)
