"""Means, spreads and paired differences over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Some numbers of one kind.

    Attributes:
        n: How many.
        mean: Their mean.
        std: Their sample standard deviation, divided by n - 1; None for a single one.
    """

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """A row minus its baseline, seed by seed.

    Attributes:
        n: Number of seeds that both have.
        mean: Mean difference.
        low: Lower end of the confidence interval; None for a single pair.
        high: Its upper end; likewise.
    """

    n: int
    mean: float
    low: float | None
    high: float | None


def summary(values: Sequence[float]) -> Summary | None:
    """Return mean and spread.

    Args:
        values: The numbers; there may be none.

    Returns:
        The summary, or None of no numbers.

    Example:
        >>> summary([1.0, 2.0, 3.0])
        Summary(n=3, mean=2.0, std=1.0)
    """
    if not values:
        return None
    return Summary(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired(values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95) -> Difference | None:
    """Return the mean difference over the seeds that both have, with Student's interval.

        d̄ ± t(n - 1, (1 + confidence) / 2) · s_d / √n

    Args:
        values: Seed → value.
        baseline: The same of what it is compared with.
        confidence: Share of such intervals that hold the true difference, if differences are normal.

    Returns:
        The difference, or None where no seed is in both.

    Example:
        >>> paired({0: 3.0, 1: 5.0, 2: 9.0}, {0: 1.0, 1: 4.0}).mean
        1.5
    """
    found = summary([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])
    if found is None:
        return None
    if found.std is None:
        return Difference(found.n, found.mean, None, None)
    half = float(stats.t.ppf((1 + confidence) / 2, found.n - 1)) * found.std / math.sqrt(found.n)
    return Difference(found.n, found.mean, found.mean - half, found.mean + half)
