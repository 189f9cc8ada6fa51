"""η = gᵀ F⁻¹ g at any damping, from Gram matrices, a diagonal or Kronecker factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from auxin.errors import ConfigError
from auxin.statistics.fisher import CURRENT, Factors, Moments


class Terms(Protocol):
    """The score of the current model and of each proposal, at any damping."""

    def value(self, owner: str, damping: float) -> float:
        """Return η of the current model with the entries of one owner added."""
        ...

    def choose_damping(self, target: float) -> float:
        """Return the λ at which the current model's score is mid-range."""
        ...


def from_gram(gram: Tensor, n: int, damping: float) -> float:
    """Return η from the Gram matrix of the rows; the first n are the samples' gradients.

    Args:
        gram: float64, (n, n) for the empirical Fisher matrix, else ((1 + m)·n, (1 + m)·n) with the Fisher rows after.
        n: Number of samples.
        damping: λ.

    Returns:
        η.
    """
    if len(gram) == n:
        return float((gram @ _solve_shifted(gram, n * damping, gram.new_ones(n, 1))).sum()) / n
    square, b, rows = gram[:n, :n].sum() / n**2, gram[n:, :n].sum(1, keepdim=True) / n, gram[n:, n:]
    return float((square - (b * _solve_shifted(rows, n * damping, b)).sum()) / damping)


def _solve_shifted(matrix: Tensor, shift: float, right: Tensor) -> Tensor:
    """Return (matrix + shift · I)⁻¹ right."""
    shifted = matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        raise ConfigError(
            f"The damping is lost in the rounding of a Fisher matrix with entries of {float(matrix.max()):.1e}; give a "
            "larger one, or None to choose one."
        )
    return torch.cholesky_solve(right, factor)


@dataclass
class GramTerms:
    """Scores from Gram matrices per owner and module; proposals add to what the current model has."""

    grams: dict[str, dict[str, Tensor]]
    n: int
    blockwise: bool
    _sum: Tensor | None = field(default=None, repr=False)
    _known: dict[tuple[str, float], float] = field(default_factory=dict, repr=False)

    def value(self, owner: str, damping: float) -> float:
        """Return η of the current model with one owner's entries added."""
        if not self.blockwise:
            return from_gram(self._total(owner), self.n, damping)
        current, added = self.grams.get(CURRENT, {}), self.grams.get(owner, {}) if owner != CURRENT else {}
        total = 0.0
        for block in sorted(current.keys() | added.keys()):
            if block in added:
                gram = added[block] + current[block] if block in current else added[block]
                total += from_gram(gram, self.n, damping)
            else:
                if (block, damping) not in self._known:
                    self._known[block, damping] = from_gram(current[block], self.n, damping)
                total += self._known[block, damping]
        return total

    def _total(self, owner: str) -> Tensor:
        if self._sum is None:
            self._sum = torch.stack(list(self.grams[CURRENT].values())).sum(0)
        return (
            self._sum
            if owner == CURRENT
            else self._sum + sum(gram.double() for gram in self.grams.get(owner, {}).values())
        )

    def choose_damping(self, target: float) -> float:
        """Return λ with η = target · (its limit at λ → 0), or with that effective rank of another Fisher matrix."""
        blocks = list(self.grams[CURRENT].values()) if self.blockwise else [self._total(CURRENT)]
        terms = []
        for gram in blocks:
            empirical = len(gram) == self.n
            k, vectors = torch.linalg.eigh(gram if empirical else gram[self.n :, self.n :])
            weight = vectors.sum(0).square() / self.n if empirical else torch.ones_like(k)
            alive = k > 1e-12 * k[-1].clamp(min=torch.finfo(k.dtype).tiny)
            terms.append((k[alive] / self.n, weight[alive]))
        if not sum(len(k) for k, _ in terms):
            return 1.0  # no gradient: every score is 0

        def share(damping: float) -> float:
            return sum(float((w * k / (k + damping)).sum()) for k, w in terms)

        limit = sum(float(w.sum()) for _, w in terms)
        return _solve(share, target * limit, max(float(k.max()) for k, _ in terms if len(k)))


@dataclass
class DiagonalTerms:
    """Scores from a diagonal Fisher matrix."""

    moments: dict[str, dict[str, Moments]]

    def value(self, owner: str, damping: float) -> float:
        """Return Σ g²/(mean square + λ) over the current entries and one owner's."""
        owners = {CURRENT, owner}
        return sum(
            float((m.gradient.square() / (m.square + damping)).sum())
            for who in owners
            for m in self.moments.get(who, {}).values()
        )

    def scale(self) -> float:
        """Return the largest entry of F."""
        return max(
            (float(m.square.max()) for m in self.moments.get(CURRENT, {}).values() if m.square.numel()), default=0.0
        )

    def choose_damping(self, target: float) -> float:
        """Return λ with η = target · (its limit at λ → 0)."""
        return _choose(lambda damping: self.value(CURRENT, damping), target, self.scale())


@dataclass
class KroneckerTerms:
    """Scores from Kronecker factors, linear layers by Tr[S⁻¹WA⁻¹Wᵀ], other parameters by their diagonal."""

    factors: dict[str, Factors]
    others: DiagonalTerms
    _known: dict[tuple[str, float], float] = field(default_factory=dict, repr=False)

    def value(self, owner: str, damping: float) -> float:
        """Return η of the current model with one owner's inputs and layers added."""
        total = self.others.value(owner, damping)
        for name, layer in self.factors.items():
            mine = owner != CURRENT and owner in layer.shares
            if mine:
                total += self._layer(layer, [CURRENT, owner], damping)
            elif CURRENT in layer.shares:
                if (name, damping) not in self._known:
                    self._known[name, damping] = self._layer(layer, [CURRENT], damping)
                total += self._known[name, damping]
        return total

    @staticmethod
    def _layer(layer: Factors, owners: list[str], damping: float) -> float:
        columns = torch.cat([layer.shares[owner] for owner in owners if owner in layer.shares])
        a, w = layer.a[columns][:, columns], layer.w[:, columns]
        root = damping**0.5
        left = torch.linalg.solve(layer.s + root * torch.eye(len(layer.s)).to(layer.s), w)
        right = torch.linalg.solve(a + root * torch.eye(len(a)).to(a), w.T)
        return float((left * right.T).sum())

    def choose_damping(self, target: float) -> float:
        """Return λ with η = target · (its limit at λ → 0)."""
        scale = max((float(f.a.diagonal().max() * f.s.diagonal().max()) for f in self.factors.values()), default=0.0)
        return _choose(lambda damping: self.value(CURRENT, damping), target, max(scale, self.others.scale()))


def _choose(value: Callable[[float], float], target: float, scale: float) -> float:
    if scale <= 0:
        return 1.0  # no gradient: every score is 0
    return _solve(value, target * value(1e-12 * scale), scale)


def _solve(value: Callable[[float], float], wanted: float, scale: float) -> float:
    """Return the λ at which a falling function of it has a value, by bisection of its logarithm."""
    low, high = -36.0, 18.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if value(scale * math.exp(middle)) > wanted else (low, middle)
    return scale * math.exp((low + high) / 2)
