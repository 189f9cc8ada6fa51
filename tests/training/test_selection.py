from pathlib import Path
from typing import Any

import pytest

from auxin.errors import ConfigError
from auxin.training import selection
from auxin.training.selection import Choice, Wish, pareto, select


def choice(name: str, parameters: int, flops: int, val_accuracy: float) -> Choice:
    return Choice(name, Path(name), parameters, flops, val_accuracy, None, 1.0, 0, None)


FOUND = [
    choice("0", 100, 900, 0.5),
    choice("1", 200, 1500, 0.7),
    choice("1-best", 200, 1500, 0.8),
    choice("2", 400, 1200, 0.75),
    choice("3", 800, 3000, 0.8),
]


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto(FOUND, "parameters") == {"0", "1-best"}
    assert pareto(FOUND, "flops") == {"0", "2", "1-best"}
    twins = [choice("a", 1, 1, 0.5), choice("b", 1, 1, 0.5)]
    assert pareto(twins, "parameters") == {"a", "b"}


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ({}, "1-best"),
        ({"max_params": 800}, "1-best"),
        ({"max_params": 199}, "0"),
        ({"max_flops": 1200}, "2"),
        ({"max_params": 399, "max_flops": 1200}, "0"),
        ({"min_accuracy": 0.72}, "1-best"),
        ({"min_accuracy": 0.72, "max_flops": 1200}, "2"),
        ({"min_accuracy": 0.1}, "0"),
        ({"rung": "3"}, "3"),
    ],
)
def test_the_best_within_limits_is_chosen(wish: dict[str, Any], name: str) -> None:
    assert select(FOUND, Wish(**wish)).name == name


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"max_params": 99}, "no rung has at most 99 parameters: the nearest is rung 0 with 100"),
        ({"max_flops": 10}, "nearest is rung 0 with 900 FLOPs"),
        ({"min_accuracy": 0.9}, "90.00%: the nearest is rung 1-best with 80.00%"),
        ({"min_accuracy": 0.8, "max_params": 100}, "nearest is rung 0 with 50.00%"),
        ({"rung": "7"}, "there is no rung 7: choose one of 0, 1, 1-best, 2, 3"),
    ],
)
def test_nothing_within_the_limits_names_the_nearest(wish: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        select(FOUND, Wish(**wish))


def test_latency_is_measured_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"0": 1.0, "1": 3.0, "1-best": 3.0, "2": 2.0, "3": 9.0}
    monkeypatch.setattr(selection, "latency", lambda path: times[str(path)])
    chosen = select(FOUND, Wish(max_latency_ms=2.5))
    assert (chosen.name, chosen.latency_ms) == ("2", 2.0)
    with pytest.raises(ConfigError, match="nearest is rung 0 with 1 ms"):
        select(FOUND, Wish(max_latency_ms=0.5))
