"""What torch does in a forward that ``torch.export`` cannot follow, replaced while a model is captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributions import Distribution
from torch.nn.modules import transformer


@contextmanager
def no_mask_detection() -> Iterator[None]:
    """Let ``nn.Transformer`` and its stacks use a mask as it is, without looking whether its values are causal."""
    detect = transformer._detect_is_causal_mask

    def given(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
        return bool(is_causal)

    transformer._detect_is_causal_mask = given
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


@contextmanager
def no_checks_of_distributions() -> Iterator[None]:
    """Let a distribution be made without looking whether the values of its parameters are valid."""
    checks = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)
