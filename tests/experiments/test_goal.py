"""The table of the goal chooses by validation accuracy, and shows what the results say."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from auxin.training import Phase, Result, RunConfig

FOLDER = Path(__file__).parents[2] / "experiments" / "equal_flops"


@pytest.fixture
def goal(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("equal_flops_goal", FOLDER / "goal.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    # To parse the configuration of every result takes longer than all else, and test_readme does it.
    monkeypatch.setattr("auxin.compare.plan.check", lambda run: None)
    return module


def result(flops: float, val: float, test: float = 0.5) -> Result:
    phase = Phase(1, 2, 10, 20, val, test, 1.0, training_flops=flops)
    return Result(
        name="r", config=RunConfig().to_dict(), commit="0", dirty=False, seed=0, hardware={}, versions={}, data={},
        phases=[phase], events=[], widths={}, seconds=1.0,
    )  # fmt: skip


def test_the_row_that_stands_for_a_net_is_chosen_without_the_test_images(goal: ModuleType) -> None:
    fixed = {0: result(100, 0.8)}
    results = {
        "better on test images": {0: result(58, 0.70, test=0.9)},
        "better on validation images": {0: result(60, 0.71, test=0.1)},
        "too many FLOPs": {0: result(61, 0.9), 1: result(61, 0.9)},
        "not run": {},
    }
    assert goal.representative(results, list(results), fixed) == "better on validation images"
    more = {**results, "more seeds": {0: result(58, 0.6), 1: result(58, 0.6)}}
    assert goal.representative(more, list(more), fixed) == "more seeds"
    assert goal.representative(results, ["too many FLOPs", "not run"], fixed) is None


def test_the_tables_in_both_readmes_are_up_to_date(goal: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["goal.py", "--check"])
    goal.main()
    read = {name: Result.read(FOLDER / "results" / "vgg19-48" / f"{name}-s0.json") for name in ("fixed", "60-15-2")}
    shares = [run.phases[-1].training_flops for run in read.values()]
    (cells,) = (row for row in goal.READMES[0].read_text().splitlines() if row.startswith("| VGG19, width 48 |"))
    assert f"| {100 * shares[1] / shares[0]:.0f} | 3 |" in cells
