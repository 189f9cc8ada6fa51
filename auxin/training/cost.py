"""What a model and a run cost: parameters, FLOPs (a multiply and an add count as two), and milliseconds of latency.

FLOPs are those of matrix products, convolutions and attention, as ``torch.utils.flop_counter`` counts them in whatever
runs: exact, from the shapes. Elementwise work (activations, norms, the optimizer's step), products of a matrix with a
single vector, and factorisations such as the SVD are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from auxin.graph.capture import copied, evaluation, unwrap
from auxin.types import LossFn

Kind = Literal["training", "validation", "scoring", "surgery"]
"""What FLOPs were spent on; scoring is what a growth method computes to decide, surgery the growing itself."""


def num_parameters(model: nn.Module) -> int:
    """Return the number of entries of all parameters, each tied one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def num_flops(model: nn.Module, example: Tensor) -> int:
    """Return the FLOPs of one forward pass in eval mode.

    Args:
        model: Left in the mode it was in.
        example: Its input.

    Returns:
        The FLOPs.

    Example:
        >>> num_flops(nn.Linear(3, 4), torch.zeros(1, 3))
        24
    """
    with evaluation(model), _open_recurrence(model), _counter() as counter:
        model(example)
    return int(counter.get_total_flops())


def training_flops(model: nn.Module, images: Tensor, labels: Tensor, loss_fn: LossFn) -> int:
    """Return the FLOPs of one training step: forward and backward pass of one batch.

    The optimizer's step is elementwise and not counted. The batch goes through a copy of the model in full precision,
    also where training runs in a lower one: the shapes, and so the count, are the same.

    Args:
        model: Left as it is: gradients, buffers, mode; so is torch's random state.
        images: Shape (N, C, H, W).
        labels: Shape (N,).
        loss_fn: From logits and labels to the loss.

    Returns:
        The FLOPs.

    Example:
        >>> model, labels = nn.Linear(3, 4), torch.zeros(2, dtype=torch.long)
        >>> training_flops(model, torch.zeros(2, 3), labels, nn.functional.cross_entropy)  # the input needs no gradient
        96
    """
    twin = copied(unwrap(model)).float().train()
    twin.zero_grad(set_to_none=True)
    images = images.detach().float() if images.is_floating_point() else images
    gpus = [images.device.index] if images.is_cuda else []
    with (
        torch.random.fork_rng(devices=gpus),
        torch.autocast(images.device.type, enabled=False),
        torch.enable_grad(),
        _open_recurrence(model),
        _counter() as counter,
    ):
        loss_fn(twin(images), labels).backward()
    return int(counter.get_total_flops())


def latency_ms(model: nn.Module, example: Tensor, repeats: int = 30) -> float:
    """Return the median time of a forward pass in eval mode, with one image at a time and one thread, in milliseconds.

    Args:
        model: Left as it is; a copy is timed.
        example: Input, of which the first image is used.
        repeats: Number of timed passes, after three to warm up.

    Returns:
        Milliseconds.
    """
    twin, image = copied(unwrap(model)).eval(), example[:1]
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(3 + repeats):
                start = time.perf_counter()
                twin(image)
                if image.is_cuda:
                    torch.cuda.synchronize(image.device)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * median(times[3:])


@dataclass
class Ledger:
    """The FLOPs of a run so far, by what they were spent on.

    Attributes:
        flops: FLOPs of each kind.

    Example:
        >>> ledger = Ledger()
        >>> ledger.add("training", 10 * 96)  # ten steps
        >>> with ledger.count("scoring"):
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> ledger.to_dict()
        {'training': 960, 'validation': 0, 'scoring': 48, 'surgery': 0}
    """

    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(get_args(Kind), 0))
    _counted: int = field(default=0, init=False, repr=False, compare=False)

    @property
    def total(self) -> int:
        """FLOPs of all kinds."""
        return sum(self.flops.values())

    def add(self, kind: Kind, flops: int) -> None:
        """Add FLOPs known beforehand, such as those of a step times the number of steps.

        Args:
            kind: What they were spent on.
            flops: How many.
        """
        self.flops[kind] += int(flops)

    @contextmanager
    def count(self, kind: Kind) -> Iterator[None]:
        """Count the FLOPs of everything that runs inside, failed or not.

        Counting only watches: results are bit for bit those without it (but see ``torch.inference_mode``, under which
        some operations are decomposed first; ``torch.no_grad`` is safe). It slows every operation down, so it is meant
        for growth events, not for epochs. Where one count holds another, the inner FLOPs are of the inner kind only.

        Args:
            kind: What they are spent on.

        Yields:
            None.
        """
        counter, before = _counter(), self._counted
        try:
            with counter:
                yield
        finally:
            mine = int(counter.get_total_flops()) - (self._counted - before)
            self._counted += mine
            self.add(kind, mine)

    def to_dict(self) -> dict[str, int]:
        """Return the FLOPs of each kind, as JSON can hold them."""
        return dict(self.flops)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ledger:
        """Return the ledger that ``to_dict`` was called on; kinds that are missing have none.

        Args:
            data: FLOPs by kind.

        Returns:
            The ledger.
        """
        return cls({kind: int(data.get(kind, 0)) for kind in get_args(Kind)})


def _open_recurrence(model: nn.Module) -> AbstractContextManager[Any]:
    """Let an LSTM run as the matrix products it is: its fused form on a CPU hides them from the counter."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext()


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_MISSING)


# Fused attention that torch's own table leaves out, so that a vision transformer on a CPU would seem to attend for
# free. Every formula is given shapes in place of tensors.


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _multi_head(query: Any, key: Any, value: Any, embed_dim: int, num_heads: int, *_: Any, **__: Any) -> int:
    batch, length, _width = query
    head = (batch, num_heads, length, embed_dim // num_heads)
    return 8 * batch * length * embed_dim**2 + sdpa_flop_count(head, (*head[:2], key[1], head[3]), head)


def _encoder_layer(source: Any, embed_dim: int, num_heads: int, *rest: Any, **__: Any) -> int:
    batch, length, _width = source
    hidden = rest[11][0]  # ``ffn_weight_1`` (hidden, embed_dim)
    return _multi_head(source, source, source, embed_dim, num_heads) + 4 * batch * length * embed_dim * hidden


_MISSING = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten._native_multi_head_attention: _multi_head,
    torch.ops.aten._transformer_encoder_layer_fwd: _encoder_layer,
}
