"""What a table can show of a run: where each number stands in a result, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from auxin.training import Phase, Result

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
        heading: How the column is named; ``{}`` is the unit's prefix, such as M.
        read: The value of a whole run, or None where the run does not have it.
        digits: Decimals shown.
        scale: What values are multiplied by; None chooses a prefix for the whole column.
        paired: Whether the table of paired differences takes it up.
        exact: Whether it is a count, whose spread is shown only where there is one.
    """

    heading: str
    read: Callable[[Result], float | None]
    digits: int = 2
    scale: float | None = 1.0
    paired: bool = False
    exact: bool = False

    def unit(self, values: Sequence[float]) -> tuple[float, str]:
        """Return the factor and the heading of a column.

        Args:
            values: What the column will hold, unscaled.

        Returns:
            What to multiply by, and the heading with its prefix.

        Example:
            >>> METRICS["flops"].unit([3e6, 41e6])
            (1e-06, 'MFLOPs per image')
        """
        if self.scale is not None:
            return self.scale, self.heading
        largest = max(values, default=0.0)
        size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if largest >= size), (1.0, ""))
        return 1 / size, self.heading.format(prefix)


def _final(name: str) -> Callable[[Result], float | None]:
    return lambda result: of_phase(result.phases[-1], name) if result.phases else None


def of_phase(phase: Phase, name: str) -> float | None:
    """Return a number of one size of a run.

    Args:
        phase: That size.
        name: An attribute; results of older versions may lack some.

    Returns:
        The number, or None where the run did not record it.
    """
    value = getattr(phase, name, None)
    return None if value is None else float(value)


def _training_flops(result: Result) -> float | None:
    # Runs from before FLOPs were counted read as 0.
    return _final("training_flops")(result) or None


def _best_test(result: Result) -> float | None:
    # Where the last epoch is the best one, nothing else was kept.
    return _final("best_test_accuracy")(result) or _final("test_accuracy")(result)


METRICS = {
    "test": Metric("test %", _final("test_accuracy"), scale=100, paired=True),
    "best_test": Metric("test % of best epoch", _best_test, scale=100, paired=True),
    "val": Metric("validation %", _final("val_accuracy"), scale=100, paired=True),
    "parameters": Metric("parameters", _final("parameters"), digits=0, exact=True),
    "flops": Metric("{}FLOPs per image", _final("flops"), scale=None, exact=True),
    "training_flops": Metric("training {}FLOPs", _training_flops, scale=None, exact=True),
    "seconds": Metric("seconds", lambda result: result.seconds, digits=0, paired=True),
    "energy": Metric("Wh", _final("energy_kwh"), scale=1000),
}
"""Name in a specification → column. All are of the final size at its end, ``seconds``, FLOPs and
energy of training up to there; ``best_test`` is of that size's epoch of highest validation accuracy."""

DEFAULT_METRICS = ("test", "parameters", "flops", "training_flops", "seconds", "energy")
