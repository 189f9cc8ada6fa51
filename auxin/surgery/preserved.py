"""Whether a model still computes what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from auxin.errors import GrowthError
from auxin.graph.capture import outputs_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest accepted |Δ output| of a function-preserving plan, by the type it is computed in.

It is relative to the largest |output| (0.01 at least) among the entries of the same tensor that moved: what a mask has
set to -1e9, or another output that is much larger, excuses nothing.
"""


class Moved(NamedTuple):
    """How one output has moved: max |Δ|, the largest |entry| of those that moved (before), and its type."""

    change: float
    largest: float
    dtype: torch.dtype


class _Types(TorchDispatchMode):
    """Notes the types of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.update(leaf.dtype for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def compare(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Moved]:
    """Compare two lists of outputs.

    Args:
        before: The outputs before growth.
        after: Those after it.

    Returns:
        How each floating output has moved, where it was finite.

    Raises:
        GrowthError: If a shape is another, or an entry was finite and is no longer.
    """
    if [t.shape for t in before] != [t.shape for t in after]:
        raise GrowthError("the output's shape changed")
    found = []
    for a, b in zip(map(_real, before), map(_real, after), strict=True):
        if not a.is_floating_point() or not a.numel():
            continue
        finite = a.isfinite()
        if not bool(b.isfinite()[finite].all()):
            raise GrowthError("the output is no longer finite")
        old, new = a.double()[finite], b.double()[finite]
        far = (old - new).abs()
        entries = old[far > 0].abs()
        found.append(Moved(float(far.max()), float(entries.max()), a.dtype) if len(entries) else Moved(0, 0, a.dtype))
    return found


def _real(tensor: Tensor) -> Tensor:
    """Return a tensor, of complex numbers their real and imaginary parts."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def require_preserved(found: Sequence[Moved], model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """Refuse outputs that moved by more than rounding explains.

    Args:
        found: What ``compare`` returned.
        model: The grown model, to see in which types it computes if an output moved.
        inputs: Its inputs.

    Raises:
        GrowthError: If the function changed.
    """
    moved = _too_far(found, 0.0)
    if moved:
        # An output's type does not tell what computed it, for example under autocast within the forward.
        with _Types() as computed:
            outputs_of(model, inputs)
        moved = _too_far(found, max((TOLERANCE.get(dtype, 0.0) for dtype in computed.seen), default=0.0))
    if moved:
        raise GrowthError(
            f"the output moved by {moved:.1e} although the plan promised to preserve it; the forward uses a size that "
            "did not grow with the model (a number in a slice or view), or reads the group in a way the graph missed"
        )


def _too_far(found: Sequence[Moved], rounding: float) -> float:
    """Return the largest change that is more than rounding; 0 if none is."""
    allowed = (max(rounding, TOLERANCE.get(moved.dtype, 1e-4)) * max(moved.largest, 1e-2) for moved in found)
    return max((moved.change for moved, most in zip(found, allowed, strict=True) if moved.change > most), default=0.0)
