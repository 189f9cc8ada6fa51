"""The events of a model's life as data, and how to give a fresh base model the same shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auxin.errors import CheckpointError
from auxin.graph.capture import repeats, unwrap
from auxin.surgery.blocks import GROWN, attach, detach_last, make_block
from auxin.surgery.optimizer import laid_out_like
from auxin.surgery.param_groups import add_parameters, as_list
from auxin.surgery.transaction import Transaction
from auxin.types import Event


class History:
    """The growth events of one model, oldest first.

    A grown checkpoint needs no pickle: build the base model, replay the history, load the state dict.

    Example:
        >>> import torch, auxin
        >>> make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> model, x = make(), torch.randn(2, 4)
        >>> history = auxin.History()
        >>> history.append(auxin.widen(model, "0", 3, graph=auxin.trace(model, x)))
        >>> fresh = make()
        >>> auxin.History.from_json(history.to_json()).replay(fresh)
        >>> _ = fresh.load_state_dict(model.state_dict())
        >>> bool((fresh(x) == model(x)).all())
        True
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: list[Event] = list(events)

    def append(self, event: Event) -> None:
        """Record one more event."""
        self.events.append(event)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the events as JSON data."""
        return [event.to_dict() for event in self.events]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> History:
        """Rebuild a history from ``to_json``'s data.

        Args:
            data: A list of events as dictionaries.

        Returns:
            The history.

        Raises:
            CheckpointError: If the data is not a history.
        """
        try:
            return cls(Event.from_dict(event) for event in data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"The growth history cannot be read ({error!r}); is it from another version?"
            ) from error

    @torch.inference_mode(False)
    def replay(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> None:
        """Give a freshly built base model the shapes, attributes and blocks of every event.

        Weights are zeros where a shape changed: load a state dict next, and that of the optimizer as well. PyTorch
        tells an optimizer's parameters by their order, so build it on the base model and give it here: new layers then
        come in the order in which growth added them.

        Args:
            model: The base model as its constructor makes it, at the size it had before the first event.
            optimizer: Its optimizer or optimizers, made before the replay; the parameters of new layers join them.

        Raises:
            CheckpointError: If the model has no such modules, parameters or attributes, or has grown already; model and
                optimizer are then as they were.

        Example:
            >>> import torch, auxin
            >>> def build():
            ...     model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
            ...     return model, torch.optim.Adam(model.parameters())
            >>> model, optimizer = build()
            >>> grower = auxin.Grower(model, optimizer, torch.randn(2, 4), trigger=auxin.planned([
            ...     {"after": 1, "widen": {"0": 6}, "deepen": {"1": 1}}]))
            >>> event = grower.step(0)
            >>> saved = model.state_dict(), optimizer.state_dict(), grower.state_dict()
            >>> model, optimizer = build()
            >>> auxin.History.from_json(saved[2]["history"]).replay(model, optimizer)
            >>> model.load_state_dict(saved[0]), optimizer.load_state_dict(saved[1])
            (<All keys matched successfully>, None)
        """
        model = unwrap(model)
        if any(name.endswith(GROWN) for name, _ in model.named_modules()):
            raise CheckpointError("The model has grown already: replay the history on a freshly built base model.")
        change = Transaction()
        for number, event in enumerate(self.events, 1):
            try:
                _replay(model, event, as_list(optimizer), change)
            except BaseException as error:
                change.rollback()
                if not isinstance(error, AttributeError):
                    raise
                raise CheckpointError(
                    f"Event {number} of the history does not fit this model ({error}); build the base model with the "
                    "options it had before the first growth."
                ) from error


def _grown(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return zeros of a shape; of a buffer that repeats a pattern, more of it, since no file may hold such a buffer."""
    dims = [d for d, size in enumerate(shape) if size != tensor.shape[d]]
    if not isinstance(tensor, nn.Parameter) and all(repeats(tensor, d) for d in dims):
        for d in dims:
            tensor = tensor.narrow(d, 0, 1)
        return tensor.expand(*shape).clone()
    return laid_out_like(torch.zeros(shape, dtype=tensor.dtype, device=tensor.device), tensor)


def _replay(model: nn.Module, event: Event, optimizers: Sequence[Optimizer], change: Transaction) -> None:
    structure = event.structure
    blocks = {path: iter(options) for path, options in structure.blocks.items()}
    for path in (change.target for change in event.changes if change.kind == "deepen"):
        host, known = model.get_submodule(path), dict(model.named_parameters())
        attach(host, make_block(model, path, next(blocks[path]), change))
        change.on_rollback(partial(detach_last, host))
        new = {name: p for name, p in model.named_parameters() if name not in known and p.requires_grad}
        add_parameters(optimizers, model, new, path, change)
    with torch.no_grad():
        for name, shape in structure.shapes.items():
            path, _, leaf = name.rpartition(".")
            tensor = getattr(model.get_submodule(path), leaf)
            if tuple(tensor.shape) != tuple(shape):
                change.replace(tensor, _grown(tensor, shape))
    for key, value in structure.attributes.items():
        path, _, name = key.rpartition(":")
        change.set_attribute(model.get_submodule(path), name, value)
