"""Give the copy of a layer a number of its own, and count it in the model's config."""

from __future__ import annotations

from torch import nn

from auxin.graph.numbers import NUMBER, copies_of, layer_list
from auxin.surgery.transaction import Transaction


def number_copy(model: nn.Module, path: str, block: nn.Module, change: Transaction) -> None:
    """Give a copy that is about to follow a layer its number, and count it in the config, where there are such.

    The layers of a language model find their entry in the cache of keys and values by their number, and the config says
    how many entries there are. The copy gets the next free number: a cache minds no order.

    Args:
        model: The model, without the copy.
        path: Path of the layer that the copy will follow.
        block: The copy.
        change: Where to record what changes in the config.
    """
    found = layer_list(model, path)
    if found is None:
        return
    host, count = model.get_submodule(path), len(found.layers)
    place = next(place for place, layer in enumerate(found.layers) if layer is host)
    if found.numbers is not None:
        set_number(block, count)
    source, after = (found.numbers[place], count) if found.numbers else (place, place + 1 + len(copies_of(host)))
    for name, values in found.per_layer().items():
        change.set_attribute(found.config, name, [*values[:after], values[source], *values[after:]])
    for one in found.counts:
        change.set_attribute(one.config, one.field, one.after(count + 1))


def set_number(layer: nn.Module, number: int) -> None:
    """Set the number that a layer and the modules within it go by."""
    for part in layer.modules():
        if getattr(part, NUMBER, None) is not None:
            setattr(part, NUMBER, number)
