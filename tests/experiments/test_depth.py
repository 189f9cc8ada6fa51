"""The figure of accuracy against depth shows what the results say."""

import importlib.util
from pathlib import Path

import pytest

from auxin.training import Result

FOLDER = Path(__file__).parents[2] / "experiments" / "equal_flops"
specification = importlib.util.spec_from_file_location("equal_flops_picture", FOLDER / "picture.py")
assert specification and specification.loader
picture = importlib.util.module_from_spec(specification)
specification.loader.exec_module(picture)


def test_each_run_is_a_dot_at_its_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    # To parse the configuration of every result takes longer than all else, and test_readme does it.
    monkeypatch.setattr("auxin.compare.plan.check", lambda run: None)
    lines = picture.accuracies()
    (fixed,) = (points for name, points in lines.items() if name == "fixed")
    (grown,) = (points for name, points in lines.items() if name != "fixed")
    assert sorted(fixed) == sorted(grown) == [10, 13, 16, 22, 28]
    for points, name in ((fixed, "fixed-22-s0"), (grown, "60-16-2-to-22-s0")):
        result = Result.read(FOLDER / "results" / "depth" / f"{name}.json")
        assert points[22][0] == pytest.approx(100 * result.phases[-1].test_accuracy)
    (axes,) = picture.draw(lines).figure.axes
    dots = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert [len(line.get_xdata()) for line in dots] == [sum(map(len, points.values())) for points in lines.values()]
