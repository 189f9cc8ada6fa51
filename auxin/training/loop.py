"""One epoch of training and one pass of evaluation: the inner loops, free of growth and files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_accuracy

from auxin.errors import TrainingError
from auxin.training.schedules import Schedule

_CHECK_EVERY = 50
"""Steps between two looks at the losses: each look makes the GPU wait."""


class Batches(Sized, Iterable[tuple[Tensor, Tensor]], Protocol):
    """Float images (N, C, H, W) with labels (N,), and the number of batches in an epoch."""


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    fabric: Fabric,
    epoch: int,
    schedule: Schedule,
    lr: float,
    label_smoothing: float = 0.0,
    l1: float = 0.0,
    clip_norm: float | None = None,
    on_step: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Train a model on every batch once; the learning rate moves at every step.

    Args:
        model: What ``fabric.setup`` returned; maps images to logits (N, classes).
        optimizer: Steps its parameters.
        batches: The epoch's batches.
        fabric: Runs the backward pass.
        epoch: 0 for the first.
        schedule: From epochs trained, fractions included, to the factor of ``lr``.
        lr: Learning rate at the top of the schedule.
        label_smoothing: Share of the target spread over all classes.
        l1: The step also minimises l1 · Σ|θ| over all parameters; 0 leaves it out.
        clip_norm: Largest gradient norm, or None.
        on_step: Called after each step.

    Returns:
        ``train_loss`` (without the l1 term), ``train_accuracy`` (0 to 1) and the last ``lr``.

    Raises:
        TrainingError: If the loss is no longer finite.
    """
    model.train()
    steps = len(batches)
    losses = torch.zeros(steps, device=fabric.device)
    guesses, targets = [], []
    rate = lr
    for step, (images, labels) in enumerate(batches):
        rate = lr * schedule(epoch + step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss + l1 * sum(p.abs().sum() for p in model.parameters()) if l1 else loss)
        if clip_norm is not None:
            fabric.clip_gradients(model, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
        optimizer.step()
        losses[step] = loss.detach()
        guesses.append(logits.detach().argmax(1))
        targets.append(labels)
        if (step + 1) % _CHECK_EVERY == 0:
            _require_finite(losses[: step + 1], epoch, steps)
        on_step()
    # Gradients of the old shapes would only burden the growth event and memory.
    optimizer.zero_grad(set_to_none=True)
    _require_finite(losses, epoch, steps)
    accuracy = _accuracy(torch.cat(guesses), torch.cat(targets), logits.shape[1])
    return {"train_loss": losses.mean().item(), "train_accuracy": accuracy, "lr": rate}


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy (0 to 1) of a model over some batches.

    Args:
        model: Maps images to logits (N, classes); left in eval mode.
        batches: Every image once, not augmented.

    Returns:
        Loss and accuracy, both averaged over images.
    """
    model.eval()
    losses, guesses, targets = [], [], []
    for images, labels in batches:
        logits = model(images)
        losses.append(functional.cross_entropy(logits, labels, reduction="none"))
        guesses.append(logits.argmax(1))
        targets.append(labels)
    accuracy = _accuracy(torch.cat(guesses), torch.cat(targets), logits.shape[1])
    return torch.cat(losses).mean().item(), accuracy


def _accuracy(guesses: Tensor, targets: Tensor, num_classes: int) -> float:
    # Once an epoch: a metric object updated at every step costs more than the optimizer does.
    return float(multiclass_accuracy(guesses, targets, num_classes, average="micro", validate_args=False))


def _require_finite(losses: Tensor, epoch: int, steps: int) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        step = int(bad[0])
        remedy = "the last checkpoint is still good, so go on from it" if epoch else "begin again"
        raise TrainingError(
            f"The loss became {losses[step].item()} at epoch {epoch + 1}, step {step + 1} of {steps}: {remedy} with a "
            "lower --optimizer.lr or a --train.clip_norm of 1."
        )
