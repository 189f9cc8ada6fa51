"""What a refinement did, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerChange:
    """What the refinement did to one layer.

    Attributes:
        name: Path of the module.
        before: μ before, Eq. 2.
        after: μ after.
        new_before: The same over pairs with at least one neuron that may move; None if none may.
        new_after: The same after.
        weight_change: log |ΣW after / ΣW before|, Eq. 4.
        moved: |W after − W before| / |W before|.
        histogram_before: Pairs by similarity before, counted by ``distribution.of_histogram``, all matrices together.
        histogram_after: The same after.
    """

    name: str
    before: float
    after: float
    new_before: float | None
    new_after: float | None
    weight_change: float
    moved: float
    histogram_before: tuple[int, ...] = ()
    histogram_after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Refinement:
    """What a refinement did.

    Attributes:
        layers: Layer by layer.
        iterations: Steps taken.
        neurons: Which neurons could move.
        norms: Number of batch norms that were re-estimated.
        max_change: max |Δ output| of the graph's example in eval mode, re-estimated norms included; None without graph.
        seconds: Wall time of finding, measuring and moving; of the norms in ``norm_seconds``.
        norm_seconds: Wall time of the re-estimation.
        notes: Sentences for the user.
    """

    layers: tuple[LayerChange, ...]
    iterations: int
    neurons: str
    norms: int
    max_change: float | None
    seconds: float
    norm_seconds: float
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> float:
        """μ before, the mean over layers."""
        return sum(layer.before for layer in self.layers) / max(len(self.layers), 1)

    @property
    def after(self) -> float:
        """μ after, the mean over layers."""
        return sum(layer.after for layer in self.layers) / max(len(self.layers), 1)

    def __str__(self) -> str:
        moved = [
            (m.new_before, m.new_after) for m in self.layers if m.new_before is not None and m.new_after is not None
        ]
        text = f"similarity: {self.iterations} iterations on {len(moved)} layers, {self.neurons} neurons"
        text += f", μ {self.before:.4f} → {self.after:.4f}"
        if moved and self.neurons != "all":
            old, new = (sum(column) / len(moved) for column in zip(*moved, strict=True))
            text += f" (pairs with a moved neuron {old:.4f} → {new:.4f})"
        if self.norms:
            text += f", {self.norms} norms re-estimated"
        return text if self.max_change is None else f"{text}, max |Δ output| {self.max_change:.1e}"
