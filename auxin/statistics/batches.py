"""The few batches that a method looks at, in the precision of its statistics."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointError

from auxin.errors import ConfigError, TrainingError
from auxin.graph.capture import copied, evaluation
from auxin.types import LossFn


@dataclass(frozen=True)
class Batch:
    """One batch, on the model's device.

    Attributes:
        inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments of the forward.
        target: What ``loss_fn`` compares the output with.
    """

    inputs: Any
    target: Any

    def halves(self) -> list[Batch]:
        """Return the two halves of the batch, or the batch alone where inputs and target are not plain tensors."""
        x, y = self.inputs, self.target
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or y.ndim == 0 or len(x) != len(y) or len(x) < 2:
            return [self]
        middle = len(x) // 2
        return [Batch(x[:middle], y[:middle]), Batch(x[middle:], y[middle:])]


def take_batches(
    model: nn.Module, batches: Iterable[Any] | None, loss_fn: LossFn | None, number: int, method: str
) -> tuple[list[Batch], LossFn]:
    """Return the first batches of a loader, moved to the model's device and to the precision of the statistics.

    Args:
        model: The model, only read.
        batches: Pairs (inputs, target); a dict is taken as both.
        loss_fn: The training loss of (output, target).
        number: How many batches to take; fewer if there are no more.
        method: Who asks, for the error's text.

    Returns:
        The batches and the loss.

    Raises:
        ConfigError: If batches or loss are missing, or a batch is not a pair.
        TrainingError: If a batch holds NaN.
    """
    if batches is None or loss_fn is None:
        raise ConfigError(
            f"The {method} method looks at data: pass batches of (inputs, target) and loss_fn(output, target), for "
            "example grower.step(epoch, loader, loss_fn)."
        )
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws its shuffling from torch's own generator
        found = [_as_batch(item, model, method) for item in islice(iter(batches), number)]
    if not found:
        raise ConfigError(
            f"The {method} method looks at data, but the loader gave no batch: pass one that is not empty."
        )
    tensors = (leaf for batch in found for leaf in pytree.tree_leaves([batch.inputs, batch.target]))
    if any(isinstance(t, Tensor) and t.is_floating_point() and bool(t.isnan().any()) for t in tensors):
        raise TrainingError(
            f"The {method} method looks at data, and gradients on a batch that holds NaN are not finite: take such "
            "samples out."
        )
    return found, _explained(loss_fn)


def _explained(loss_fn: LossFn) -> LossFn:
    """Return a loss whose usual mistakes are one sentence."""

    def loss(output: Any, target: Any) -> Tensor:
        try:
            return loss_fn(output, target)
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            raise ConfigError(
                f"loss_fn(output, target) fails on the model's output and a batch's target ({error!r}): pass the loss "
                "of these two, for example torch.nn.functional.cross_entropy; a batch that is a dict is its own target."
            ) from error

    return loss


def _as_batch(item: Any, model: nn.Module, method: str) -> Batch:
    if isinstance(item, Mapping):
        inputs, target = item, item
        _check_keys(model, item)
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        inputs, target = item
    else:
        raise ConfigError(f"The {method} method needs batches that are pairs (inputs, target) or dicts.")
    parameter = next(model.parameters())
    precise = precision(model)

    def move(x: Any) -> Any:
        return in_precision(x.detach().to(parameter.device), precise) if isinstance(x, Tensor) else x

    return Batch(pytree.tree_map(move, inputs), pytree.tree_map(move, target))


def _check_keys(model: nn.Module, batch: Mapping[Any, Any]) -> None:
    """Refuse a batch with a key that the forward does not take."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return
    unknown = [key for key in batch if key not in {parameter.name for parameter in parameters}]
    if unknown:
        raise ConfigError(
            f"A batch is a dict with {', '.join(map(repr, unknown))}, which the forward of {type(model).__name__} does "
            "not take: pass pairs (inputs, target), the inputs a tensor, a tuple or a dict of what it takes."
        )


def precision(model: nn.Module) -> torch.dtype:
    """Return the type statistics are computed in: float64 if the model has any, else float32."""
    return torch.float64 if any(p.dtype == torch.float64 for p in model.parameters()) else torch.float32


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in the precision of a real type: complex numbers stay complex, whole numbers whole."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def precise_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in the precision of its statistics, without gradients."""
    clone, dtype = copied(model), precision(model)
    clone.zero_grad(set_to_none=True)
    return clone._apply(lambda tensor: in_precision(tensor, dtype))  # ``to`` would drop imaginary parts


def gradients(objective: Tensor, of: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Return the gradients of a scalar; zeros where it does not depend on them (a part that runs without gradients)."""
    if not objective.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in of)
    return torch.autograd.grad(objective, of, create_graph=create_graph, materialize_grads=True)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode, full precision, and kernels that can be differentiated twice; all as before at the end.

    Raises:
        ConfigError: If the model recomputes activations in the backward pass.
    """
    device = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.enter_context(_no_checkpointing())
        stack.enter_context(evaluation(model))
        stack.enter_context(_without_autocast(device))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def _without_autocast(device: str) -> Iterator[None]:
    """Compute in the tensors' own types, within regions of autocast that the forward opens too."""
    region = torch.autocast
    enter, leave = region.__enter__, region.__exit__
    with torch.autocast(device, enabled=False):
        region.__enter__, region.__exit__ = (lambda self: self), (lambda self, *error: None)  # type: ignore[method-assign]
        try:
            yield
        finally:
            region.__enter__, region.__exit__ = enter, leave  # type: ignore[method-assign]


@contextmanager
def _no_checkpointing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # By the time of the backward pass the parameters are no longer those the forward was tried with.
        if not isinstance(error, CheckpointError) and "heckpointing is not compatible" not in str(error):
            raise
        raise ConfigError(
            "The model recomputes activations (torch.utils.checkpoint), which methods that look at gradients cannot "
            "follow: switch that off around grower.step, for example with model.gradient_checkpointing_disable()."
        ) from error
